"""How far a model's predictions are from the original's on held-out text, and how well it predicts that text.

`context.inputs`: ``text`` (a tokens artifact made with the original's tokenizer), ``original`` and ``states``
(what `measure.last_states` kept of it on that text: its head alone is run again). The
original itself has perplexity only. A model that reads the same tokens also has the ratio of both perplexities, paired:
the text's own spread is not in its interval. A model with another tokenizer has no divergence: the text is tokenized
anew for it and the figure that compares is bits per byte. A model with a pruned vocabulary reads the text in its own
cut, and is compared with the original at every position at which both have read the same text, over the tokens it has:
the original's distribution is normalized among them, and the probability it gave to others is noted. How much of the
text that covers stands beside the figure; below half of it there is none. Bits per byte are of all sequences, cut as
the model's own tokenizer does. An encoder predicts no next token: it has divergence alone, of its predictions at every
position.
"""

from typing import TYPE_CHECKING

from pydantic import Field

from compress.errors import DoesNotFit, StepFailed
from compress.machine import planned_machine
from compress.measure.last_states import ACCEPTS, SUPPOSED_ROWS
from compress.measure.perplexity import bits_per_byte, perplexity, perplexity_ratio
from compress.models.effort import head_parameters, head_traffic, opening, reading, reading_tokenizer
from compress.plugins import Context, Measured, StepConfig
from compress.records import Artifact, Measurement, Work
from compress.speed import seconds_of

if TYPE_CHECKING:
    from compress.backends.interface import Backend
    from compress.measure.segmentation import Reading
    from compress.meters.aligned import Divergences
    from compress.meters.divergence import TextScores

VERSION = 6

LEAST_COVERAGE = 0.5
"""Below this share of a text's positions a figure of those compared is no figure of the text."""

PASSES_OVER_LOGITS = 9
"""How often logits are read or written, in fp32: log-probabilities of both models, their divergence, the likeliest."""
START_SECONDS = 1.0
"""To import, and cut the text anew."""


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
    runs_apart = measured.kind == "onnx"
    is_original = len(models) == 1 and measured.kind in ACCEPTS
    whole = opening(measured.spec).plus(reading(measured.spec, tokens, batch, span))
    heads = [opening(spec).plus(Work(flops=2.0 * tokens * head_parameters(spec))) for spec in models]
    passes = heads if is_original else [whole, *heads[1:]]  # of the original, the head is run alone
    if planned_machine().card is None:
        traffic = [Work() if runs_apart else head_traffic(models[0], tokens)]
        traffic += [head_traffic(spec, tokens) for spec in models[1:]]
        passes = [work.plus(more) for work, more in zip(passes, traffic, strict=True)]
    passes = [work.plus(reading_tokenizer(spec)) for work, spec in zip(passes, models, strict=True)]
    logits = tokens * sum(
        PASSES_OVER_LOGITS * 4.0 * int(spec.config.get("vocab_size") or 0) for spec in models
    )
    own = passes[0].plus(Work(bytes_moved=logits, serial_seconds=START_SECONDS))
    if not runs_apart:
        return own if len(passes) == 1 else own.plus(passes[1])
    # The runtime is the processor's; the original is read where it always is.
    beside = sum(seconds_of(work) for work in passes[1:])
    return own.plus(Work(serial_seconds=beside)).model_copy(update={"on_processor": True})


