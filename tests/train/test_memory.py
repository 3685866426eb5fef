"""What fits, what gives way when it does not, and that recomputing changes nothing."""

import errno

import pytest
import torch

from compress.distill import step as distill
from compress.errors import DoesNotFit, InputError, StepFailed, is_out_of_memory
from compress.machine import Machine, planning_for
from compress.train import checkpoint, memory, step
from compress.train.memory import fitted, largest
from compress.train.numerics import Numerics
from compress.train.objective import NextToken
from compress.train.optimizer import adamw
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from tests.models.tiny import tiny_model
from tests.train.inputs import SMALL, context, parent, payload
from tests.train.test_cost import CARD
from tests.train.test_loop import train
from tests.train.test_resume import CONFIG, DiesAt, Killed

NUMERICS = Numerics(device="cuda", precision="bf16", num_threads=1, micro_batch=1, attention="sdpa")
CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"


class RoomFor(NextToken):
    """Memory for so many sequences at once; for any number when activations are recomputed."""

    num, error = 1, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")
    recomputing_helps = False

    def forward(self, batch):
        helped = self.recomputing_helps and self.student.is_activation_checkpointing
        if len(batch) > self.num and not helped:
            raise self.error
        return super().forward(batch)


def room_for(num: int, error: Exception = RoomFor.error, recomputing_helps: bool = False):
    changes = {"num": num, "error": error, "recomputing_helps": recomputing_helps}
    return type("Room", (RoomFor,), changes)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 24, 100])
def test_the_largest_size_that_fits_is_found_from_below(limit):
    tried = []

    def fits(size):
        tried.append(size)
        return size <= limit

    assert largest(fits, most=24) == {1: 1, 2: 2, 3: 2, 5: 4, 24: 24, 100: 24}[limit]
    assert all(size <= 2 * limit for size in tried) and max(tried) <= 24


def test_where_nothing_fits_none_is_found():
    assert largest(lambda size: False, most=24) == 0


@pytest.mark.parametrize("asked", ["auto", True, False])
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_what_cannot_fit_at_all_is_refused_before_the_first_step(asked, micro_batch):
    settings = TrainingSettings(
        tokens=512 * 64, batch_tokens=512 * 64, checkpoint_activations=asked, micro_batch=micro_batch
    )
    with pytest.raises(DoesNotFit, match="not even one sequence of 512 tokens"):
        fitted(NUMERICS, settings, schedule(), lambda *_: False)


def test_a_size_that_is_asked_for_may_give_way_later():
    settings = TrainingSettings(tokens=512 * 64, batch_tokens=512 * 64, micro_batch=4)
    found = fitted(NUMERICS, settings, schedule(), lambda size, recompute: size == 1)
    assert (found.micro_batch, found.checkpoint_activations) == (4, True)


@pytest.mark.parametrize(
    ("optimizer", "expected"), [("adamw", 8.0), ("adamw_8bit", 4.0), ("adamw_bf16", 4.0)]
)
def test_a_trial_leaves_room_for_the_optimizers_own_moments(optimizer, expected):
    student = tiny_model("llama", **SMALL)
    moved = adamw(student, TrainingSettings(tokens=1, optimizer=optimizer))
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    moved.step()
    tensors = [value for state in moved.state.values() for value in state.values() if torch.is_tensor(value)]
    found = sum(value.nbytes for value in tensors if value.numel() > 1)
    if optimizer == "adamw_8bit":  # all of so small a model's matrices are kept in fp32
        assert memory.moment_bytes(student, optimizer) < found
    else:
        assert memory.moment_bytes(student, optimizer) == found == expected * student.num_parameters()


