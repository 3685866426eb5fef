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

STEPS = 32
"""Removals are made in about this many rounds; all of a round are scored before any of it is removed."""


def elimination_costs(gram_CC: Tensor, sensitivity_CC: Tensor, width: int, damping: float) -> Tensor:
    """Return, for blocks of `width` neighbouring inputs, the output energy lost once the block and all removed
    before it are gone, as a share of the whole: fp64 on the CPU, ``[C / width]``, increasing in order of removal.

    The last block costs whatever is left, so the largest score is 1 up to damping.
    """
    wide = torch.float64 if len(gram_CC) <= EXACT_UP_TO else gram_CC.dtype
    inverse = damped_inverse(gram_CC, damping).to(wide)
    sensitivity = sensitivity_CC.to(wide, copy=True)
    count = len(inverse) // width
    total = float((gram_CC.to(wide) * sensitivity).sum().clamp_min(1e-30))
    per_round = max(1, count // STEPS)
    scores = torch.zeros(count, dtype=torch.float64)
    left = torch.arange(count, device=inverse.device)
    lost = 0.0
    while len(left):
        costs = _costs(inverse, sensitivity, width)
        order = costs.argsort(stable=True)[: min(per_round, len(left))]
        for position in order.tolist():
            lost += max(float(costs[position]), 0.0) / total + 1e-15  # strictly increasing
            scores[int(left[position])] = lost
        inverse, sensitivity, left = _without(inverse, sensitivity, left, order, width)
    return scores


def _costs(inverse: Tensor, sensitivity: Tensor, width: int) -> Tensor:
    if width == 1:
        quotient: Tensor = sensitivity.diagonal() / inverse.diagonal()
        return quotient
    count = len(inverse) // width
    blocks = torch.arange(count, device=inverse.device)
    inverse_G = inverse.view(count, width, count, width)[blocks, :, blocks]
    sensitivity_G = sensitivity.view(count, width, count, width)[blocks, :, blocks]
    solved = torch.linalg.solve(inverse_G, sensitivity_G)
    traces: Tensor = solved.diagonal(dim1=-2, dim2=-1).sum(-1)
    return traces


def _without(
    inverse: Tensor, sensitivity: Tensor, left: Tensor, gone: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Remove blocks at these positions and refit the rest."""
    stays = torch.ones(len(left), dtype=torch.bool, device=left.device)
    stays[gone] = False
    kept = stays.repeat_interleave(width).nonzero()[:, 0]
    went = (~stays).repeat_interleave(width).nonzero()[:, 0]
    inverse_WK = inverse[went][:, kept]
    solved_WK = torch.linalg.solve(inverse[went][:, went], inverse_WK)
    smaller_inverse = inverse[kept][:, kept] - inverse_WK.T @ solved_WK
    refit_WK = -solved_WK  # x_went ≈ refit @ x_kept
    v_KW = sensitivity[kept][:, went]
    smaller = sensitivity[kept][:, kept]
    cross = v_KW @ refit_WK
    smaller = smaller + cross + cross.T + refit_WK.T @ sensitivity[went][:, went] @ refit_WK
    return smaller_inverse, smaller, left[stays]