def measure(artifact: Artifact, config: Config, context: Context) -> list[Measurement]:
    """Return `perplexity`, `bits_per_byte`; against an original `kl_divergence`, `kl_p99`, `same_top_token`.

    An encoder has the last three only. A model whose vocabulary was pruned has `same_segmentation` instead of a
    perplexity, and `kl_coverage`: alone where that is too small for the three. Raises `DoesNotFit` when original and
    artifact cannot be open together.
    """
    from compress.backends.interface import Encoder, OpenOptions
    from compress.backends.opening import open_artifact
    from compress.data.tokens import PackedTokens
    from compress.measure.segmentation import anew, as_it_is, by_both
    from compress.models.checkpoint import load_tokenizers
    from compress.models.token_map import mapped_ids

    original = context.inputs.get("original", artifact)
    text = PackedTokens.open(context.inputs["text"].path)
    rows_ST = text.rows(0, config.sequences or text.num_sequences)
    tokenizer, own_tokenizer = load_tokenizers(original.path, artifact.path)
    # Every token of the original must mean the same here; further ones do no harm.
    comparable = (
        tokenizer is own_tokenizer or tokenizer.get_vocab().items() <= own_tokenizer.get_vocab().items()
    )
    original_ids = None if comparable else mapped_ids(artifact.path, original.path)
    related = (comparable or original_ids is not None) and original.key != artifact.key
    teacher = _with_states(_open_original(original, artifact, context), context) if related else None
    student = open_artifact(artifact, OpenOptions(widened=True))
    if original.key == artifact.key:
        student = _with_states(student, context)
    longest, size = student.num_positions, config.batch_size
    if comparable:
        reading = as_it_is(rows_ST, size)
    elif original_ids is not None:
        is_encoder = isinstance(student, Encoder)
        reading = by_both(rows_ST, tokenizer, own_tokenizer, original_ids, longest, size, is_encoder)
    else:
        context.warn("its tokenizer is not the original's: divergence is undefined, compare bits per byte")
        reading = anew(rows_ST, tokenizer, own_tokenizer, longest, size)
    compared, read = _score(student, teacher, reading, original_ids, context)
    measured: list[Measurement] = []
    if not isinstance(student, Encoder):
        measured += [perplexity(read.perplexity)] if comparable else []
        measured += bits_per_byte(read, reading.num_bytes(own_tokenizer))
        measured += perplexity_ratio(read)
    if original_ids is not None:
        measured += [_same_segmentation(reading), _coverage(reading)]
    if compared is None or reading.num_compared < LEAST_COVERAGE * reading.num_predicted:
        return measured
    token = "token, which the models see," if isinstance(student, Encoder) else "next token"
    apart = teacher is not None and teacher.on_cuda != student.on_cuda
    return measured + _against_original(compared, token, apart)


def _score(
    student: "Backend",
    teacher: "Backend | None",
    reading: "Reading",
    original_ids: list[int] | None,
    context: Context,
) -> "tuple[Divergences | None, TextScores]":
    """Return the divergence wherever both models have read the same, and the scores of the whole text."""
    import torch

    from compress.meters.aligned import Divergences, joined, joined_texts, score_recut
    from compress.meters.divergence import TextScores, score_text

    done = 0

    def on_batch(num_sequences: int) -> None:
        context.progress(done + num_sequences, reading.num_sequences, "sequences")
        if context.stopping:
            context.stop()

    ids_V = None if original_ids is None else torch.tensor(original_ids[: student.vocabulary])
    texts: list[TextScores] = []
    compared: list[Divergences | None] = []
    for batches, beside in ((reading.whole, teacher), (reading.apart, None)):
        if batches:
            scores = score_text(student, batches, beside, on_batch, ids_V, context.warn)
            texts.append(scores)
            compared.append(Divergences.of(scores))
            done += sum(len(ids_BT) for ids_BT, _ in batches)
    if reading.recut and teacher is not None and ids_V is not None:
        scores, divergences = score_recut(student, teacher, reading.recut, ids_V, on_batch, context.warn)
        texts.append(scores)
        compared.append(divergences)
    read = joined_texts(texts)
    if not torch.isfinite(read.nats).all():
        raise StepFailed("its logits are not finite numbers: it cannot be measured")
    return joined([each for each in compared if each is not None]), read


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
    return open_artifact(original, OpenOptions(device=device, widened=True))


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


def _same_segmentation(reading: "Reading") -> Measurement:
    return Measurement(
        name="same_segmentation",
        value=reading.num_same_tokens / reading.num_predicted,
        unit="share",
        higher_is_better=True,
        n=reading.num_predicted,
        note="tokens before the first one of their sequence that is cut otherwise; "
        f"{reading.num_whole} of {reading.num_sequences} sequences are cut alike to the end",
    )


def _coverage(reading: "Reading") -> Measurement:
    share = reading.num_compared / reading.num_predicted
    same_tokens = reading.num_same_tokens / reading.num_predicted
    note = (
        f"positions at which both have read the same text, at {100 * same_tokens:.3g}% in the same tokens, at the "
        "others each in its own cut"
    )
    if share < LEAST_COVERAGE:
        note += f"; not comparable: divergence needs {100 * LEAST_COVERAGE:g}%"
    return Measurement(
        name="kl_coverage",
        value=share,
        unit="share",
        higher_is_better=True,
        n=reading.num_predicted,
        note=note,
    )


def _against_original(scores: "Divergences", token: str, apart: bool) -> list[Measurement]:
    from compress.meters.clusters import clustered_positive, clustered_share
    from compress.meters.timing import percentile

    kl = clustered_positive(scores.kl, scores.sequence)
    top = clustered_share(scores.same_top, scores.sequence)
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
            degrees=kl.degrees,
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
            degrees=top.degrees,
            note=f"the likeliest {token} is the original's",
        ),
    ]


def _lost(scores: "Divergences") -> str:
    if scores.kept_mass is None:
        return ""
    share = 1 - float(scores.kept_mass.double().mean())
    return f"; over the tokens both have, {100 * share:.2g}% of the original's probability lies on others"
