"""Which device work runs on unless the user says."""

import torch

from compress.accelerators import cards_to_compute_on
from compress.errors import InputError


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
