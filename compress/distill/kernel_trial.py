"""Whether a loss is a kernel's or that of tiles: tried on made-up numbers before anything is learned from it.

A kernel is compiled where it runs, and what that takes may be missing: a C compiler, Python's headers, a driver as new
as triton, a place to write. Tiles compute the same loss more slowly, and differ in last bits. So what was found at the
first start is kept beside the partial work, and a resumed process goes the same way.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from compress.errors import is_out_of_memory
from compress.records import JsonValue, Record
from compress.train.distributed import Team
from compress.train.fused import GroupJudge, Judge
from compress.train.projection import Projection

KEPT = "loss_kernel.json"
FEW = 4
"""Tokens of a trial at most; their rows are as long as those to come, for which another kernel might be compiled."""
HIDDEN_SIZE = 16
TOLERANCE = 0.05
"""Of the length of losses and gradients: far more than bf16's rounding, far less than a wrong formula."""

Trial = Callable[[], tuple[GroupJudge, Judge, Projection]]
"""Returns a kernel and the tiles that compute the same, and the student's made-up output layer."""


class Choice(Record):
    """What was found, as it is kept."""

    kernel: str | None = None
    """Its name; ``None``: tiles."""
    why_tiles: str = ""
    has_changed: bool = False
    """Whether the kernel was used before, and failed in a later process."""


class LossKernel:
    """A step's choice, made when its first loss is computed."""

    def __init__(self, folder: Path | None = None, warn: Callable[[str], None] | None = None) -> None:
        """`folder`: where the choice is kept for a resumed process; nowhere without it. `warn`: whom to tell."""
        self._path = None if folder is None else folder / KEPT
        self._warn = warn or warnings.warn
        self._choice: Choice | None = None

    def works(self, name: str, trial: Trial) -> bool:
        """Return whether the kernel of that name is to be used; warn, once, where it cannot be."""
        if self._choice is None:
            kept = self._kept()
            self._choice = kept if kept is not None and kept.kernel is None else _tried(name, trial, kept)
            self._keep(self._choice)
            if self._choice.why_tiles:
                self._warn(_warning(name, self._choice))
        return self._choice.kernel is not None

    def facts(self) -> dict[str, JsonValue]:
        """Return what the record keeps: what computed the loss, and why that was not the kernel where it was not."""
        choice = self._choice or Choice()
        facts: dict[str, JsonValue] = {"loss_kernel": choice.kernel or "tiles"}
        if choice.why_tiles:
            facts["loss_kernel_why"] = choice.why_tiles
        if choice.has_changed:
            facts |= {
                "bit_exact": False,
                "bit_exact_ended_by": "the loss's kernel failed in a resumed process",
            }
        return facts

    def _kept(self) -> Choice | None:
        if self._path is None or not self._path.exists():
            return None
        return Choice.model_validate_json(self._path.read_text(encoding="utf-8"))

    def _keep(self, choice: Choice) -> None:
        if self._path is None or not Team.current().leads:
            return
        temporary = self._path.with_suffix(".new")
        temporary.write_text(choice.model_dump_json(), encoding="utf-8")
        temporary.replace(self._path)


def made_up(layer: Projection, seed: int, num_tokens: int = FEW) -> Projection:
    """Return an output layer of the same kinds of numbers and as many ids, for few tokens of few random numbers."""
    chance = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, HIDDEN_SIZE, generator=chance)
    weight = torch.randn(len(layer.weight), HIDDEN_SIZE, generator=chance) / HIDDEN_SIZE**0.5
    return replace(
        layer,
        hidden=hidden.to(layer.hidden),
        weight=weight.to(layer.weight),
        bias=None if layer.bias is None else torch.randn(len(weight), generator=chance).to(layer.bias),
        stored=None if layer.stored is None else weight.to(layer.stored),
        center=None if layer.center is None else layer.center.new_zeros(HIDDEN_SIZE),
    )


def _tried(name: str, trial: Trial, kept: Choice | None) -> Choice:
    try:
        why = _difference(*trial())
    except Exception as error:  # a compiler is other people's program: whatever it raises, it made no kernel
        if is_out_of_memory(error):
            raise
        why = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
    if not why:
        return Choice(kernel=name)
    return Choice(why_tiles=why, has_changed=kept is not None)


def _difference(kernel: GroupJudge, tiles: Judge, student: Projection) -> str:
    """Return how a kernel's losses and gradients differ from those of tiles; nothing where they agree."""
    tokens = slice(0, len(student.hidden))
    found = student.distribution(student.product(tokens), tokens)
    losses_n, slopes_nV = tiles(found, tokens)
    expected = losses_n, student.before_cap(slopes_nV, found)
    pairs = zip(("losses", "gradients"), kernel.judge_group(student.product(tokens)), expected, strict=True)
    wrong = [what for what, ours, theirs in pairs if not _are_close(ours, theirs)]
    return f"its {' and '.join(wrong)} are not those of the formula" if wrong else ""


def _are_close(ours: Tensor, theirs: Tensor) -> bool:
    theirs = theirs.float()
    return bool((ours.float() - theirs).norm() <= TOLERANCE * theirs.norm())


def _warning(name: str, choice: Choice) -> str:
    since = "; from here on the result may differ in its last bits" if choice.has_changed else ""
    return (
        f"the kernel that computes the loss ({name}) cannot be used here ({choice.why_tiles}): it is computed in "
        f"tiles, which takes longer. `compress doctor` tells what is missing{since}"
    )
