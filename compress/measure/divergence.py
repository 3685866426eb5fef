"""How far a model's predictions are from the original's on held-out text, and how well it predicts that text.

`context.inputs`: ``text`` (a tokens artifact made with the original's tokenizer) and ``original``. The
original itself has perplexity only. A model with another tokenizer has no divergence: the text is tokenized
anew for it and the figure that compares is bits per byte.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from compress.errors import DoesNotFit, StepFailed
from compress.plugins import Context, StepConfig
from compress.records import Artifact, Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compress.backends.interface import Backend
    from compress.meters.divergence import Batch, Estimate, TextScores

VERSION = 1


class Config(StepConfig):
    """How much text is read."""

    sequences: int | None = Field(default=None, ge=1)
    """Sequences of the text, from its beginning; all when not given."""
    batch_size: int = Field(default=16, ge=1)
    """Sequences at once. Part of the result (the last bits differ), so the same for every model."""


def measure(artifact: Artifact, config: Config, context: Context) -> list[Measurement]:
    """Return `perplexity`, `bits_per_byte`; against an original `kl_divergence`, `kl_p99`, `same_top_token`.

    Raises `DoesNotFit` when original and artifact cannot be open together.
    """
    import torch

    from compress.backends.opening import open_artifact
    from compress.data.tokens import PackedTokens
    from compress.meters.divergence import score_text
    from compress.models.checkpoint import load_tokenizer

    original = context.inputs.get("original", artifact)
    text = PackedTokens.open(context.inputs["text"].path)
    rows_ST = text.rows(0, config.sequences or text.num_sequences)
    tokenizer, own_tokenizer = load_tokenizer(original.path), load_tokenizer(artifact.path)
    # Every token of the original must mean the same here; further ones do no harm.
    comparable = tokenizer.get_vocab().items() <= own_tokenizer.get_vocab().items()
    compared = comparable and original.key != artifact.key
    teacher = _open_original(original, artifact, context) if compared else None
    student = open_artifact(artifact)
    if comparable:
        batches = [(ids_BT, torch.ones_like(ids_BT)) for ids_BT in torch.split(rows_ST, config.batch_size)]
    else:
        context.warn("its tokenizer is not the original's: divergence is undefined, compare bits per byte")
        texts = tokenizer.batch_decode(rows_ST, skip_special_tokens=True)
        batches = _tokenized(texts, own_tokenizer, student.num_positions, config.batch_size)

    def on_batch(done: int) -> None:
        context.progress(done, len(rows_ST), "sequences")
        if context.stopping:
            context.stop()

    scores = score_text(student, batches, teacher, on_batch)
    if not torch.isfinite(scores.nats).all():
        raise StepFailed("its logits are not finite numbers: it cannot be measured")
    measured = [_perplexity(scores.perplexity)] if comparable else []
    measured.append(_bits_per_byte(scores, _scored_bytes(own_tokenizer, batches)))
    return measured + _against_original(scores)


def _open_original(original: Artifact, artifact: Artifact, context: Context) -> "Backend":
    from compress.backends.interface import OpenOptions
    from compress.backends.opening import open_artifact
    from compress.meters.memory import fit_together
    from compress.models.device import default_device

    device = default_device()
    if not fit_together([original, artifact], device):
        if device == "cpu":
            raise DoesNotFit(
                "the original and this model do not fit in memory together, so they cannot be compared"
            )
        context.warn(f"the original does not fit on {device} beside this model: it was read on the CPU")
        device = "cpu"
    return open_artifact(original, OpenOptions(device=device))


def _tokenized(
    texts: list[str], tokenizer: "PreTrainedTokenizerBase", num_positions: int, batch_size: int
) -> "list[Batch]":
    """Return the texts in another tokenizer's ids, padded to equal length within a batch."""
    from compress.meters.lm_eval_model import padded

    encoded = tokenizer(texts, truncation=True, max_length=num_positions, return_attention_mask=False)
    rows = encoded["input_ids"]
    return [padded(rows[start : start + batch_size], left=False) for start in range(0, len(rows), batch_size)]


def _scored_bytes(tokenizer: "PreTrainedTokenizerBase", batches: "list[Batch]") -> int:
    """Return the UTF-8 length of all text that has a predecessor; marks between texts have no bytes."""
    rows = [
        ids_T[mask_T.bool()][1:]
        for ids_BT, mask_BT in batches
        for ids_T, mask_T in zip(ids_BT, mask_BT, strict=True)
    ]
    return sum(len(text.encode()) for text in tokenizer.batch_decode(rows, skip_special_tokens=True))


def _perplexity(estimate: "Estimate") -> Measurement:
    return Measurement(
        name="perplexity",
        value=estimate.mean,
        unit="",
        higher_is_better=False,
        n=estimate.n,
        low=estimate.low,
        high=estimate.high,
        note="exp(nats a token); interval over sequences",
    )


def _bits_per_byte(scores: "TextScores", num_bytes: int) -> Measurement:
    return Measurement(
        name="bits_per_byte",
        value=scores.bits_per_byte(num_bytes),
        unit="bits/byte",
        higher_is_better=False,
        n=len(scores.nats),
        note="comparable between tokenizers",
    )


def _against_original(scores: "TextScores") -> list[Measurement]:
    from compress.meters.divergence import clustered_mean
    from compress.meters.timing import percentile

    if scores.kl is None or scores.same_top is None:
        return []
    kl = clustered_mean(scores.kl, scores.sequence)
    top = clustered_mean(scores.same_top, scores.sequence)
    worst = f"largest {float(scores.kl.max()):.3g}"
    tail = percentile(scores.kl.tolist(), 99)
    return [
        Measurement(
            name="kl_divergence",
            value=kl.mean,
            unit="nats/token",
            higher_is_better=False,
            n=kl.n,
            low=kl.low,
            high=kl.high,
            note="KL(original‖this); interval over sequences",
        ),
        Measurement(name="kl_p99", value=tail, unit="nats/token", higher_is_better=False, n=kl.n, note=worst),
        Measurement(
            name="same_top_token",
            value=top.mean,
            unit="share",
            higher_is_better=True,
            n=top.n,
            low=top.low,
            high=top.high,
            note="the likeliest next token is the original's",
        ),
    ]
