"""Tiny random checkpoints of every family, with weights far from their initialization."""

from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from compress import plugins
from compress.models.checkpoint import auto_class, quiet
from compress.models.family import KEYS, option

torch.set_num_threads(1)  # tiny tensors: a second thread only waits, above all under pytest-xdist

FAMILIES = plugins.available("models.families")


def _family(name: str):
    return plugins.load("models.families", name)


ENCODERS = [name for name in FAMILIES if option(_family(name), "ENCODER")]
DECODERS = [name for name in FAMILIES if name not in ENCODERS]

TRAINABLE = DECODERS
"""Families whose logits are one linear layer of the last hidden state; Gemma 2 bends them (softcapping)."""

LLAMA_LIKES = ["llama", "mistral", "qwen2", "qwen3"]
"""Families whose modules have Llama's names, for tests that reach into a live model."""


def _variants(families: list[str]) -> list[tuple[str, dict]]:
    """Every family as it is, with its head tied or not as it usually is not, and with wider heads."""
    sized = [name for name in families if {**KEYS, **option(_family(name), "KEYS")}["head_dim"] is not None]
    return [
        *((name, {}) for name in families),
        *((name, {"tie_word_embeddings": not _tied(name)}) for name in families),
        *((name, {"head_dim": 16}) for name in sized),
    ]


def _tied(family: str) -> bool:
    return _family(family).DEFAULTS["tie_word_embeddings"]


LLAMA_VARIANTS = [
    *_variants(LLAMA_LIKES),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
]
"""Family and what differs from its tiny configuration."""

VARIANTS = [
    *LLAMA_VARIANTS,
    *_variants([name for name in FAMILIES if name not in LLAMA_LIKES]),
    *(
        (name, {"attention_bias": True})
        for name in ("gemma", "gemma2", "olmo", "olmo2", "olmoe", "qwen3_moe")
    ),
    ("olmo", {"attention_bias": True, "tie_word_embeddings": True}),
    ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    ("phi", {"qk_layernorm": True}),
    ("gpt2", {"n_inner": None}),
]


def variant_name(value) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()) or "plain"


def tiny_config(family: str, **changes) -> dict:
    return {**_family(family).TINY, **changes}


def tiny_model(family: str, *, seed: int = 0, **changes) -> PreTrainedModel:
    """Return a random fp32 model whose norms and biases are not the ones and zeros they start as."""
    config = tiny_config(family, **changes)
    generator = torch.Generator().manual_seed(seed)
    model = auto_class(config).from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.1 * noise)
    return model.eval()


def write_tiny(folder: Path, family: str, *, shard: str = "5GB", **changes) -> Path:
    with quiet():
        tiny_model(family, **changes).save_pretrained(folder, max_shard_size=shard)
    return folder


def token_ids(num: int = 3, length: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 259, (num, length), generator=torch.Generator().manual_seed(seed))
