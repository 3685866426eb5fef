"""Attention over packed documents; decoding; evaluation: the kernels a model spends its time in."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compress.data.batch import Batch
from compress.records import Artifact
from compress.train.head import hidden_states
from compress.train.numerics import Numerics, applied
from gpu_minutes.scale import Packed, Scale, milliseconds, model, row


def attention(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield forward and backward time of two real layers by kind of attention and rows at once."""
    from gpu_minutes.training import Job, numerics

    dtype = torch.bfloat16 if scale.is_full else torch.float32
    for kind in ("packed", "sdpa"):
        arithmetic = numerics(scale).model_copy(update={"attention": kind})
        student, teacher = (model(scale.pair, scale.device, d, 1) for d in (torch.float32, dtype))
        with applied(arithmetic):
            job = Job(scale, student, teacher, arithmetic)
            for rows_at_once in (1, 2, 4):
                batch = Packed(scale, scale.pair["vocab_size"]).learning_batch(list(range(rows_at_once)))
                work = partial(_forward_and_back, job.student, batch.to(scale.device), arithmetic)
                time_ms = milliseconds(work, scale.device)
                tokens = rows_at_once * scale.sequence_length
                yield from row(
                    f"two layers, {kind}, {rows_at_once} rows", time_ms, "ms", n=5, note=f"{tokens} tokens"
                )


def _forward_and_back(student: Any, batch: Batch, arithmetic: Numerics) -> None:
    with arithmetic.exact():
        with arithmetic.autocast():
            hidden = hidden_states(student, batch)
        hidden.float().square().sum().backward()


def decoding(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield milliseconds a token of the original's and the student's shape, and what the runtime says of it."""
    from compress.backends.opening import open_artifact
    from compress.meters.timing import Shape, time_answer

    for name, shape in (("8B", scale.teacher), ("4B", scale.student)):
        with tempfile.TemporaryDirectory() as folder:
            artifact = _saved(Path(folder), shape, scale)
            backend = open_artifact(artifact, _options())
            answer = Shape(1, scale.prompt_tokens, scale.new_tokens)
            for prepared in (False, True):
                how = backend.prepare(1, scale.prompt_tokens + scale.new_tokens) if prepared else "eager"
                samples = [time_answer(backend, answer) for _ in range(4)][1:]
                best = min(sample.per_token_ms for sample in samples)
                what = f"decoding, {name} shape, {'prepared' if prepared else 'eager'}"
                yield from row(what, best, "ms/token", n=len(samples), note=f"{how}; {backend.runtime}")


def evaluation(scale: Scale) -> Iterator[dict[str, Any]]:
    """Yield how fast text is scored, by how many logits are held at once."""
    from compress.backends.opening import open_artifact
    from compress.meters import divergence

    rows_BT = Packed(scale, scale.student["vocab_size"]).learning_batch([0, 1]).ids
    with tempfile.TemporaryDirectory() as folder:
        backend = open_artifact(_saved(Path(folder), scale.student, scale), _options())
        batches = [(rows_BT, torch.ones_like(rows_BT))]
        time_ms = milliseconds(lambda: divergence.score_text(backend, batches), scale.device, repeats=3)
        yield from row("text scored", rows_BT.numel() / time_ms * 1e3, "tokens/s", n=3)


def _options() -> Any:
    from compress.backends.interface import OpenOptions

    return OpenOptions()


def _saved(folder: Path, shape: dict[str, Any], scale: Scale) -> Artifact:
    """Return a checkpoint of the shape on disk: of the real ones a quarter of the layers, for time."""
    from compress.models.spec import read_spec

    fewer = {"num_hidden_layers": max(2, shape["num_hidden_layers"] // 4)} if scale.is_full else {}
    model(shape | fewer, scale.device, torch.bfloat16).save_pretrained(folder)
    return Artifact(key=str(folder), kind="hf", path=folder, spec=read_spec(folder))
