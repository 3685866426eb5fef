"""Training on the card: whether a step is right, what it takes, and what is kept of it."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from compress.distill.divergences import named
from compress.distill.objective import Distillation, Recipe
from compress.errors import is_out_of_memory
from compress.train.background import HostCopies
from compress.train.batches import Batches
from compress.train.checkpoint import Checkpoints
from compress.train.loop import place
from compress.train.memory import recompute_activations, tried_on
from compress.train.numerics import Numerics, applied
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.training import Training
from gpu_minutes.scale import Packed, Scale, forget_peak, milliseconds, model, peak_bytes, row

CARD_BYTES = 80 * 2**30
"""What the shipped recipe for one card promises to fit into."""


class Job:
    """A distillation, ready for its steps."""

    def __init__(self, scale: Scale, student: Any, teacher: Any, numerics: Numerics, **settings: Any) -> None:
        tokens = scale.batch_rows * scale.sequence_length
        self.settings = TrainingSettings(tokens=100 * tokens, batch_tokens=tokens, **settings)
        self.numerics, self.student = numerics, student
        vocabulary = student.config.vocab_size
        self.objective = Distillation(student, teacher, Recipe(named("forward_kl")), vocabulary)
        place(self.objective, numerics)
        recompute_activations(student, numerics.checkpoint_activations)
        self.schedule = Schedule.of(self.settings, scale.sequence_length)
        self.batches = Batches(Packed(scale, vocabulary), self.schedule.batch_sequences, seed=0)
        self.training = Training(
            self.objective, student, self.batches, self.settings, self.schedule, numerics
        )
        student.train()

    def gradient(self) -> list[torch.Tensor]:
        """Return the gradients of a step's loss, copied."""
        self.training.compute_gradient()
        return [p.grad.detach().clone() for p in self.student.parameters() if p.grad is not None]

    def step(self) -> float:
        """Take a step; return its loss."""
        learned = self.training.compute_gradient()
        assert learned is not None
        self.training.update(learned[0])
        return learned[0]


def numerics(scale: Scale, micro_batch: int = 1, recompute: bool = False) -> Numerics:
    """Return the arithmetic of a card, or of a processor where the script is only tried."""
    return Numerics(
        device=scale.device,
        precision="bf16" if scale.is_full else "fp32",
        num_threads=torch.get_num_threads(),
        micro_batch=micro_batch,
        attention="packed",
        checkpoint_activations=recompute,
    )


def _pair(scale: Scale) -> tuple[Any, Any]:
    dtype = torch.bfloat16 if scale.is_full else torch.float32
    return model(scale.pair, scale.device, torch.float32, seed=1), model(
        scale.pair, scale.device, dtype, seed=2
    )


