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
from compress.models.determinism import deterministic
from compress.models.device import default_device
from compress.plugins import Context
from compress.records import JsonValue, Record
from compress.train.allocator import freed_memory_kept
from compress.train.attention import PACKED, implementation
from compress.train.fused import slices
from compress.train.head import OutputHead, hidden_states, output_head, output_matrix
from compress.train.numerics import chosen_precision
from compress.train.projection import Projection
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
    """Write the signals of all rows that will be read into ``context.folder``; return facts about them."""
    data = PackedTokens.open(context.inputs["data"].path)
    rows = rows_read(data, config, context.seed)
    start = _started(context.partial, config, data.sequence_length)
    threads = torch.get_num_threads()
    torch.set_num_threads(start.num_threads)
    try:
        with freed_memory_kept() if start.device == "cpu" else deterministic(warn_only=True):
            caching = Caching.of(
                load_teacher(teacher, config.precision, config.teacher_precision), config, start
            )
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
    """Return the numbers of the first rows, or of those that training on so many tokens reads, ascending."""
    if config.first_rows is not None:
        return list(range(min(config.first_rows, data.num_sequences)))
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
    head: OutputHead
    about: About
    start: Start

    @classmethod
    def of(cls, teacher: PreTrainedModel, config: Config, start: Start) -> "Caching":
        """Put the teacher on its device. Raises `InputError` when it makes its logits in an unknown way."""
        if teacher.device.type != torch.device(start.device).type:
            teacher = teacher.to(start.device)
        teacher.set_attn_implementation(implementation(teacher, PACKED))
        head, vocabulary = output_head(teacher), len(output_matrix(teacher)[0])
        about = About(
            vocabulary=vocabulary,
            top_k=min(config.top_k, vocabulary),
            samples=config.samples if config.tail == "sampled" else 0,
            temperature=config.temperature,
        )
        return cls(teacher, head, about, start)

    def targets(self, batch: Batch, places_N: Tensor) -> Targets:
        """Return the targets of a block of rows. `places_N`: the uniform numbers that sampling starts from."""
        device = torch.device(self.start.device)
        bf16 = self.start.precision == "bf16"
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            hidden_ND = self.head.scaled(hidden_states(self.teacher, batch.to(device)))
            logits = Projection.of(hidden_ND, *output_matrix(self.teacher), self.head.softcap)
        # Autocast has decided what the large products are in; sums over the vocabulary it would round to bf16.
        with torch.inference_mode():
            return joined(list(self._tiles(logits, places_N.to(device))))

    def _tiles(self, logits: Projection, places_N: Tensor) -> Iterator[Targets]:
        about, device = self.about, places_N.device.type
        step = max(16, TILE_BYTES[device] // (4 * about.vocabulary))
        # A block without any target is a tile without any.
        for tile in slices(0, len(places_N), step) if len(places_N) else [slice(0, 0)]:
            found = logits.distribution(logits.product(tile), tile)
            tempered_NV = found.logits / about.temperature
            yield sparse_targets(tempered_NV, about.top_k, places_N[tile], about.samples).to("cpu")


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
        precision=chosen_precision(config.precision, device),
        num_threads=torch.get_num_threads(),
        block_rows=max(1, BLOCK_TOKENS[device] // sequence_length),
    )
    temporary = path.with_suffix(".new")
    temporary.write_text(start.model_dump_json(), encoding="utf-8")
    temporary.replace(path)
    return start
