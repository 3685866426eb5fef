"""The built-in demo world: endless short texts, no network, no files."""

from collections.abc import Iterator

from compress.data import world
from compress.digests import DigestMemo
from compress.plugins import StepConfig

VERSION = 1


class Config(StepConfig):
    """Which part of the demo world to read."""

    split: world.Split = "train"
    """``train``, ``calibration`` or ``heldout``: streams that share no seed."""


def documents(config: Config, seed: int) -> Iterator[str]:
    """Yield documents without end: ask for a number of samples or tokens."""
    return world.documents(config.split, seed)


def is_endless(config: Config) -> bool:
    """Return that it is."""
    return True


def digest(config: Config, memo: DigestMemo) -> str:
    """Return the world's version and the split: the same two give the same texts for a seed."""
    return f"demo-world:{world.VERSION}:{config.split}"
