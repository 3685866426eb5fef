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
    """
    choice = _costs(*_blocks(inverse, sensitivity, width)).argsort(stable=True)[: CHOICE * number]
    places = (choice[:, None] * width + torch.arange(width, device=choice.device)).flatten()
    inverse, sensitivity = inverse[places][:, places], sensitivity[places][:, places]
    inverse_B, sensitivity_B = _blocks(inverse, sensitivity, width)
    columns, refits, halves = (inverse.new_empty(len(places), number * width) for _ in range(3))
    gone: list[int] = []
    costs: list[float] = []
    for step in range(number):
        now = _costs(inverse_B, sensitivity_B)
        now[gone] = torch.inf
        block = int(now.argmin())
        gone.append(block)
        costs.append(float(now[block]))
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
        inverse_B[gone] = torch.eye(
            width, dtype=inverse.dtype, device=inverse.device
        )  # what is gone divides nothing
    return choice[gone], costs


def _blocks(inverse: Tensor, sensitivity: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the diagonal blocks of both, ``[B, width, width]``."""
    count = len(inverse) // width
    block = torch.arange(count, device=inverse.device)
    first, second = (m.view(count, width, count, width)[block, :, block] for m in (inverse, sensitivity))
    return first, second


def _costs(inverse_B: Tensor, sensitivity_B: Tensor) -> Tensor:
    if inverse_B.shape[-1] == 1:
        return (sensitivity_B / inverse_B).flatten()
    traces: Tensor = torch.linalg.solve(inverse_B, sensitivity_B).diagonal(dim1=-2, dim2=-1).sum(-1)
    return traces


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
