"""What pruning steps predict: the smaller model, and the work of choosing what stays."""

from collections.abc import Mapping

from compress.environment import available_memory_bytes
from compress.machine import planned_machine
from compress.models.effort import calls_per_pass, opened_bytes, opening, reading
from compress.models.layout import Layout, WidthAxis, layout
from compress.models.spec import stored_dtype
from compress.plugins import texts_of
from compress.prune.settings import CompensationSettings
from compress.records import DTYPE_BYTES, ModelSpec, TensorSpec, Work

BATCH_TOKENS = 4096
"""Calibration tokens that pass a layer at once."""

START_SECONDS = 1.0
"""To open scores and texts, and to copy the tokenizer."""

ACTIVATION_BYTES = 2**30
"""Room for the activations of one calibration batch, and for the sums of a layer."""

REFITS = 3.0
"""Forward passes that refitting takes beyond scoring: the parent's, and the student's as far as each of its maps."""

REHEARSED_ALIGNMENT: dict[WidthAxis, int] = {"hidden": 16}
"""So that the smallest groups of quantization divide what is left of a rehearsal's tiny model."""

CALLS_PER_REFIT = 400
"""Operations for a layer and a batch: hooks, sums, and the maps run again with their new weights."""
RECONSTRUCTION_TOKENS = 2048
"""Tokens of a step of training a layer by itself, one sequence at least."""
CALLS_PER_RECONSTRUCTION = 200
TRAINED_BYTES = 16
"""A trained parameter takes, in fp32: itself, its gradient and Adam's two moments."""
PASSES_OVER_LOGITS = 12
CALLS_PER_JUDGMENT = 40


def pruned_spec(spec: ModelSpec, after: Layout) -> ModelSpec:
    """Return the model of the smaller layout, each tensor in the dtype it has in the parent."""
    usual = stored_dtype(spec)
    tensors = {
        name: TensorSpec(shape=shape, dtype=spec.tensors[name].dtype if name in spec.tensors else usual)
        for name, shape in after.shapes().items()
    }
    return ModelSpec(config=after.config, tensors=tensors, num_parameters=after.num_parameters)


def float_bytes(spec: ModelSpec) -> int:
    """Return the bytes of a stored weight."""
    return DTYPE_BYTES[stored_dtype(spec)]


def known_tokens(asked: int, inputs: Mapping[str, ModelSpec]) -> int:
    """Return how many calibration tokens are read: those asked for, or all where the data have fewer."""
    text = texts_of(inputs).get("calibration")
    return asked if text is None or text.rows is None else min(asked, text.rows * text.row_tokens)


def is_streamed(spec: ModelSpec, memory: str) -> bool:
    """Return whether the parent's layers will be read one by one: what takes more than half of the memory there is."""
    card = planned_machine().card
    available = card.memory_bytes if card else available_memory_bytes()
    return memory == "stream" or (memory == "auto" and spec.weight_bytes > available / 2)


def calibrated_work(before: ModelSpec, after: ModelSpec, tokens: int, passes: float, streamed: bool) -> Work:
    """Return the work of forward passes over the calibration data and of writing the result."""
    layers = before.config.get("num_hidden_layers") or 1
    held = before.weight_bytes / layers if streamed else before.weight_bytes
    work = opening(before).plus(reading(before, tokens, BATCH_TOKENS).times(passes))
    rereading = max(0.0, passes - 1) * before.weight_bytes if streamed else 0.0
    work = work.plus(Work(disk_bytes_read=rereading, serial_seconds=START_SECONDS))
    return work.model_copy(
        update={"peak_memory_bytes": int(held) + ACTIVATION_BYTES, "disk_bytes": after.weight_bytes}
    )


def pruning_work(
    before: ModelSpec, after: ModelSpec, settings: CompensationSettings, inputs: Mapping[str, ModelSpec]
) -> Work:
    """Return the work of cutting a model and, where it is wanted, of refitting and training what stays."""
    tokens, streamed = known_tokens(settings.tokens, inputs), is_streamed(before, settings.memory)
    if not settings.compensate:
        moved = Work(bytes_moved=2.0 * after.weight_bytes)
        return calibrated_work(before, after, tokens, 0.0, streamed).plus(moved)
    work = calibrated_work(before, after, tokens, REFITS, streamed)
    work = work.plus(refitting(layout(before.config), layout(after.config), tokens))
    if not settings.reconstruct:
        return work
    trained = reconstructing(layout(after.config), settings.reconstruct)
    together = work.peak_memory_bytes + trained.peak_memory_bytes
    return work.plus(trained).model_copy(update={"peak_memory_bytes": together})


def reconstructing(after: Layout, steps: int) -> Work:
    """Return the work of training each layer by itself: a forward pass, and a backward pass of twice that."""
    inside = after.num_parameters - (1 if after.tied else 2) * after.vocab * after.hidden
    return Work(
        flops=6.0 * inside * steps * RECONSTRUCTION_TOKENS,
        bytes_moved=steps * inside * TRAINED_BYTES,
        num_calls=steps * after.num_layers * CALLS_PER_RECONSTRUCTION,
        peak_memory_bytes=int(inside / after.num_layers * TRAINED_BYTES),
    )


def refitting(before: Layout, after: Layout, tokens: int) -> Work:
    """Return the work of the least squares themselves, beside the passes: sums over the text, and their solutions.

    Of n inputs in the student and m in the parent the sums take 2 (n² + nm) a token, factoring and inverting n³, and
    each output 2 n² more. The four stages of a layer read the hidden state twice, attention's output and the FFN's.
    """
    query, ffn = after.num_heads * after.head_dim, after.ffn or after.expert_ffn
    hidden, own = after.hidden, before.hidden
    stages = [  # inputs, the parent's beside them, outputs
        (hidden, own, query + 2 * after.num_kv_heads * after.head_dim),
        (query, own, hidden),
        (hidden, own, 2 * ffn),
        (ffn, own, hidden),
    ]
    each = sum(2.0 * tokens * (n * n + n * m) + n**3 + 2.0 * n * n * outputs for n, m, outputs in stages)
    head = 2.0 * tokens * (hidden**2 + hidden * own) + hidden**3 + 2.0 * hidden**2 * after.vocab
    calls = after.num_layers * CALLS_PER_REFIT * max(1.0, tokens / BATCH_TOKENS)
    return Work(exact_flops=after.num_layers * each + head, num_calls=calls)


def judging(spec: ModelSpec, tokens: float, times: float) -> Work:
    """Return the work of comparing predictions so many times: the head's products, and their distributions."""
    shape = layout(spec.config)
    return Work(
        flops=times * tokens * 2.0 * shape.hidden * shape.vocab,
        bytes_moved=times * tokens * PASSES_OVER_LOGITS * 4.0 * shape.vocab,
        num_calls=times * max(1.0, tokens / BATCH_TOKENS) * CALLS_PER_JUDGMENT,
    )


def trying(spec: ModelSpec, tokens: int) -> Work:
    """Return the work of one shape that is cut, refitted and judged, without being written."""
    shape = layout(spec.config)
    work = reading(spec, tokens, BATCH_TOKENS).times(REFITS + 1).plus(refitting(shape, shape, tokens))
    moved = Work(bytes_moved=2.0 * opened_bytes(spec), num_calls=calls_per_pass(spec))
    return work.plus(moved).plus(judging(spec, tokens / 3, 2.0))
