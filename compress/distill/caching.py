"""Running a teacher over the data once, and keeping what it says.

Rows are read in blocks of one size, each row's sampling has a seed of its own, and what decides how sums are rounded is
settled at the first start: so work killed anywhere ends in the same bytes.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.data.tokens import PackedTokens, order
from compress.distill.cache_teacher import Config
from compress.distill.signals import About, SignalsWriter
from compress.distill.targets import Targets, joined, sparse_targets
from compress.distill.teacher import load_teacher
from compress.models.device import default_device
from compress.plugins import Context
from compress.records import JsonValue, Record
from compress.train.head import hidden_states, plain_head, project
from compress.train.numerics import has_fast_bf16
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings

START = "start.json"
BLOCK_TOKENS = {"cpu": 2_048, "cuda": 32_768}
TILE_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
"""Logits in memory at once; a few times that while their targets are made."""


class Start(Record):
    """What the bits depend on besides settings and seed."""

    device: str
    precision: Literal["bf16", "fp32"]
    num_threads: int
    block_rows: int


def write_signals(teacher: Path, config: Config, context: Context) -> dict[str, JsonValue]:
    """Write the signals of all rows training will read into ``context.folder``; return facts about them."""
    data = PackedTokens.open(context.inputs["data"].path)
    rows = rows_read(data, config, context.seed)
    start = _started(context.partial, config, data.sequence_length)
    threads = torch.get_num_threads()
    torch.set_num_threads(start.num_threads)
    try:
        caching = Caching.of(load_teacher(teacher, config.precision, config.teacher_precision), config, start)
        writer = SignalsWriter(context.partial, caching.about, rows, start.block_rows)
        _write_rest(writer, caching, data, rows, config, context)
    finally:
        torch.set_num_threads(threads)
    writer.finish(context.folder)
    num_tokens = sum(writer.counts)
    return {
        "rows": len(rows),
        "tokens": num_tokens,
        "bytes_per_token": caching.about.coding.num_bytes,
        **start.model_dump(exclude={"block_rows"}),
    }


def rows_read(data: PackedTokens, config: Config, seed: int) -> list[int]:
    """Return the numbers of the rows that training on so many tokens reads, ascending."""
    if config.tokens is None:
        return list(range(data.num_sequences))
    training = TrainingSettings(tokens=config.tokens, batch_tokens=config.batch_tokens)
    schedule = Schedule.of(training, data.sequence_length)
    num_read = schedule.num_steps * schedule.batch_sequences
    # A second epoch reads what the first has read.
    return sorted(order(data.num_sequences, seed, epoch=0)[:num_read].tolist())


@dataclass(frozen=True)
class Caching:
    """A teacher ready to be asked."""

    teacher: PreTrainedModel
    weight_VD: Tensor  # noqa: N815
    """Its output matrix in fp32."""
    bias_V: Tensor | None  # noqa: N815
    about: About
    start: Start

    @classmethod
    def of(cls, teacher: PreTrainedModel, config: Config, start: Start) -> "Caching":
        """Put the teacher on its device. Raises `InputError` when its logits are not one linear layer's."""
        teacher = teacher.requires_grad_(False)
        head = plain_head(teacher)
        vocabulary = len(head.weight)
        about = About(
            vocabulary=vocabulary,
            top_k=min(config.top_k, vocabulary),
            samples=config.samples if config.tail == "sampled" else 0,
            temperature=config.temperature,
        )
        weight_VD, bias_V = head.weight.float(), None if head.bias is None else head.bias.float()
        if teacher.device.type != torch.device(start.device).type:
            teacher, weight_VD = teacher.to(start.device), weight_VD.to(start.device)
            bias_V = None if bias_V is None else bias_V.to(start.device)
        return cls(teacher, weight_VD, bias_V, about, start)

    def targets(self, batch: Batch, places_N: Tensor) -> Targets:
        """Return the targets of a block of rows. `places_N`: the uniform numbers that sampling starts from."""
        device = torch.device(self.start.device)
        bf16 = self.start.precision == "bf16"
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            hidden_ND = hidden_states(self.teacher, batch.to(device))
            return joined(list(self._tiles(hidden_ND, places_N.to(device))))

    def _tiles(self, hidden_ND: Tensor, places_N: Tensor) -> Iterator[Targets]:
        step = max(16, TILE_BYTES[hidden_ND.device.type] // (4 * self.about.vocabulary))
        for begin in range(0, max(1, len(hidden_ND)), step):
            tile = slice(begin, begin + step)
            logits_NV = project(hidden_ND[tile], self.weight_VD, self.bias_V) / self.about.temperature
            about, places = self.about, places_N[tile]
            yield sparse_targets(logits_NV, about.top_k, places, about.samples).to("cpu")


def _write_rest(
    writer: SignalsWriter,
    caching: Caching,
    data: PackedTokens,
    rows: Sequence[int],
    config: Config,
    context: Context,
) -> None:
    """Ask the teacher about the rows that are left, block by block."""
    length, block = data.sequence_length, caching.start.block_rows
    context.progress(writer.rows_done * length, len(rows) * length, "tokens")
    while writer.rows_done < len(rows):
        numbers = rows[writer.rows_done : writer.rows_done + block]
        batch = data.learning_batch(numbers)
        if config.attend_across_documents:
            batch = replace(batch, positions=None)
        counts = _num_targets(batch)
        places = [
            np.random.default_rng([context.seed, row]).random(n)
            for row, n in zip(numbers, counts, strict=True)
        ]
        writer.append(caching.targets(batch, torch.from_numpy(np.concatenate(places))), counts)
        context.progress(writer.rows_done * length, len(rows) * length, "tokens")
        if context.stopping and writer.rows_done < len(rows):
            context.stop()


def _num_targets(batch: Batch) -> list[int]:
    """Return how many targets each row of a batch has."""
    mask_BT = batch.is_target
    if mask_BT is None:
        return [batch.ids.shape[1] - 1] * len(batch)
    counts: list[int] = mask_BT.sum(-1).tolist()
    return counts


def _started(folder: Path, config: Config, sequence_length: int) -> Start:
    """Return what was settled at the first start of the work in `folder`, or settle and write it now."""
    path = folder / START
    if path.exists():
        return Start.model_validate_json(path.read_text(encoding="utf-8"))
    device = default_device()
    start = Start(
        device=device,
        precision="bf16" if config.precision != "fp32" and has_fast_bf16(device) else "fp32",
        num_threads=torch.get_num_threads(),
        block_rows=max(1, BLOCK_TOKENS[device] // sequence_length),
    )
    temporary = path.with_suffix(".new")
    temporary.write_text(start.model_dump_json(), encoding="utf-8")
    temporary.replace(path)
    return start
