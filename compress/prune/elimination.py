"""In which order to remove the inputs of a linear map when what stays makes up for what went.

After every removal the kept weights are refitted by least squares, so an input that others can predict costs little
however active it is. Removing block S costs (Optimal Brain Surgeon, Hassibi & Stork 1992; for groups ZipLM, arXiv
2302.04089)

    tr( V_SS ((G⁻¹)_SS)⁻¹ )        V ← T'VT,  G⁻¹ ← G⁻¹ − (G⁻¹)_:S ((G⁻¹)_SS)⁻¹ (G⁻¹)_S:

with ``G = E[x xᵀ]`` over the inputs, ``V = WᵀW`` of the current weights, and T the refit
``x_S ≈ −((G⁻¹)_SS)⁻¹ (G⁻¹)_S: x``.
"""

import torch
from torch import Tensor

from compress.prune.least_squares import EXACT_UP_TO, damped_inverse

ROUNDS = 32
"""After every round of removals the matrices are made anew, without what is gone."""

WIDE = 128
"""Inputs of a block from which LAPACK solves it in threads."""

CHOICE = 2
"""A round chooses among this many times as many blocks as it removes: those that are cheapest when it begins."""


def elimination_costs(gram_CC: Tensor, sensitivity_CC: Tensor, width: int, damping: float) -> Tensor:
    """Return, for blocks of `width` neighbouring inputs, the output energy lost once the block and all removed
    before it are gone, as a share of the whole: fp64 on the CPU, ``[C / width]``, increasing in order of removal.

    The last block costs whatever is left, so the largest score is 1 up to damping.
    """
    wide = torch.float64 if len(gram_CC) <= EXACT_UP_TO else gram_CC.dtype
    inverse = damped_inverse(gram_CC, damping).to(wide)
    sensitivity = sensitivity_CC.to(wide)
    count = len(inverse) // width
    total = float(torch.dot(gram_CC.flatten().to(wide), sensitivity.flatten()).clamp_min(1e-30))
    per_round = max(1, count // ROUNDS)
    scores = torch.zeros(count, dtype=torch.float64)
    left = torch.arange(count, device=inverse.device)
    lost = 0.0
    while len(left):
        gone, costs = _cheapest(inverse, sensitivity, width, min(per_round, len(left)))
        for unit, cost in zip(left[gone].tolist(), costs, strict=True):
            lost += max(cost, 0.0) / total + 1e-15  # strictly increasing
            scores[unit] = lost
        stays = torch.ones_like(left, dtype=torch.bool)
        stays[gone] = False
        left = left[stays]
        kept, went = (where.repeat_interleave(width).nonzero()[:, 0] for where in (stays, ~stays))
        inverse, refit_WK = _inverse_without(inverse, kept, went)
        sensitivity = _sensitivity_without(sensitivity, kept, went, refit_WK)
    return scores


def _cheapest(inverse: Tensor, sensitivity: Tensor, width: int, number: int) -> tuple[Tensor, list[float]]:
    """Return the positions of so many blocks, in order of removal, and what each costs once those before it are gone.

    The matrices are not touched: removing S adds ``R (G⁻¹)_S:`` to G⁻¹, with ``R = −(G⁻¹)_:S ((G⁻¹)_SS)⁻¹``, and
    ``A Rᵀ + R Aᵀ`` to V, with ``A = V_:S + R V_SS / 2``. Columns and diagonal blocks are corrected by these as they are
    needed.

    One removal after another is a chain of thousands of small operations, whose launches would take a GPU longer than
    a processor takes to compute them: so the few rows and columns that a round chooses among are copied there, once.
    """
    choice = _costs(*_blocks(inverse, sensitivity, width)).argsort(stable=True)[: CHOICE * number]
    places = (choice[:, None] * width + torch.arange(width, device=choice.device)).flatten()
    among = [_at(matrix, places, places).cpu() for matrix in (inverse, sensitivity)]
    if width == 1:
        order, costs = _order_of_inputs(among[0], among[1], number)
    else:
        order, costs = _order_of_blocks(among[0], among[1], width, number)
    return choice[torch.tensor(order, device=choice.device)], costs


def _order_of_inputs(inverse: Tensor, sensitivity: Tensor, number: int) -> tuple[list[int], list[float]]:
    """Return the positions of so many single inputs in order of removal, and their costs, on a processor."""
    columns, refits, halves = (inverse.new_empty(len(inverse), number) for _ in range(3))
    inverse_C, sensitivity_C = inverse.diagonal().clone(), sensitivity.diagonal().clone()
    is_gone = torch.zeros(len(inverse), dtype=torch.bool)
    order: list[int] = []
    costs: list[float] = []
    for step in range(number):
        cost_C = (sensitivity_C / inverse_C).masked_fill_(is_gone, torch.inf)
        c = int(cost_C.argmin())
        order.append(c)
        costs.append(float(cost_C[c]))
        is_gone[c] = True
        u, r, a = (part[:, :step] for part in (columns, refits, halves))
        column = inverse[:, c] + r @ u[c]
        refit = column * -(1 / column[c])
        half = sensitivity[:, c] + a @ r[c] + r @ a[c]
        half.add_((refit * half[c]).div_(2))
        columns[:, step], refits[:, step], halves[:, step] = column, refit, half
        inverse_C += refit * column
        half.mul_(refit)
        sensitivity_C.add_(half).add_(half)
    return order, costs


def _order_of_blocks(
    inverse: Tensor, sensitivity: Tensor, width: int, number: int
) -> tuple[list[int], list[float]]:
    """Return what `_order_of_inputs` returns, of blocks."""
    inverse_B, sensitivity_B = _blocks(inverse, sensitivity, width)
    columns, refits, halves = (inverse.new_empty(len(inverse), number * width) for _ in range(3))
    is_gone = torch.zeros(len(inverse_B), dtype=torch.bool)
    order: list[int] = []
    costs: list[float] = []
    for step in range(number):
        cost_B = _costs(inverse_B, sensitivity_B).masked_fill_(is_gone, torch.inf)
        block = int(cost_B.argmin())
        order.append(block)
        costs.append(float(cost_B[block]))
        if step == number - 1:
            break
        is_gone[block] = True
        s, before = slice(block * width, (block + 1) * width), slice(step * width)
        u, r, a = columns[:, before], refits[:, before], halves[:, before]
        column = inverse[:, s] + r @ u[s].T
        refit = -torch.linalg.solve(column[s], column.T).T
        half = sensitivity[:, s] + a @ r[s].T + r @ a[s].T
        half = half + refit @ half[s] / 2
        here = slice(before.stop, before.stop + width)
        columns[:, here], refits[:, here], halves[:, here] = column, refit, half
        column_B, refit_B, half_B = (part.reshape(-1, width, width) for part in (column, refit, half))
        inverse_B = inverse_B + refit_B @ column_B.mT
        sensitivity_B = sensitivity_B + half_B @ refit_B.mT + refit_B @ half_B.mT
        inverse_B[is_gone] = torch.eye(width, dtype=inverse.dtype)  # what is gone divides nothing
    return order, costs


def _blocks(inverse: Tensor, sensitivity: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the diagonal blocks of both, ``[B, width, width]``."""
    count = len(inverse) // width
    block = torch.arange(count, device=inverse.device)
    first, second = (m.view(count, width, count, width)[block, :, block] for m in (inverse, sensitivity))
    return first, second


def _costs(inverse_B: Tensor, sensitivity_B: Tensor) -> Tensor:
    if inverse_B.shape[-1] == 1:
        return (sensitivity_B / inverse_B).flatten()
    traces: Tensor = _solved(inverse_B, sensitivity_B).diagonal(dim1=-2, dim2=-1).sum(-1)
    return traces


def _solved(matrix_B: Tensor, right_B: Tensor) -> Tensor:
    """Return ``matrix⁻¹ right`` of each block.

    Wide ones on a processor one after the other: torch solves a batch in threads, each of which has LAPACK start
    threads of its own, which wait for each other by spinning: beside other work minutes instead of a tenth of a second.
    """
    if matrix_B.is_cuda or matrix_B.shape[-1] < WIDE:
        solved_B: Tensor = torch.linalg.solve(matrix_B, right_B)
        return solved_B
    return torch.stack([torch.linalg.solve(*pair) for pair in zip(matrix_B, right_B, strict=True)])


def _inverse_without(inverse: Tensor, kept: Tensor, went: Tensor) -> tuple[Tensor, Tensor]:
    """Return G⁻¹ without what went, and the refit ``x_went ≈ refit @ x_kept``: ``[K, K]`` and ``[W, K]``."""
    inverse_WK = _at(inverse, went, kept)
    solved_WK = torch.linalg.solve(_at(inverse, went, went), inverse_WK)
    return _at(inverse, kept, kept).addmm_(inverse_WK.T, solved_WK, alpha=-1), -solved_WK


def _sensitivity_without(sensitivity: Tensor, kept: Tensor, went: Tensor, refit_WK: Tensor) -> Tensor:
    """Return V of the refitted weights, ``[K, K]``."""
    # T'VT = V_KK + B'r + r'B with B = V_WK + V_WW r / 2: two products into the one copy.
    half_WK = _at(sensitivity, went, kept).addmm_(_at(sensitivity, went, went), refit_WK, alpha=0.5)
    smaller = _at(sensitivity, kept, kept).addmm_(half_WK.T, refit_WK)
    return smaller.addmm_(refit_WK.T, half_WK)


def _at(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return a copy of these rows and columns, without one of whole rows between."""
    return matrix[rows[:, None], columns]
