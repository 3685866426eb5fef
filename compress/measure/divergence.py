"""How far a model's predictions are from the original's on held-out text, and how well it predicts that text.

`context.inputs`: ``text`` (a tokens artifact made with the original's tokenizer), ``original`` and ``states``
(what `measure.last_states` kept of it on that text: its head alone is run again). The
original itself has perplexity only. A model with another tokenizer has no divergence: the text is tokenized
anew for it and the figure that compares is bits per byte. A model with a pruned vocabulary is compared with the
original in every sequence up to the first token their tokenizers cut otherwise, over the tokens it has: the
original's distribution is normalized among them, and the probability it gave to others is noted. Bits per byte are
of all sequences, cut as the model's own tokenizer does. An encoder predicts no next token: it has divergence alone, of
its predictions at every position.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from compress.errors import DoesNotFit, StepFailed
from compress.measure.last_states import ACCEPTS, SUPPOSED_ROWS, head_flops
from compress.models.effort import opening, reading
from compress.plugins import Context, Measured, StepConfig
from compress.records import Artifact, Measurement, Work
from compress.speed import seconds_of

if TYPE_CHECKING:
    from torch import Tensor

    from compress.backends.interface import Backend
    from compress.measure.segmentation import Reading
    from compress.meters.divergence import Estimate, TextScores

VERSION = 2

PASSES_OVER_LOGITS = 12
"""How often logits are read or written, in fp32: log-probabilities of both models, their divergence, the likeliest."""
START_SECONDS = 1.0
"""To import and load tokenizers, and cut the text anew."""


class Config(StepConfig):
    """How much text is read."""

    sequences: int | None = Field(default=None, ge=1)
    """Sequences of the text, from its beginning; all when not given."""
    batch_size: int = Field(default=16, ge=1)
    """Sequences at once. Part of the result (the last bits differ), so the same for every model."""


def estimate(measured: Measured, config: Config) -> Work:
    """Return about what reading the text takes, the original beside it."""
    text = measured.texts["text"]
    rows = min((n for n in (config.sequences, text.rows) if n is not None), default=SUPPOSED_ROWS)
    tokens, batch, span = rows * text.row_tokens, config.batch_size * text.row_tokens, text.row_tokens / 2
    models = [measured.spec, *(spec for field, spec in measured.specs.items() if field == "original")]
    whole = opening(measured.spec).plus(reading(measured.spec, tokens, batch, span))
    heads = [opening(spec).plus(Work(flops=head_flops(spec, tokens))) for spec in models]
    is_original = len(models) == 1 and measured.kind in ACCEPTS
    passes = heads if is_original else [whole, *heads[1:]]  # of the original, the head is run alone
    logits = tokens * sum(
        PASSES_OVER_LOGITS * 4.0 * int(spec.config.get("vocab_size") or 0) for spec in models
    )
    own = passes[0].plus(Work(bytes_moved=logits, serial_seconds=START_SECONDS))
    if measured.kind != "onnx":
        return own if len(passes) == 1 else own.plus(passes[1])
    # The runtime is the processor's; the original is read where it always is.
    beside = sum(seconds_of(work) for work in passes[1:])
    return own.plus(Work(serial_seconds=beside)).model_copy(update={"on_processor": True})


def measure(artifact: Artifact, config: Config, context: Context) -> list[Measurement]:
    """Return `perplexity`, `bits_per_byte`; against an original `kl_divergence`, `kl_p99`, `same_top_token`.

    An encoder has the last three only. A model whose vocabulary was pruned has `same_segmentation` instead of a
    perplexity. Raises `DoesNotFit` when original and artifact cannot be open together.
    """
    from compress.backends.interface import Encoder
    from compress.backends.opening import open_artifact
    from compress.data.tokens import PackedTokens
    from compress.measure.segmentation import anew, as_it_is, by_both
    from compress.models.checkpoint import load_tokenizer
    from compress.models.token_map import mapped_ids

    original = context.inputs.get("original", artifact)
    text = PackedTokens.open(context.inputs["text"].path)
    rows_ST = text.rows(0, config.sequences or text.num_sequences)
    tokenizer, own_tokenizer = load_tokenizer(original.path), load_tokenizer(artifact.path)
    # Every token of the original must mean the same here; further ones do no harm.
    comparable = tokenizer.get_vocab().items() <= own_tokenizer.get_vocab().items()
    original_ids = None if comparable else mapped_ids(artifact.path, original.path)
    related = (comparable or original_ids is not None) and original.key != artifact.key
    teacher = _with_states(_open_original(original, artifact, context), context) if related else None
    student = open_artifact(artifact)
    if original.key == artifact.key:
        student = _with_states(student, context)
    longest, size = student.num_positions, config.batch_size
    if comparable:
        reading = as_it_is(rows_ST, size)
    elif original_ids is not None:
        reading = by_both(rows_ST, tokenizer, own_tokenizer, original_ids, longest, size)
    else:
        context.warn("its tokenizer is not the original's: divergence is undefined, compare bits per byte")
        reading = anew(rows_ST, tokenizer, own_tokenizer, longest, size)
    compared, read = _score(student, teacher, reading, original_ids, context)
    if isinstance(student, Encoder):
        return _against_original(compared, "token, which the models see,") if compared else []
    measured = [_perplexity(read.perplexity)] if comparable else []
    measured.append(_bits_per_byte(read, reading.num_bytes(own_tokenizer)))
    if original_ids is not None:
        measured.append(_same_segmentation(reading, rows_ST))
    apart = teacher is not None and teacher.on_cuda != student.on_cuda
    return measured + (_against_original(compared, apart=apart) if compared else [])


def _score(
    student: "Backend",
    teacher: "Backend | None",
    reading: "Reading",
    original_ids: list[int] | None,
    context: Context,
) -> "tuple[TextScores | None, TextScores]":
    """Return the scores of what both models read alike, beside the original's, and those of the whole text."""
    import torch

    from compress.meters.divergence import TextScores, score_text

    done = 0

    def on_batch(num_sequences: int) -> None:
        context.progress(done + num_sequences, reading.num_rows, "sequences")
        if context.stopping:
            context.stop()

    ids_V = None if original_ids is None else torch.tensor(original_ids[: student.vocabulary])
    alike = [*reading.whole, *reading.beginnings]
    compared = score_text(student, alike, teacher, on_batch, ids_V, context.warn) if alike else None
    done = sum(len(ids_BT) for ids_BT, _ in alike)
    apart = (
        score_text(student, reading.apart, None, on_batch, on_halved=context.warn) if reading.apart else None
    )
    nats, sequence = [], []
    if compared is not None:
        is_whole_N = compared.sequence < reading.num_whole
        nats, sequence = [compared.nats[is_whole_N]], [compared.sequence[is_whole_N]]
    if apart is not None:
        nats, sequence = [*nats, apart.nats], [*sequence, apart.sequence + reading.num_whole]
    read = TextScores(torch.cat(nats), torch.cat(sequence))
    if not torch.isfinite(read.nats).all():
        raise StepFailed("its logits are not finite numbers: it cannot be measured")
    return compared, read