SAID = {
    "cuda": torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "torch": torch.OutOfMemoryError("anything"),
    "cuda as a runtime error": RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "cuda asynchronous": RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously"
    ),
    "driver": RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
    "runtime": RuntimeError("cudaErrorMemoryAllocation: out of memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cusolver": RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling"),
    "nccl": RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
    "triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "bitsandbytes": RuntimeError("Error out of memory at line 449 in file /src/csrc/ops.cu"),
    "onnxruntime": RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc: Failed to allocate memory for requested buffer"
    ),
    "python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 8.00 GiB for an array"),
    "processor": RuntimeError(CPU_MESSAGE),
    "processor elsewhere": RuntimeError(
        "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"
    ),
    "c++": RuntimeError("std::bad_alloc"),
    "kernel": OSError(errno.ENOMEM, "Cannot allocate memory"),
    "mmap": RuntimeError("unable to mmap 512 bytes from file: Cannot allocate memory (12)"),
}


@pytest.mark.parametrize("error", SAID.values(), ids=SAID)
def test_every_kind_of_too_little_memory_is_recognized(error):
    assert is_out_of_memory(error)


def test_what_too_little_memory_has_caused_is_recognized():
    try:
        try:
            raise RuntimeError("CUDA out of memory")
        except RuntimeError as cause:
            raise RuntimeError("a worker has failed") from cause
    except RuntimeError as error:
        assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("out of resource: shared memory, Required: 264192, Hardware limit: 232448"),
        RuntimeError("unsupported memory format option Preserve"),
        RuntimeError("Pin memory thread exited unexpectedly"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EACCES, "out of memory", "out of memory.txt"),
        ValueError("a text about being out of memory"),
        KeyError("out of memory"),
        StepFailed("memory is too small for 1 sequences at once (CUDA out of memory)"),
        DoesNotFit("out of memory"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_what_only_speaks_of_memory_is_another_error(error):
    assert not is_out_of_memory(error)


def schedule(length: int = 512, batch: int = 64) -> Schedule:
    settings = TrainingSettings(tokens=length * batch, batch_tokens=length * batch)
    return Schedule.of(settings, sequence_length=length)


@pytest.mark.parametrize(
    ("asked", "fits_without", "expected"),
    [("auto", 30, (16, False)), ("auto", 3, (32, True)), (True, 30, (32, True)), (False, 3, (2, False))],
)
def test_activations_are_recomputed_where_few_tokens_fit_without(asked, fits_without, expected):
    settings = TrainingSettings(tokens=64, checkpoint_activations=asked)

    def fits(size: int, recompute: bool) -> bool:
        return size <= (40 if recompute else fits_without)

    found = fitted(NUMERICS, settings, schedule(), fits)
    assert (found.micro_batch, found.checkpoint_activations) == expected


def test_a_model_that_cannot_recompute_is_not_asked_to():
    settings = TrainingSettings(tokens=512 * 64, batch_tokens=512 * 64)
    found = fitted(NUMERICS, settings, schedule(), lambda size, recompute: size <= 1, can_recompute=False)
    assert (found.micro_batch, found.checkpoint_activations) == (1, False)


def test_a_micro_batch_that_is_asked_for_is_not_tried_larger():
    settings = TrainingSettings(tokens=64, micro_batch=3)
    found = fitted(NUMERICS, settings, schedule(), lambda size, recompute: size <= 3)
    assert (found.micro_batch, found.checkpoint_activations) == (3, False)


@pytest.mark.parametrize(
    "error", [RoomFor.error, MemoryError(), RuntimeError(CPU_MESSAGE)], ids=["cuda", "python", "cpu"]
)
def test_half_as_many_are_taken_when_memory_runs_out(tmp_path, error):
    plain, before, _ = train(tmp_path / "plain", micro_batch=4, precision="fp32")
    halved, facts, given = train(
        tmp_path / "halved", room_for(1, error=error), micro_batch=4, precision="fp32"
    )
    assert before["bit_exact"] and not facts["bit_exact"] and facts["micro_batch"] == 1
    assert facts["bit_exact_ended_by"] == ("memory ran out: micro_batch 4 became 2; micro_batch 2 became 1")
    assert [warning.split(":")[0] for warning in given.warnings] == ["at step 1 memory ran out"] * 2
    for ours, theirs in zip(halved.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_activations_are_recomputed_when_one_sequence_is_too_many(tmp_path):
    student, facts, given = train(tmp_path, room_for(0, recomputing_helps=True), micro_batch=1)
    assert facts["checkpoint_activations"] and len(given.warnings) == 1
    assert not student.is_activation_checkpointing


@pytest.mark.parametrize("asked", ["auto", False])
def test_a_model_too_large_for_one_sequence_fails_and_says_what_would_help(tmp_path, asked):
    with pytest.raises(StepFailed, match=r"too small for 1 sequences .*Tried to allocate 2 GiB\); shorter"):
        train(tmp_path, room_for(0), micro_batch=2, checkpoint_activations=asked)


def test_an_optimizer_without_room_fails_and_says_so(tmp_path, monkeypatch):
    def step(self, *_):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(StepFailed, match=r"beside weights and optimizer \(no room\)"):
        train(tmp_path)


def test_other_errors_are_left_as_they_are(tmp_path):
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(tmp_path, room_for(0, error=RuntimeError("shapes differ")))


def test_what_gave_way_is_kept_on_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)
    model = parent(tmp_path / "parent")
    config = CONFIG.model_copy(update={"micro_batch": 4})
    monkeypatch.setattr("compress.train.objective.NextToken", room_for(2))
    with pytest.raises(Killed):
        step.run(model, config, context(tmp_path / "result", kind=DiesAt))
    monkeypatch.undo()
    outcome = step.run(model, config, context(tmp_path / "result"))
    assert outcome.facts["micro_batch"] == 2 and not outcome.facts["bit_exact"]


def test_recomputed_activations_give_the_same_bytes(tmp_path):
    model = parent(tmp_path / "parent", attention_dropout=0.1)
    for recompute in (False, True):
        config = CONFIG.model_copy(update={"checkpoint_activations": recompute, "precision": "fp32"})
        outcome = step.run(model, config, context(tmp_path / str(recompute)))
        assert outcome.facts["checkpoint_activations"] is recompute
    assert payload(tmp_path / "True") == payload(tmp_path / "False")


def test_recomputing_keeps_less_for_the_backward_pass(tmp_path):
    kept = {}
    for recompute in (False, True):
        sizes: list[int] = []

        def note(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        class Watched(NextToken):
            def forward(self, batch, note=note):
                with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                    return super().forward(batch)

        train(tmp_path / str(recompute), Watched, checkpoint_activations=recompute, precision="fp32")
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 3


def test_a_model_that_cannot_recompute_refuses_to_be_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.LlamaPreTrainedModel.supports_gradient_checkpointing", False)
    with pytest.raises(InputError, match=r"'llama' cannot recompute .* Allowed: auto, false"):
        train(tmp_path / "asked", checkpoint_activations=True)
    train(tmp_path / "auto")
    assert memory.giving_way(NUMERICS, TrainingSettings(tokens=64), can_recompute=False) is None


def test_a_refusal_adds_the_memory_up_and_names_what_would_help(tmp_path, monkeypatch):
    def refuses(*_, **__):
        raise DoesNotFit("not even one sequence of 16 tokens fits beside weights, gradients and optimizer")

    monkeypatch.setattr("compress.train.student.fit", refuses)
    model, large = parent(tmp_path / "parent"), parent(tmp_path / "teacher", seed=1, hidden_size=256)
    config = distill.Config(tokens=16 * 4, batch_tokens=16 * 4, teacher="t", teacher_precision="fp32")
    with planning_for(Machine(card=CARD, num_cards=1)), pytest.raises(DoesNotFit) as refused:
        distill.run(model, config, context(tmp_path / "result", teacher=large))
    said = str(refused.value)
    assert said.startswith("not even one sequence of 16 tokens fits")
    assert "MiB of 74.5 GiB there are: student's weights (fp32) " in said
    assert "teacher's weights, fp32 " in said and "lost between blocks (4%)" in said
