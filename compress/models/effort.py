"""What running a model takes, from its configuration alone: FLOPs, bytes and operations. Torch-free, for estimates.

Two FLOPs a weight and token where a token meets the weight: rows of the embedding are looked up, and of the experts
only some work. Attention adds four for each of the tokens a token sees, head and dimension (Kaplan et al. 2020, §2.1).
"""

from math import prod

from compress.cores import multiplies_bf16
from compress.errors import InputError
from compress.models.layout import Layout, is_known, layout
from compress.models.spec import stored_dtype
from compress.records import ModelSpec, Work
from compress.speed import LOGITS_AT_ONCE

SPAN = 1024
"""Tokens a token sees, on average, where that is not known: half of a row of 2048, or of a long text."""
CALLS_PER_LAYER = 40
"""Operations of a decoder layer in transformers: norms, projections, rotation, attention, products between."""
CALLS_OUTSIDE = 30
"""Of a pass, beside its layers: masks, embedding, last norm, head, copies."""
TRAFFIC = 50
"""Bytes read and written between products in a layer, for each dimension that passes there. See `compress.speed`."""
SECONDS_PER_ID = 2e-5
"""To read a tokenizer, which transformers does in Python first: 5 s of 262,144 ids."""
HEAD_PASSES = 3
"""Over a head's fp32 weights each time, on a processor: they are packed for the product."""
EMULATED = 4.0
"""Times as long as in fp32 products take in bf16 on a processor that has none in hardware, and in fp16 on any."""
UNKNOWN_LAYERS = 32
UNKNOWN_WIDTH = 20_000


def flops_per_token(spec: ModelSpec, span: float = SPAN) -> float:
    """Return the FLOPs of one token's forward pass, its next token's logits included."""
    shape = _layout(spec)
    if shape is None:
        return 2.0 * spec.num_parameters
    attention = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * span
    return 2.0 * (spec.num_parameters - _idle(spec, shape)) + attention


def bytes_per_token(spec: ModelSpec) -> float:
    """Return what is read and written for a token between the products of a forward pass; a backward pass takes twice.

    Norms, rotation, activations, residuals and casts pass over the hidden state and the FFN's inner one.
    """
    shape = _layout(spec)
    if shape is None:
        return TRAFFIC * UNKNOWN_LAYERS * UNKNOWN_WIDTH
    inner = shape.ffn + shape.expert_ffn * shape.experts_per_token
    return TRAFFIC * shape.num_layers * (2 * shape.hidden + inner)


def num_layers(spec: ModelSpec) -> int:
    """Return how many layers a model has, or has about."""
    shape = _layout(spec)
    return shape.num_layers if shape else UNKNOWN_LAYERS


def calls_per_pass(spec: ModelSpec) -> int:
    """Return how many operations one forward pass is, however many tokens are in it."""
    return num_layers(spec) * CALLS_PER_LAYER + CALLS_OUTSIDE


def opened_bytes(spec: ModelSpec) -> int:
    """Return what an open model's weights take: as stored, or 16 bits each where packed integers are expanded."""
    return max(spec.weight_bytes, 2 * spec.num_parameters)


def reading(
    spec: ModelSpec, tokens: float, batch_tokens: float, span: float = SPAN, asked: float | None = None
) -> Work:
    """Return the work of forward passes over text, so many tokens at once.

    asked: how many of the tokens pass through the head; all when not given.
    """
    if not tokens:
        return Work()
    passes = max(1.0, tokens / batch_tokens)
    spared = 0.0 if asked is None else (tokens - asked) * 2.0 * head_parameters(spec)
    return Work(
        flops=max(0.0, tokens * flops_per_token(spec, span) - spared),
        bytes_moved=passes * opened_bytes(spec) + tokens * bytes_per_token(spec),
        num_calls=passes * calls_per_pass(spec),
    )


def head_parameters(spec: ModelSpec) -> int:
    """Return the weights that make a token's logits of what its last layer leaves, as the configuration tells them."""
    return width(spec) * int(spec.config.get("vocab_size") or 0)


def width(spec: ModelSpec) -> int:
    """Return the size of a hidden state, under the names that configurations have for it."""
    return int(spec.config.get("hidden_size") or spec.config.get("n_embd") or spec.config.get("dim") or 0)


def head_traffic(spec: ModelSpec, positions: float) -> Work:
    """Return what a processor moves besides, to read a head's weights anew for every few positions."""
    shape = _layout(spec)
    if shape is None:
        return Work()
    chunks = positions * shape.vocab / LOGITS_AT_ONCE
    return Work(bytes_moved=chunks * HEAD_PASSES * 4.0 * shape.vocab * shape.hidden)


def reading_tokenizer(spec: ModelSpec) -> Work:
    """Return the work of reading a model's tokenizer."""
    shape = _layout(spec)
    return Work(serial_seconds=SECONDS_PER_ID * shape.vocab if shape else 0.0)


def writing(spec: ModelSpec, batch: int, prompt_tokens: int, new_tokens: int, recorded: bool = False) -> Work:
    """Return the work of answering prompts: all weights are read again for every token written.

    recorded: whether the operations of a token are started as one, a CUDA graph.
    """
    read = reading(spec, batch * prompt_tokens, batch * prompt_tokens, prompt_tokens / 2)
    steps = max(0, new_tokens - 1)
    shape = _layout(spec)
    seen = prompt_tokens + new_tokens / 2
    cached = 4 * shape.num_layers * shape.num_kv_heads * shape.head_dim * seen * batch if shape else 0
    return read.plus(
        Work(
            flops=steps * batch * flops_per_token(spec, seen),
            bytes_moved=steps * (opened_bytes(spec) + cached),
            num_calls=steps * (1 if recorded else calls_per_pass(spec)),
        )
    )


def as_stored(work: Work, spec: ModelSpec) -> Work:
    """Return a model's work on a processor in the floats it is stored in."""
    stored = stored_dtype(spec)
    is_slow = stored == "F16" or (stored == "BF16" and not multiplies_bf16())
    return work.model_copy(update={"flops": EMULATED * work.flops}) if is_slow else work


def opening(spec: ModelSpec) -> Work:
    """Return the work of loading a checkpoint: read from disk, and placed."""
    return Work(
        disk_bytes_read=spec.weight_bytes,
        bytes_moved=2 * opened_bytes(spec),
        num_calls=20 * num_layers(spec),
    )


def _idle(spec: ModelSpec, shape: Layout) -> float:
    """Return how many weights a token does not meet: other tokens' embeddings, and experts that are not asked."""
    tied = bool(spec.config.get("tie_word_embeddings")) or "lm_head.weight" not in shape.tensors
    idle = 0.0 if tied else float(shape.vocab * shape.hidden)
    if shape.num_experts:
        experts = sum(prod(size) for name, size in shape.shapes().items() if ".experts." in name)
        idle += experts * (1 - shape.experts_per_token / shape.num_experts)
    return idle


def _layout(spec: ModelSpec) -> Layout | None:
    if not is_known(spec.config):
        return None
    try:
        return layout(spec.config)
    except InputError:
        return None
