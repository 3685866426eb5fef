"""What a cut through Gemma's channels needs beside Llama's: four norms a layer, embeddings times sqrt(hidden).

Gemma multiplies its embeddings by ``sqrt(hidden_size)``, so a smaller size in the configuration changes what every
layer reads, though no weight changed. `compress` scales the embedding, the norms' gains and their epsilon so that
removing channels that are zero everywhere is exact; the rival is granted the same, written anew.

Shapes: H hidden channels, H' those that stay.
"""

from math import sqrt
from typing import Any

from torch import Tensor

MORE_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
"""In Gemma 2 and 3. Their ``post_attention_layernorm`` is one over attention's output."""


def is_gemma(config: dict[str, Any]) -> bool:
    return str(config["model_type"]).startswith("gemma")


def adjusted(config: dict[str, Any], hidden: int) -> dict[str, Any]:
    """Return the cut model's configuration with the epsilon that its norms' gains ask for. hidden: the parent's H.

    The mean of squares over H' is H/H' times that over H, and so is the epsilon then. The norms of query and key heads
    read it as well, over a size that stays: about 1e-7 of their output.
    """
    return {**config, "rms_norm_eps": config["rms_norm_eps"] * hidden / config["hidden_size"]}


def rescale(state: dict[str, Tensor], config: dict[str, Any], hidden: int) -> None:
    """Multiply embedding and norms of a cut model's state by ``sqrt(H/H')``. hidden: the parent's H.

    A norm multiplies by ``1 + weight``. Where the head is the embedding, it grows too: then the last norm, which the
    head reads, is left as it is.
    """
    gain = sqrt(hidden / config["hidden_size"])
    tied = config["tie_word_embeddings"]
    for name, tensor in state.items():
        module = name.split(".")[-2]
        if module == "embed_tokens" or (tied and module == "lm_head"):
            state[name] = tensor * gain
        elif module.endswith("layernorm") or (module == "norm" and not tied):
            state[name] = (1 + tensor) * gain - 1