def _open_original(original: Artifact, artifact: Artifact, context: Context) -> "Backend":
    from compress.backends.interface import OpenOptions
    from compress.backends.opening import device_of, open_artifact
    from compress.meters.memory import fit_together
    from compress.models.device import default_device

    # Beside an export, which a processor reads, it may still be on the GPU: predictions are compared, not speeds.
    device = default_device()
    together = [original, artifact] if device_of(artifact) == device else [original]
    if not fit_together(together, device):
        if device == "cpu":
            raise DoesNotFit(
                "the original and this model do not fit in memory together, so they cannot be compared"
            )
        context.warn(f"the original does not fit on {device} beside this model: it was read on the CPU")
        device = "cpu"
    return open_artifact(original, OpenOptions(device=device))


def _with_states(original: "Backend", context: Context) -> "Backend":
    """Return the original so that it reads the text by its last states, where these were prepared."""
    from compress.backends.remembered import Remembered
    from compress.data.tokens import PackedTokens
    from compress.measure.last_states import read_states

    if "states" not in context.inputs:
        return original
    states_STH = read_states(context.inputs["states"])
    rows_ST = PackedTokens.open(context.inputs["text"].path).rows(0, len(states_STH))
    return Remembered.of(original, rows_ST, states_STH)


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


def _same_segmentation(reading: "Reading", rows_ST: "Tensor") -> Measurement:
    num_tokens = rows_ST[:, 1:].numel()
    return Measurement(
        name="same_segmentation",
        value=reading.num_compared / num_tokens,
        unit="share",
        higher_is_better=True,
        n=num_tokens,
        note="tokens before the first one cut otherwise: divergence is of these; "
        f"{reading.num_whole} of {len(rows_ST)} sequences are cut alike to the end",
    )


def _against_original(
    scores: "TextScores", token: str = "next token", apart: bool = False
) -> list[Measurement]:
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
            note="KL(original‖this); interval over sequences"
            + ("; one of them on the GPU, the other on the processor" if apart else "")
            + _lost(scores),
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
            note=f"the likeliest {token} is the original's",
        ),
    ]


def _lost(scores: "TextScores") -> str:
    if scores.kept_mass is None:
        return ""
    share = 1 - float(scores.kept_mass.double().mean())
    return f"; over the tokens both have, {100 * share:.2g}% of the original's probability lies on others"