def recomputing(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield whether a step works with recomputed activations, and whether the same step gives the same bits."""
    for recompute in (True, False):
        how = "recomputed" if recompute else "kept"
        arithmetic = numerics(scale, micro_batch=2, recompute=recompute)
        with applied(arithmetic):
            job = Job(scale, *_pair(scale), arithmetic)
            first, second = job.gradient(), job.gradient()
        differing = sum(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
        claimed = job.training.numerics.facts()["bit_exact"]
        note = f"claimed to be exact: {claimed}; {job.training.numerics.sums_vary or 'all in one order'}"
        # What is claimed must hold; what is not claimed may differ.
        goal = {"goal": 0} if claimed else {}
        yield from row(
            f"gradients that differ, activations {how}", differing, "tensors", n=len(first), note=note, **goal
        )
    for optimizer in ("adamw", "adamw_8bit"):
        with applied(arithmetic):
            losses = [
                job.step()
                for job in [Job(scale, *_pair(scale), arithmetic, optimizer=optimizer)]
                for _ in range(4)
            ]
        yield from row(
            f"loss after 4 steps, {optimizer}", losses[-1], "nats/token", note=f"first {losses[0]:.4f}"
        )


def true_step(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield what steps of the real pair take on the card, with each optimizer, and whether 80 GB would do."""
    dtype = torch.bfloat16 if scale.is_full else torch.float32
    arithmetic = numerics(scale, recompute=True)
    for optimizer in ("adamw_8bit", "adamw"):
        forget_peak(scale.device)
        with applied(arithmetic):
            student, teacher = (
                model(scale.student, scale.device, torch.float32, 1),
                model(scale.teacher, scale.device, dtype, 2),
            )
            job = Job(scale, student, teacher, arithmetic, optimizer=optimizer)
            yield from row(f"{optimizer}: weights", peak_bytes(scale.device), "B")
            job.step()
            started = time.perf_counter()
            for _ in range(2):
                job.step()
            seconds = time.perf_counter() - started
        speed = 2 * job.schedule.batch_tokens / seconds
        peak = peak_bytes(scale.device)
        yield from row(
            f"{optimizer}: peak", peak, "B", note=f"of {CARD_BYTES} B; bf16 teacher, recomputed activations"
        )
        yield from row(f"{optimizer}: speed", speed, "tokens/s", n=2)
        del job, student, teacher
        if scale.is_full:
            torch.cuda.empty_cache()


def sizes(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield what fits and how fast it is, by sequences at once, with and without recomputed activations."""
    dtype = torch.bfloat16 if scale.is_full else torch.float32
    arithmetic = numerics(scale)
    with applied(arithmetic):
        student, teacher = (
            model(scale.student, scale.device, torch.float32, 1),
            model(scale.teacher, scale.device, dtype, 2),
        )
        job = Job(scale, student, teacher, arithmetic, optimizer="adamw_8bit")
        for micro_batch, recompute in ((1, False), (1, True), (4, True), (8, True)):
            size = min(micro_batch, scale.batch_rows)
            what = f"{size} sequences, activations {'recomputed' if recompute else 'kept'}"
            recompute_activations(student, recompute)
            job.training.numerics = arithmetic.model_copy(
                update={"micro_batch": size, "checkpoint_activations": recompute}
            )
            forget_peak(scale.device)
            try:
                time_ms = milliseconds(job.training.compute_gradient, scale.device, repeats=1)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                yield from row(what, 0, "tokens/s", note="memory ran out")
                continue
            yield from row(
                what,
                job.schedule.batch_tokens / time_ms * 1e3,
                "tokens/s",
                note=f"peak {peak_bytes(scale.device)} B",
            )
        if scale.is_full:
            fits = tried_on(
                job.objective,
                student,
                lambda n: job.batches.at(0).rows_at(list(range(n))),
                arithmetic,
                "adamw_8bit",
            )
            yield from row("trial: 4 sequences, recomputed", float(fits(4, True)), "fits")


def checkpoint(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield how long a checkpoint takes, and what going back to one takes."""
    arithmetic = numerics(scale, recompute=True)
    shape = scale.student | ({"num_hidden_layers": 8} if scale.is_full else {})
    student = model(shape, scale.device, torch.float32, 1)
    teacher = model(scale.pair | {"vocab_size": shape["vocab_size"]}, scale.device, torch.float32, 2)
    with applied(arithmetic), tempfile.TemporaryDirectory() as folder:
        job = Job(scale, student, teacher, arithmetic)
        job.step()
        checkpoints = Checkpoints(
            Path(folder), seconds=0, copies=HostCopies(scale.device) if scale.is_full else None
        )
        started = time.perf_counter()
        checkpoints.write(job.training)
        held = time.perf_counter() - started
        checkpoints.settle()
        written = time.perf_counter() - started
        num_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        yield from row(
            "training held up by a checkpoint",
            held,
            "s",
            note=f"{num_bytes} B, written after {written:.1f} s",
        )
        before = [p.detach().clone() for p in student.parameters()]
        job.step()
        forget_peak(scale.device)
        checkpoints.restore(job.training)
        differing = sum(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
        yield from row("weights that differ after going back", differing, "tensors", n=len(before), goal=0)
        yield from row("peak while going back", peak_bytes(scale.device), "B")
