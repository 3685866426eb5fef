"""Which device work runs on unless the user says."""

import torch

from compress.accelerators import cards_to_compute_on
from compress.errors import InputError


def has_fast_bf16(device: str) -> bool:
    """Whether this machine multiplies bf16 matrices in hardware."""
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def fast_dtype(stored: torch.dtype, device: str) -> torch.dtype:
    """Return what to compute in with weights of a stored dtype: fp32 where a processor is slow in narrower floats.

    Without bf16 in hardware such products take about four times as long as fp32's, and round more.
    """
    is_slow = device == "cpu" and (stored == torch.float16 or not has_fast_bf16(device))
    return torch.promote_types(stored, torch.float32) if is_slow else stored


def default_device() -> str:
    """Return ``cuda`` where there is one, else ``cpu``.

    Raises `InputError` where torch cannot use the card that work was planned and keyed for: days on a processor are not
    what was asked for.
    """
    if torch.cuda.is_available():
        return "cuda"
    if cards := cards_to_compute_on():
        raise InputError(
            f"{cards[0].name} is here and torch was built for CUDA {torch.version.cuda}, but cannot use it: "
            "`compress doctor` says more. To work on the processor instead, set CUDA_VISIBLE_DEVICES= (to nothing)"
        )
    return "cpu"
