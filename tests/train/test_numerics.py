"""One choice of kernels for a forward pass and its backward pass, and what is kept of the answers."""

from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from compress.train import numerics as numerics_module
from compress.train import step
from compress.train.batches import Batches
from compress.train.loop import fit
from compress.train.memory import recompute_activations, tried_on
from compress.train.numerics import START, Numerics, applied, resolve
from compress.train.objective import NextToken
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.training import Training
from tests.fakes import FakeContext
from tests.models.tiny import tiny_model
from tests.train.inputs import SMALL, context, no_account, parent
from tests.train.test_loop import DATA, OnlyInAnyOrder
from tests.train.test_resume import DiesAt, Killed

PRETENDED = Numerics(
    device="cpu:0",
    precision="fp32",
    num_threads=1,
    micro_batch=4,
    attention="sdpa",
    checkpoint_activations=True,
)
"""No processor by its name, so it is computed on as on a GPU; its tensors are a processor's."""
SETTINGS = TrainingSettings(tokens=16 * 8, batch_tokens=16 * 8)


def flags() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


class Kernel(torch.autograd.Function):
    """Attention of a sort: like kernels on GPUs it saves tensors of another shape where it must be deterministic."""

    seen: ClassVar[list[tuple[str, tuple[bool, bool], frozenset[SDPBackend]]]] = []

    @staticmethod
    def forward(ctx, value):
        strict = flags() == (True, False)
        Kernel.note("forward")
        ctx.save_for_backward(value.new_zeros(3) if strict else value.new_zeros(3, 1))
        return value * 2

    @staticmethod
    def backward(ctx, gradient):
        assert len(ctx.saved_tensors) == 1
        Kernel.note("backward")
        return gradient * 2

    @staticmethod
    def note(where):
        Kernel.seen.append((where, flags(), frozenset(_cur_sdpa_kernel_backends())))


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(
        functional, "scaled_dot_product_attention", lambda query, *_, **__: Kernel.apply(query)
    )
    Kernel.seen.clear()


def pretended(objective_of=NextToken, numerics=PRETENDED):
    schedule = Schedule.of(SETTINGS, sequence_length=16)
    student = tiny_model("llama", **SMALL).train()
    student.set_attn_implementation("sdpa")
    recompute_activations(student, numerics.checkpoint_activations)
    batches = Batches(DATA, schedule.batch_sequences, seed=0)
    return Training(objective_of(student), student, batches, SETTINGS, schedule, numerics)


def test_a_kernel_is_chosen_again_when_activations_are_computed_again(kernel):
    training = pretended()
    Kernel.seen.clear()
    with applied(PRETENDED):
        training.compute_gradient()
    assert {where for where, *_ in Kernel.seen} == {"forward", "backward"}
    assert {allowed for _, allowed, _ in Kernel.seen} == {(True, False)}
    [kernels] = {kernels for *_, kernels in Kernel.seen}
    assert kernels == {SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH}


def test_where_sums_vary_both_passes_are_allowed_the_same(kernel):
    numerics = PRETENDED.model_copy(update={"sums_vary": "some operation sums in any order"})
    training = pretended(numerics=numerics)
    Kernel.seen.clear()
    with applied(numerics):
        training.compute_gradient()
    assert {allowed for _, allowed, _ in Kernel.seen} == {(True, True)} and not numerics.facts()["bit_exact"]


def test_sizes_are_tried_as_training_computes(kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**9))
    for name in ("memory_reserved", "max_memory_allocated", "current_device"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.random, "fork_rng", lambda *_, **__: nullcontext())
    student = tiny_model("llama", **SMALL).train()
    student.set_attn_implementation("sdpa")
    objective = NextToken(student)
    Kernel.seen.clear()
    with applied(PRETENDED):
        fits = tried_on(objective, student, lambda size: DATA.learning_batch(range(size)), PRETENDED)
        assert fits(2, True)
    assert {allowed for _, allowed, _ in Kernel.seen} == {(True, False)}


