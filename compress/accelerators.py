"""Which cards work of this process would run on, without torch: what there is, and what CUDA would show of it."""

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from compress.nvml import NvmlError, Seen, seen_by_nvml

PROC = Path("/proc/driver/nvidia/gpus")
DEVICES = Path("/dev")


class Listing(NamedTuple):
    """The cards of the machine, and who told."""

    cards: tuple[Seen, ...]
    source: str
    """``NVML``, the folder that was read, or nothing where there are no cards."""
    trouble: str = ""
    """Why NVML told nothing."""


@cache
def listing() -> Listing:
    """Return the machine's NVIDIA cards: from NVML, else the driver's folder in /proc, else their device files."""
    try:
        return Listing(seen_by_nvml(), "NVML")
    except NvmlError as error:
        trouble = str(error)
    if cards := tuple(_seen_in_proc()):
        return Listing(cards, str(PROC), trouble)
    files = sorted(path.name for path in DEVICES.glob("nvidia[0-9]*") if path.name[6:].isdigit())
    return Listing(tuple(Seen("NVIDIA card") for _ in files), str(DEVICES) if files else "", trouble)


def cards_to_compute_on() -> tuple[Seen, ...]:
    """Return the cards torch will compute on, in its order; none where its build knows no CUDA."""
    if not torch_has_cuda():
        return ()
    return visible(listing().cards, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(cards: tuple[Seen, ...], setting: str | None) -> tuple[Seen, ...]:
    """Return what CUDA shows of the cards under ``CUDA_VISIBLE_DEVICES``; ``None``: it is not set.

    Indices, UUIDs and their beginnings. The first entry that is no card hides those behind it, and one named twice
    hides all, as in CUDA. Of MIG instances a process gets the first one named. Indices are NVML's: CUDA counts the
    fastest first, which makes a difference only where cards are of several kinds.
    """
    chosen = list(cards)
    if setting is not None:
        chosen = []
        for entry in map(str.strip, setting.split(",")):
            card = _named(entry, cards)
            if card is None:
                break
            chosen.append(card)
        if len({id(card) for card in chosen}) < len(chosen):
            return ()
    parts = [card for card in chosen if card.is_part]
    return tuple(parts[:1] or chosen)


@cache
def torch_has_cuda() -> bool:
    """Return whether the torch that is installed was built for NVIDIA cards, without importing it.

    Its version often says so (``2.13.0+cpu``), its file ``torch/version.py`` always.
    """
    try:
        if version("torch").endswith("+cpu"):
            return False
    except PackageNotFoundError:
        return False
    spec = find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    return not folders or built_for_cuda(Path(next(iter(folders))) / "version.py")


def built_for_cuda(file: Path) -> bool:
    """Return whether a ``torch/version.py`` names a CUDA version; yes where it does not say."""
    if not file.exists():
        return True
    found = re.search(r"^cuda\b[^=\n]*=\s*(.+?)\s*$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return found is None or found[1] != "None"


def _named(entry: str, cards: tuple[Seen, ...]) -> Seen | None:
    """Return the card that an entry of ``CUDA_VISIBLE_DEVICES`` names."""
    if entry.isdigit():
        return cards[int(entry)] if int(entry) < len(cards) else None
    if entry.startswith("MIG-GPU-"):  # MIG-GPU-<card>/<instance>/<part>, which drivers before 470 wrote
        return next((card for card in cards if card.is_part), None)
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    nameless = [card for card in cards if card.uuid is None]
    if nameless:  # known by their device files only: one of them is meant
        return nameless[0]._replace() if len(cards) == len(nameless) else None
    found = [card for card in cards if card.uuid and card.uuid.startswith(entry)]
    return found[0] if len(found) == 1 else None


def _seen_in_proc() -> Iterator[Seen]:
    for file in sorted(PROC.glob("*/information")):
        pairs = (line.partition(":") for line in file.read_text(encoding="utf-8").splitlines())
        said = {key.strip(): value.strip() for key, _, value in pairs}
        if name := said.get("Model"):
            yield Seen(name, uuid=said.get("GPU UUID"))
