"""Least squares that starts from weights which are already there.

A pruned linear map sees fewer inputs than before. Its best weights on calibration text solve

    min_W  Σ_tokens ‖y − W x‖² + λ ‖W − W₀‖²        W = W₀ + (Y Xᵀ − W₀ X Xᵀ) (X Xᵀ + λ I)⁻¹

with W₀ what slicing left. For y the unpruned output and λ → 0 this is the folding ``W_keep + W_removed G_rk G_kk⁻¹``.
Because the objective at the solution is at most that at W₀, the error on calibration text never rises; λ keeps
directions the text hardly uses as they were. Sums are all that is needed of the text, so it is read once.
"""

import torch
from torch import Tensor

from compress.errors import StepFailed

EXACT_UP_TO = 2048
"""Matrices up to this size are multiplied in fp64; larger ones in fp32, their inverse still made in fp64."""

LEAST_DAMPING = 1e-12
"""Where damping starts to grow when it was zero."""


LEAST_CHANGE = 1e-6
"""A channel changes whose variance is more of its energy than this, about what half precision rounds."""

HALVED_ABOVE = 4096
"""Larger matrices are inverted in fp32, so that one of 14,336 inputs (an 8B model's FFN) fits in 3 GB."""


class Moments:
    """Sums over tokens of ``x xᵀ``, ``y xᵀ``, x and y, for vectors x ``[I]`` and y ``[O]``."""

    def __init__(self, num_inputs: int, num_outputs: int, *, device: str, dtype: torch.dtype) -> None:
        self.dtype = torch.promote_types(dtype, torch.float32)
        self.gram = torch.zeros(num_inputs, num_inputs, device=device, dtype=self.dtype)
        self.cross = torch.zeros(num_outputs, num_inputs, device=device, dtype=self.dtype)
        self.sum_x = torch.zeros(num_inputs, device=device, dtype=torch.float64)
        self.sum_y = torch.zeros(num_outputs, device=device, dtype=torch.float64)
        self.num_tokens = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add tokens: x ``[..., I]`` and y ``[..., O]``."""
        x_NI = x.reshape(-1, x.shape[-1]).to(self.gram)
        y_NO = y.reshape(-1, y.shape[-1]).to(self.gram)
        self.gram.addmm_(x_NI.T, x_NI)
        self.cross.addmm_(y_NO.T, x_NI)
        self.sum_x += x_NI.sum(0)
        self.sum_y += y_NO.sum(0)
        self.num_tokens += len(x_NI)

    def centered(self) -> tuple[Tensor, Tensor]:
        """Return gram ``[I, I]`` and cross ``[O, I]`` of the deviations from the means."""
        mean_x = self.sum_x / self.num_tokens
        gram = self.gram.double() - self.num_tokens * torch.outer(mean_x, mean_x)
        cross = self.cross.double() - torch.outer(self.sum_y, mean_x)
        return gram.to(self.dtype), cross.to(self.dtype)


class Slopes:
    """Of y over x, channel by channel, from sums over tokens in fp64. Shapes: N tokens, C channels."""

    def __init__(self, num_channels: int) -> None:
        self._count = 0
        self._sums_5C = torch.zeros(5, num_channels, dtype=torch.float64)

    def add(self, x_NC: Tensor, y_NC: Tensor) -> None:
        self._count += len(x_NC)
        products = (x_NC, y_NC, x_NC * x_NC, x_NC * y_NC, y_NC * y_NC)
        self._sums_5C += torch.stack([each.sum(0) for each in products]).cpu()

    def changes(self) -> Tensor:
        """Return which channels of x change, beside what half precision rounds: ``[C]``."""
        variance_C, energy_C = self._moments()[0], self._sums_5C[2] / self._count
        return variance_C > LEAST_CHANGE * energy_C.clamp_min(LEAST_CHANGE * float(energy_C.mean()))

    def slopes(self) -> Tensor:
        """Return ``[C]``; zero where x does not change."""
        variance_C, covariance_C, _ = self._moments()
        return torch.where(self.changes(), covariance_C / variance_C, 0.0)

    def unexplained(self) -> float:
        """Return how much of y's variance the slopes leave, over all channels."""
        _, covariance_C, variance_of_y_C = self._moments()
        return float((variance_of_y_C - self.slopes() * covariance_C).sum())

    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return variance of x, covariance, variance of y: ``[C]`` each."""
        x_C, y_C, xx_C, xy_C, yy_C = self._sums_5C / self._count
        return xx_C - x_C * x_C, xy_C - x_C * y_C, yy_C - y_C * y_C


def refit(weight_OI: Tensor, gram_II: Tensor, cross_OI: Tensor, inverse_II: Tensor) -> Tensor:
    """Return the weights of least error that start from `weight_OI`, given the damped inverse of the gram matrix.

    The result is where the sums are, in fp64 or fp32.
    """
    wide = _wide(weight_OI)
    start, gram, cross = weight_OI.to(gram_II.device, wide), gram_II.to(wide), cross_OI.to(wide)
    return start + (cross - start @ gram) @ inverse_II.to(wide)


def damped_inverse(gram_II: Tensor, damping: float) -> Tensor:
    """Return ``(G + damping · mean(diag G) · I)⁻¹`` in fp64, or fp32 above `HALVED_ABOVE`.

    Inputs that were never used have an empty row; damping makes the matrix positive definite all the same. Rounding
    in a long sum can still defeat it, then damping grows tenfold until it does not. Raises `StepFailed` when the
    matrix holds NaN or infinity.
    """
    gram = gram_II.to(torch.float64 if len(gram_II) <= HALVED_ABOVE else torch.float32)
    if not bool(gram.isfinite().all()):
        raise StepFailed(
            "hidden states on calibration text are not finite: the checkpoint holds NaN or infinite weights, or its "
            "dtype is too narrow for them"
        )
    scale = gram.diagonal().mean().clamp_min(torch.finfo(gram.dtype).tiny)
    while True:
        damped = gram.clone()
        damped.diagonal().add_(damping * scale)
        factor, failed = torch.linalg.cholesky_ex(damped)
        del damped
        if not failed:
            return torch.cholesky_inverse(factor)
        damping = max(10 * damping, LEAST_DAMPING)


def _wide(weight: Tensor) -> torch.dtype:
    is_small = max(weight.shape) <= EXACT_UP_TO
    return torch.float64 if is_small or weight.dtype == torch.float64 else torch.float32
