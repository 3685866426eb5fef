"""The loss alone on a GPU: 8,192 tokens, 128,256 ids, 4,096 numbers, forward and backward.

    python tests/benchmarks/fused_head.py

prints milliseconds (median of 10) and peak memory beside the inputs, by the kernel and by tiles, for an output matrix
in bf16 and one in fp32 under autocast. On an H200 the goal in bf16 is less than 80 ms and 4 GB.

Shapes: N tokens, D hidden size, V vocabulary.
"""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from compress.distill.divergences import named
from compress.distill.rows import KernelJudge, has_kernel
from compress.train.distribution import Distribution
from compress.train.fused import GroupJudge, Judge, fused_loss
from compress.train.projection import Projection

N, D, V = 8_192, 4_096, 128_256
REPEATS, WARM_UP = 10, 3
GOAL_MS, GOAL_GB = 80, 4


def criterion(
    teacher: Projection, targets_N: Tensor, by_kernel: bool
) -> Callable[[Projection, slice], Judge | GroupJudge]:
    """Return forward KL to a teacher, as distillation asks for it."""
    divergence = named("forward_kl")

    def of_group(student: Projection, group: slice) -> Judge | GroupJudge:
        product_gV = teacher.product(group)
        if by_kernel:
            return KernelJudge(student, teacher, product_gV, group, targets_N[group], 1.0, 0.0)

        def judge(found: Distribution, tile: slice) -> tuple[Tensor, Tensor]:
            theirs_nV = product_gV[tile.start - group.start : tile.stop - group.start]
            return divergence(found, teacher.distribution(theirs_nV, tile))

        return judge

    return of_group


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Return the median milliseconds of some work on the GPU, and its peak memory in GB beside what was there."""
    for _ in range(WARM_UP):
        work()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times_ms = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times_ms.append(start.elapsed_time(end))
    return statistics.median(times_ms), (torch.cuda.max_memory_allocated() - before) / 1e9


def step(dtype: torch.dtype, by_kernel: bool, device: str = "cuda") -> Callable[[], None]:
    """Return the work: loss and gradients of hidden states and an output matrix in a dtype."""
    chance = torch.Generator(device).manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=chance, device=device, dtype=torch.bfloat16)

    hidden_ND, weight_VD = random(N, D), random(V, D, scale=0.02).to(dtype)
    inputs = [hidden_ND.requires_grad_(), weight_VD.requires_grad_()]
    teacher = Projection.of(random(N, D), random(V, D, scale=0.02))
    targets_N = torch.zeros(N, dtype=torch.long, device=device)

    def work() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = fused_loss(*inputs, None, criterion(teacher, targets_N, by_kernel))
        torch.autograd.grad(loss, inputs)

    return work


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("There is no GPU here, and this measures one.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: {N} tokens, {V} ids, {D} numbers")
    layer = Projection(*(torch.empty(1, D, device="cuda", dtype=torch.bfloat16) for _ in range(2)))
    kernel = has_kernel(named("forward_kl"), layer, layer)
    if not kernel:
        print("Without triton there is no kernel to measure.")
    for dtype in (torch.bfloat16, torch.float32):
        for by_kernel in (True, False) if kernel else (False,):
            time_ms, peak_gb = measured(step(dtype, by_kernel))
            met = "met" if time_ms < GOAL_MS and peak_gb < GOAL_GB else "missed"
            print(
                f"{dtype!s:14} by {'kernel' if by_kernel else 'tiles ':6} {time_ms:7.1f} ms {peak_gb:6.2f} GB  {met}"
            )


if __name__ == "__main__":
    main()
