"""What one process of the speed benchmark measures: a method's steps, a loss alone, gradient errors, or rates.

Shapes: N targets, D hidden size, V vocabulary.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.distill.rows import KernelJudge
from compress.train.fused import fused_loss, slices
from compress.train.head import hidden_states
from compress.train.projection import Projection

from . import parts

N, D, TEACHER_D = parts.B * (parts.T - 1), 384, 512
BOUND = "bound"


def step_when_asked(method: str, vocabulary: int) -> None:
    """Take a method's whole step for each line of standard input; print its seconds and the process's peak memory.

    `BOUND` is a step that does nothing but what all have to.
    """
    if method == BOUND:
        works = bound_parts(vocabulary).values()
        step: Callable[[], object] = lambda: [work() for work in works]  # noqa: E731
    else:
        teacher, student = parts.teacher_and_student(vocabulary)
        data = parts.RandomRows(vocabulary)
        loop, objective = parts.methods()[method](student, teacher, data)
        if method.endswith("cached"):
            del teacher
        step = loop(objective, student, data)
    for _ in sys.stdin:
        seconds = _timed(step)
        print(json.dumps({"seconds": seconds, "peak_bytes": _status("VmHWM")}), flush=True)


def loss_memory(method: str, vocabulary: int) -> dict[str, Any]:
    """Return by how much a loss and its gradients raise the peak above hidden states, matrices and their gradients."""
    chance, size = (
        torch.Generator().manual_seed(0),
        (2 * math.log(vocabulary)) ** 0.5,
    )  # as sure as `parts.model`
    hidden_ND = torch.randn(N, D, generator=chance, requires_grad=True)
    weight_VD = (size / D**0.5 * torch.randn(vocabulary, D, generator=chance)).requires_grad_()
    teacher_ND = torch.randn(N, TEACHER_D, generator=chance).bfloat16()
    teacher_VD = (size / TEACHER_D**0.5 * torch.randn(vocabulary, TEACHER_D, generator=chance)).bfloat16()
    weight_VD.grad, hidden_ND.grad = torch.ones_like(weight_VD), torch.ones_like(hidden_ND)
    loss = LOSSES[method]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(
            hidden_ND[:8], weight_VD[:512], teacher_ND[:8], teacher_VD[:512]
        )  # what libraries load at first use
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = loss(hidden_ND, weight_VD, teacher_ND, teacher_VD)
    total.backward()
    return {"loss_bytes": _status("VmHWM") - before}


def gradient_errors(vocabulary: int) -> dict[str, Any]:
    """Return how far gradients in the logits are from dense fp64 on the same bf16 inputs, as shares of its length.

    The logits are a language model's in shape: some likely ids, a long tail, entropies of a few nats; the student is
    close to its teacher. As in a training, all is computed under autocast.
    """
    student_ND, weight_VD, teacher_ND, teacher_VD = peaked(vocabulary)
    exact_NV = _slope(
        *(h.double() @ w.double().T for h, w in ((student_ND, weight_VD), (teacher_ND, teacher_VD)))
    )
    rounded_NV = _slope(*((h @ w.T).float() for h, w in ((student_ND, weight_VD), (teacher_ND, teacher_VD))))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        student, teacher = Projection.of(student_ND, weight_VD), Projection.of(teacher_ND, teacher_VD)
    whole = slice(0, len(student_ND))
    ours_NV = _judge(student, teacher, whole).judge_group(student.product(whole))[1]

    def error(slope_NV: Tensor) -> float:
        return float((slope_NV.double() - exact_NV).norm() / exact_NV.norm())

    return {"ours": error(ours_NV), "TRL GKD": error(rounded_NV)}


def bound_parts(vocabulary: int) -> dict[str, Callable[[], object]]:
    """Return what a step has to do at least, by part.

    The head: its four products in bf16. The backbones, forward and backward, and the optimizer: as they are.
    """
    parts.keep_freed_memory()
    teacher, student = parts.teacher_and_student(vocabulary)
    batch = parts.RandomRows(vocabulary).learning_batch(list(range(parts.B)))
    chance = torch.Generator().manual_seed(0)
    hidden_ND, teacher_ND = (torch.randn(N, d, generator=chance).bfloat16() for d in (D, TEACHER_D))
    weight_VD, teacher_VD = (torch.randn(vocabulary, d, generator=chance).bfloat16() for d in (D, TEACHER_D))
    slope_NV = torch.randn(N, vocabulary, generator=chance).bfloat16()
    for each in (teacher, student):
        each.set_attn_implementation("eager")

    def backbones() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                hidden_states(teacher, batch)
            states_ND = hidden_states(student, batch)
        states_ND.sum().backward()

    backbones()
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)
    return {
        "teacher_product": lambda: teacher_ND @ teacher_VD.T,
        "student_product": lambda: hidden_ND @ weight_VD.T,
        "hidden_gradient": lambda: slope_NV @ weight_VD,
        "weight_gradient": lambda: slope_NV.T @ hidden_ND,
        "optimizer": optimizer.step,
        "backbones": backbones,
    }


def rates(vocabulary: int) -> dict[str, Any]:
    """Return the seconds that a step takes at least, by part, and the products' rate."""
    found = {name: _best(work) for name, work in bound_parts(vocabulary).items()}
    flops = 2 * N * vocabulary * (TEACHER_D + 3 * D)
    products = sum(
        found[name] for name in ("teacher_product", "student_product", "hidden_gradient", "weight_gradient")
    )
    return {**found, "bound": sum(found.values()), "gflops_per_second": flops / products / 1e9}