def test_kernels_are_as_they_were_after_training():
    before = _cur_sdpa_kernel_backends(with_priority=True)
    with applied(PRETENDED):
        assert SDPBackend.CUDNN_ATTENTION not in _cur_sdpa_kernel_backends()
    assert _cur_sdpa_kernel_backends(with_priority=True) == before and flags() == (False, False)


class ForwardInAnyOrder(NextToken):
    """An operation of its forward pass has no deterministic algorithm."""

    def forward(self, batch):
        torch._prims_common.alert_not_deterministic("cumsum_cuda_kernel")
        return super().forward(batch)


@pytest.mark.parametrize(
    ("kind", "name"), [(ForwardInAnyOrder, "cumsum_cuda_kernel"), (OnlyInAnyOrder, "scan_backward")]
)
def test_an_operation_of_either_pass_without_one_order_ends_the_claim_and_is_kept_at_once(
    tmp_path, monkeypatch, kind, name
):
    monkeypatch.setattr(Numerics, "sums_in_one_order", property(lambda numerics: not numerics.sums_vary))
    kept = []

    class Noting(kind):
        def forward(self, batch):
            path = given.partial / START
            kept.append(Numerics.model_validate_json(path.read_text()).sums_vary)
            return super().forward(batch)

    given = FakeContext(tmp_path / "result", seed=7)
    student = tiny_model("llama", **SMALL)
    facts = fit(Noting(student), student, DATA, SETTINGS, given, no_account)
    said = f"on this GPU {name} sums in any order"
    assert kept[0] == "" and set(kept[1:]) == {said} and facts["bit_exact_ended_by"] == said


def test_a_resumed_training_goes_on_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.train.checkpoint.WORK_PER_WRITE", 0)
    monkeypatch.setattr(Numerics, "sums_in_one_order", property(lambda numerics: not numerics.sums_vary))
    monkeypatch.setattr("compress.train.objective.NextToken", OnlyInAnyOrder)
    config = step.Config(tokens=16 * 4 * 8, batch_tokens=16 * 4, checkpoint_seconds=0)
    model = parent(tmp_path / "parent")
    with pytest.raises(Killed):
        step.run(model, config, context(tmp_path / "result", kind=DiesAt))
    monkeypatch.undo()
    outcome = step.run(model, config, context(tmp_path / "result"))
    assert outcome.facts["resumed"] == 1 and not outcome.facts["bit_exact"]


class Copies(TorchDispatchMode):
    """Remembers the bf16 copies of weights."""

    def __init__(self, shapes) -> None:
        super().__init__()
        self.shapes, self.made = shapes, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "_to_copy" in str(func) and out.dtype == torch.bfloat16 and tuple(out.shape) in self.shapes:
            self.made.append(StorageWeakRef(out.untyped_storage()))
        return out


def test_no_copy_of_a_weight_outlives_its_layer():
    config = LlamaConfig(**SMALL | {"num_hidden_layers": 4}, vocab_size=64, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).train()
    recompute_activations(model, True)
    copies = Copies({tuple(p.shape) for p in model.model.layers.parameters() if p.ndim == 2})
    numerics = PRETENDED.model_copy(update={"precision": "bf16", "device": "cpu"})
    with copies, numerics.autocast():
        hidden = model.model(input_ids=torch.zeros(1, 8, dtype=torch.long), use_cache=False).last_hidden_state
        assert len(copies.made) == 4 * 7 and all(copy.expired() for copy in copies.made)
    assert hidden.requires_grad


def test_a_team_takes_the_leaders_answers_without_a_look_at_the_folder(tmp_path, monkeypatch):
    settings, schedule = SETTINGS, Schedule.of(SETTINGS, sequence_length=16)
    said = PRETENDED.model_copy(update={"num_threads": 5})

    class Follower:
        is_launched, leads = True, False

        def agree(self, value):
            return said.model_dump_json()

    monkeypatch.setattr(numerics_module, "_resolved", None)
    assert resolve(tmp_path, settings, schedule, None, Follower()) == said
    assert not list(tmp_path.iterdir())
