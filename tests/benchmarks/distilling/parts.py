"""The models, data, losses and loops that the speed benchmark is put together from.

Shapes: B sequences, T positions, N targets, D hidden size, V vocabulary.
"""

import math
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from compress.data.batch import Batch
from compress.distill.cached_objective import CachedDistillation
from compress.distill.divergences import named
from compress.distill.objective import Distillation, Recipe
from compress.distill.signals import About, SignalsWriter, TeacherSignals
from compress.distill.targets import sparse_targets
from compress.train.allocator import freed_memory_kept
from compress.train.batches import Batches
from compress.train.head import hidden_states, output_matrix
from compress.train.numerics import Numerics
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings
from compress.train.tied import lookups_add_their_rows
from compress.train.training import Training

B, T = 4, 256
ROWS = 8
STEPS = 10_000
"""More than any run takes."""
Step = Callable[[], float]
_KEPT = ExitStack()


def model(width: int, layers: int, inner: int, vocabulary: int, seed: int) -> PreTrainedModel:
    """Return a Llama with random weights, embedding and head tied, that is as sure as a trained one.

    Plain random logits are all alike, and every token as likely as the next. Here their deviation is √(2 ln V): their
    entropies are 2.5 to 4 nats, and 50 to 90 tokens have a probability above a thousandth.
    """
    torch.manual_seed(seed)
    found = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=width, num_hidden_layers=layers, intermediate_size=inner, vocab_size=vocabulary,
            num_attention_heads=width // 64, num_key_value_heads=width // 128, tie_word_embeddings=True,
            max_position_embeddings=512,
        )
    )  # fmt: skip
    deviation = found.config.initializer_range * width**0.5
    nn.init.constant_(found.model.norm.weight, (2 * math.log(vocabulary)) ** 0.5 / deviation)
    return found