def peaked(vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states and output matrices of a student and a teacher, bf16."""
    chance = torch.Generator().manual_seed(1)
    tokens = 64
    teacher_VD = 0.05 * torch.randn(vocabulary, TEACHER_D, generator=chance)
    map_DD = torch.randn(TEACHER_D, D, generator=chance) / TEACHER_D**0.5
    likely_NK = torch.randint(0, vocabulary, (tokens, 12), generator=chance)
    share_NK = 14 * torch.rand(tokens, 12, generator=chance).square()
    teacher_ND = (teacher_VD[likely_NK] * share_NK[..., None]).sum(1)
    teacher_ND += 0.5 * torch.randn(tokens, TEACHER_D, generator=chance)
    weight_VD = teacher_VD @ map_DD
    student_ND = teacher_ND @ torch.linalg.pinv(map_DD).T
    student_ND *= 1 + 0.1 * torch.randn(student_ND.shape, generator=chance)
    student_ND, weight_VD, teacher_ND, teacher_VD = (
        each.bfloat16() for each in (student_ND, weight_VD, teacher_ND, teacher_VD)
    )
    return student_ND, weight_VD, teacher_ND, teacher_VD


def _our_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    teacher_ND: Tensor,
    teacher_VD: Tensor,
) -> Tensor:
    teacher = Projection.of(teacher_ND, teacher_VD)
    return fused_loss(hidden_ND, weight_VD, None, lambda student, group: _judge(student, teacher, group))


def _judge(student: Projection, teacher: Projection, group: slice) -> KernelJudge:
    """Return forward KL, as distillation judges it."""
    targets_g = torch.zeros(group.stop - group.start, dtype=torch.long)
    return KernelJudge(student, teacher, teacher.product(group), group, targets_g, 1.0, 0.0)


def _dense(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def total(hidden_ND: Tensor, weight_VD: Tensor, teacher_ND: Tensor, teacher_VD: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_NV = torch.nn.functional.linear(teacher_ND, teacher_VD)
        return loss(torch.nn.functional.linear(hidden_ND, weight_VD)[None], teacher_NV[None])

    return total


LOSSES: dict[str, Callable[..., Tensor]] = {
    "plain": _dense(parts.plain),
    "TRL GKD": _dense(parts.gkd),
    "TRL distillation": parts.chunked,
    "ours": _our_loss,
}


def _slope(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    return torch.cat(
        [student_NV[t].softmax(-1) - teacher_NV[t].softmax(-1) for t in slices(0, len(student_NV), 16)]
    )


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _best(work: Callable[[], object]) -> float:
    return min(_timed(work) for _ in range(5))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) * 1024
