"""What a layer keeps of a token between its forward and its backward pass, by the shape of the model.

Numbers of bytes for each channel, as autograd keeps them: counted with `torch.autograd.graph.saved_tensors_hooks` on
the transformers models, where they are exact. A norm keeps its input and its result in fp32, a linear layer its input
and a gated MLP four inner states in the dtype of products, attention its queries, keys and values (repeated for all
heads) and its output. Weights, and copies of them, are not among these.
"""

from dataclasses import dataclass

from compress.models.layout import Layout, is_known, layout
from compress.records import JsonValue


@dataclass(frozen=True)
class Kept:
    """Bytes a token and layer, for each channel of hidden states, queries, keys, and neuron of the MLP."""

    hidden: float
    query: float
    key: float = 0.0
    ffn: float = 8.0
    head: float = 4.0
    rest: float = 8.0
    scores: float = 0.0
    """For each head and token attended to: of families that compute attention by plain products on any device."""
    routed_hidden: float = 0.0
    """For each expert that a token is sent to; `ffn` counts once an expert, too."""


LLAMA = Kept(26, 8), Kept(24, 16, ffn=16)
"""Under autocast to bf16, and in fp32. Also of families that are not in the table."""
KEPT: dict[str, tuple[Kept, Kept]] = {
    "qwen3": (Kept(26, 14, 6, head=8), Kept(24, 24, 8, ffn=16, head=8)),
    "gemma2": (Kept(42, 8, head=0, rest=16, scores=8), Kept(40, 16, ffn=16, head=0, rest=16, scores=8)),
    "gemma3_text": (Kept(42, 16, 8, head=8, rest=16), Kept(40, 24, 8, ffn=16, head=8, rest=16)),
    "gpt2": (Kept(10, 10, 10, ffn=10, head=0, rest=16), Kept(13, 14, 13, ffn=20, head=0, rest=16)),
    "gpt_neox": (Kept(8, 7, 7, ffn=4, rest=16), Kept(14, 13, 13, ffn=8, rest=16)),
    "phi": (Kept(8, 7, 7, ffn=10), Kept(10, 9, 9, ffn=20)),
    "phi3": (Kept(20, 8, 4), Kept(24, 16, 8, ffn=16)),
    "olmo": (Kept(18, 8, rest=16), Kept(16, 16, ffn=16, rest=16)),
    "olmo2": (Kept(26, 16, 8, rest=16), Kept(24, 24, 8, ffn=16, rest=16)),
    "olmoe": (
        Kept(26, 16, 8, ffn=16, rest=100, routed_hidden=7),
        Kept(24, 24, 8, ffn=16, rest=100, routed_hidden=8),
    ),
    "qwen3_moe": (
        Kept(26, 14, 6, ffn=16, head=8, rest=100, routed_hidden=7),
        Kept(24, 24, 8, ffn=16, head=8, rest=100, routed_hidden=8),
    ),
}

MASK_BYTES = 2, 4
"""For each token attended to, in bf16 and fp32: a layer's mask, on a processor. GPUs are told where documents begin."""
OUTSIDE = 10
"""For each channel of hidden states: the last norm's input, result and its copies."""


@dataclass(frozen=True)
class Activations:
    """What a model keeps of one token, in bytes."""

    layers: int
    """In all layers, between the passes."""
    layer: int
    """In one of them, the largest."""
    inputs: int
    """The inputs of all layers alone: what is kept where the rest is computed again."""
    outside: int
    """Outside the layers."""


def activations(
    config: dict[str, JsonValue], in_bf16: bool, sequence_length: int = 1, on_processor: bool = False
) -> Activations:
    """Return what a model keeps of a token in a row of `sequence_length`. Of an unknown family it is about that."""
    kept = KEPT.get(str(config.get("model_type")), LLAMA)[0 if in_bf16 else 1]
    masks = MASK_BYTES[0 if in_bf16 else 1] if on_processor else 0
    if is_known(config):
        model = layout(config)
        hidden, num_layers, each = model.hidden, model.num_layers, _layer(model, kept)
        each += (masks + kept.scores * model.num_heads) * sequence_length
    else:
        hidden, num_layers, each = _unknown(config, kept)
    return Activations(round(num_layers * each), round(each), 4 * hidden * num_layers, OUTSIDE * hidden)


def _layer(model: Layout, kept: Kept) -> float:
    found = kept.hidden * model.hidden + kept.query * model.num_heads * model.head_dim
    found += kept.key * model.num_kv_heads * model.head_dim + kept.head * model.num_heads + kept.rest
    if not model.num_experts:
        return found + kept.ffn * model.ffn
    return found + model.experts_per_token * (kept.ffn * model.expert_ffn + kept.routed_hidden * model.hidden)


def _unknown(config: dict[str, JsonValue], kept: Kept) -> tuple[int, int, float]:
    """Return the hidden size, the number of layers and what one keeps, by the usual names of a configuration."""
    hidden = _number(config, "hidden_size", "n_embd")
    inner = _number(config, "intermediate_size", "n_inner") or 4 * hidden
    each = (kept.hidden + kept.query) * hidden + kept.ffn * inner
    return hidden, _number(config, "num_hidden_layers", "n_layer"), each


def _number(config: dict[str, JsonValue], *names: str) -> int:
    return next((int(str(config[name])) for name in names if config.get(name)), 0)
