"""Tiny random checkpoints of every family, with weights far from their initialization."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from compress import plugins
from compress.models.checkpoint import quiet

torch.set_num_threads(1)  # tiny tensors: a second thread only waits, above all under pytest-xdist

FAMILIES = plugins.available("models.families")

VARIANTS = [
    *((family, {}) for family in FAMILIES),
    *((family, {"tie_word_embeddings": True}) for family in FAMILIES),
    *((family, {"head_dim": 16}) for family in FAMILIES),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
]
"""Family and what differs from its tiny configuration."""


def variant_name(value) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items()) or "plain"


def tiny_config(family: str, **changes) -> dict:
    return {**plugins.load("models.families", family).TINY, **changes}


def tiny_model(family: str, *, seed: int = 0, **changes) -> PreTrainedModel:
    """Return a random fp32 model whose norms and biases are not the ones and zeros they start as."""
    config = tiny_config(family, **changes)
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
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
