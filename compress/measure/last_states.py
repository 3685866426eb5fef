"""What leaves the original's body on the measured text, read once: every student's divergence needs it.

A head is run again beside each student (its logits would fill disks), what is below it is not. Read in the batches
that `measure.divergence` reads, so that its figures stay the same to the last bit.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from compress.models.effort import opening, reading, width
from compress.plugins import Context, StepConfig, texts_of
from compress.records import Artifact, ModelSpec, Outcome, Work

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 2
ACCEPTS = ("hf", "packed")
PRODUCES = "states"
INTERNAL = True

STATES, FACTS = "states.bin", "states.json"
SUPPOSED_ROWS = 1000
"""Rows, where neither the data nor the settings say how many."""
MOST_BYTES = 2**31
"""Rows whose states need more are read anew beside each student."""


class Config(StepConfig):
    """Which rows, as `measure.divergence` reads them."""

    sequences: int | None = Field(default=None, ge=1)
    """Sequences of the text, from its beginning; all when not given."""
    batch_size: int = Field(default=16, ge=1)
    """Sequences at once: part of the result, in its last bits."""


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return about what reading the text takes, without the head."""
    text = texts_of(inputs).get("text")
    if text is None:
        return opening(spec)
    rows = min((n for n in (config.sequences, text.rows) if n is not None), default=SUPPOSED_ROWS)
    tokens = float(rows * text.row_tokens)
    batch = config.batch_size * text.row_tokens
    work = opening(spec).plus(reading(spec, tokens, batch, text.row_tokens / 2, asked=0))
    num_bytes = min(MOST_BYTES, int(tokens * 4 * width(spec)))
    return work.model_copy(update={"disk_bytes": num_bytes})


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write ``states.bin`` ``[S, T, H]`` in the dtype computed in, and ``states.json``, which says how to read it."""
    import torch

    from compress.backends.interface import OpenOptions
    from compress.backends.opening import open_artifact
    from compress.data.tokens import PackedTokens
    from compress.meters.halving import halved, said

    text = PackedTokens.open(context.inputs["text"].path)
    rows_ST = text.rows(0, config.sequences or text.num_sequences)
    backend = open_artifact(parent, OpenOptions(widened=True))
    num_rows = _rows_with_room(_states(backend, rows_ST[:1]), len(rows_ST))
    with (context.folder / STATES).open("wb") as file:
        start, size = 0, config.batch_size
        while start < num_rows:
            batch_ST = rows_ST[start : min(start + size, num_rows)]
            states, fits = halved(lambda n, rows=batch_ST: _states(backend, rows[:n]), len(batch_ST))  # type: ignore[misc]
            if fits < len(batch_ST):
                context.warn(said(len(batch_ST), fits))
                size = fits
            file.write(states.contiguous().view(torch.uint8).numpy().tobytes())
            start += fits
            context.progress(start, num_rows, "sequences")
            if context.stopping:
                context.stop()
    dtype = str(states.dtype).removeprefix("torch.")
    facts = {"shape": [num_rows, *states.shape[1:]], "dtype": dtype}
    (context.folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return Outcome(facts={"sequences": num_rows})


def _states(backend: object, rows_BT: "Tensor") -> "Tensor":
    import torch

    from compress.backends.interface import HeadApart

    assert isinstance(backend, HeadApart)
    return backend.last_states(rows_BT, torch.ones_like(rows_BT)).cpu()


def _rows_with_room(states_1TH: "Tensor", num_rows: int) -> int:
    return min(num_rows, max(1, MOST_BYTES // (states_1TH.numel() * states_1TH.element_size())))


def read_states(artifact: Artifact) -> "Tensor":
    """Return the states of the text's first rows ``[S, T, H]``, mapped from the artifact, not read."""
    import torch

    facts = json.loads((artifact.path / FACTS).read_text(encoding="utf-8"))
    dtype: torch.dtype = getattr(torch, facts["dtype"])
    shape: list[int] = facts["shape"]
    count = shape[0] * shape[1] * shape[2]
    return torch.from_file(str(artifact.path / STATES), shared=False, size=count, dtype=dtype).view(shape)