def teacher_and_student(vocabulary: int) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return 25M and 10M parameters beside the embeddings: the teacher in bf16, the student in fp32."""
    teacher = model(512, 8, 1408, vocabulary, seed=1).eval().requires_grad_(False)
    return teacher.to(torch.bfloat16), model(384, 6, 1024, vocabulary, seed=2)


class RandomRows:
    """Packed data of random ids."""

    def __init__(self, vocabulary: int) -> None:
        self._ids = torch.randint(0, vocabulary, (ROWS, T), generator=torch.Generator().manual_seed(0))
        self.num_sequences, self.sequence_length = self._ids.shape

    def learning_batch(self, indices: list[int]) -> Batch:
        return Batch(self._ids[indices], rows=torch.tensor(indices))


def settings() -> TrainingSettings:
    return TrainingSettings(tokens=STEPS * B * T, batch_tokens=B * T, micro_batch=B)


class Dense(nn.Module):
    """Whole logits of both models and a loss over them, as in a loop a user would write."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, loss: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.student, self.teacher, self._loss = student, teacher, loss

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        with torch.no_grad():
            teacher_BTV = self.teacher(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        student_BTV = self.student(input_ids=batch.ids, use_cache=False).logits[:, :-1]
        return self._loss(student_BTV, teacher_BTV), batch.targets.numel()


class Chunked(nn.Module):
    """TRL's DistillationTrainer: its loss of hidden states and output matrices, tiled over tokens and vocabulary."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        with torch.no_grad():
            teacher_ND = hidden_states(self.teacher, batch)
        student_ND, count = hidden_states(self.student, batch), batch.targets.numel()
        return chunked(
            student_ND, output_matrix(self.student)[0], teacher_ND, output_matrix(self.teacher)[0]
        ), count


def plain(student_BTV: Tensor, teacher_BTV: Tensor) -> Tensor:
    """Return forward KL, summed, in fp32 of whatever the logits are."""
    both = (logits.float().log_softmax(-1) for logits in (student_BTV, teacher_BTV))
    return functional.kl_div(*both, log_target=True, reduction="sum")


def gkd(student_BTV: Tensor, teacher_BTV: Tensor) -> Tensor:
    """Return what TRL's GKDTrainer computes at β = 0, summed."""
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss(student_BTV, teacher_BTV, beta=0.0, reduction="sum")


def chunked(student_ND: Tensor, student_VD: Tensor, teacher_ND: Tensor, teacher_VD: Tensor) -> Tensor:
    """Return what TRL's DistillationTrainer computes at β = 0, summed."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask_1N = torch.ones(1, len(student_ND))
    loss, *_ = _chunked_divergence_loss(
        student_ND[None], teacher_ND[None], student_VD, teacher_VD, mask_1N, beta=0.0, num_items_in_batch=1
    )
    return loss


def ours(student: PreTrainedModel, teacher: PreTrainedModel) -> nn.Module:
    return Distillation(student, teacher, Recipe(named("forward_kl")), 0)


def from_cache(student: PreTrainedModel, teacher: PreTrainedModel, data: RandomRows) -> nn.Module:
    """Ask the teacher about all rows now, with default settings; return the objective that reads its answers."""
    from compress.distill.cache_teacher import CacheSettings

    kept, rows = CacheSettings(), list(range(ROWS))
    vocabulary = len(output_matrix(teacher)[0])
    about = About(vocabulary=vocabulary, top_k=kept.top_k, samples=kept.samples, temperature=1.0)
    folder = Path(tempfile.mkdtemp())
    (folder / "done").mkdir()
    writer = SignalsWriter(folder, about, rows, block_rows=1)
    for row in rows:
        with torch.no_grad():
            logits_NV = teacher(input_ids=data.learning_batch([row]).ids).logits[0, :-1].float()
        places_N = torch.rand(T - 1, generator=torch.Generator().manual_seed(row))
        writer.append(sparse_targets(logits_NV, about.top_k, places_N, about.samples), [T - 1])
    writer.finish(folder / "done")
    return CachedDistillation(student, TeacherSignals.open(folder / "done"), 0.0, 0)


def keep_freed_memory() -> None:
    """Keep it for as long as the process lives, as a training does."""
    _KEPT.enter_context(freed_memory_kept())


def our_loop(objective: nn.Module, student: PreTrainedModel, data: RandomRows) -> Step:
    """Return one optimizer step of our loop."""
    keep_freed_memory()
    _KEPT.enter_context(lookups_add_their_rows(student))
    schedule, asked = Schedule.of(settings(), T), settings()
    numerics = Numerics(
        device="cpu", precision="bf16", num_threads=torch.get_num_threads(), micro_batch=B, attention="eager"
    )
    for each in (m for m in objective.children() if isinstance(m, PreTrainedModel)):
        each.set_attn_implementation(numerics.attention)
    training = Training(objective, student.train(), Batches(data, B, 0), asked, schedule, numerics)

    def step() -> float:
        learned = training.compute_gradient()
        assert learned is not None
        training.update(learned[0])
        return learned[0]

    return step


def plain_loop(objective: nn.Module, student: PreTrainedModel, data: RandomRows) -> Step:
    """Return one optimizer step as transformers' Trainer takes it: autocast, clipping, fused AdamW."""
    optimizer = torch.optim.AdamW(student.train().parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    batches, taken = Batches(data, B, 0), iter(range(STEPS))

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total, count = objective(batches.at(next(taken)))
        loss = total / count
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def methods() -> dict[str, Callable[[PreTrainedModel, PreTrainedModel, RandomRows], tuple[Any, nn.Module]]]:
    """Return, by name, what makes the loop and the objective."""
    return {
        "plain": lambda s, t, d: (plain_loop, Dense(s, t, plain)),
        "TRL GKD": lambda s, t, d: (plain_loop, Dense(s, t, gkd)),
        "TRL distillation": lambda s, t, d: (plain_loop, Chunked(s, t)),
        "ours, TRL GKD head": lambda s, t, d: (our_loop, Dense(s, t, gkd)),
        "ours, TRL distillation head": lambda s, t, d: (our_loop, Chunked(s, t)),
        "ours": lambda s, t, d: (our_loop, ours(s, t)),
        "ours, cached": lambda s, t, d: (our_loop, from_cache(s, t, d)),
    }
