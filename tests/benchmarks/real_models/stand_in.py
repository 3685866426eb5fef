"""A stand-in for a folder with a real model: a tiny Gemma 3 that has read the demo world for half a minute."""

from itertools import islice
from pathlib import Path

from pruning.steps import run_step

from compress.data import world
from compress.models.families import gemma3_text

SIZES = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 4, "vocab_size": 512}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16, "query_pre_attn_scalar": 16}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": True}
TRAINING = {"tokens": 60_000, "batch_tokens": 1024, "micro_batch": 8, "learning_rate": 5e-3}
DOCUMENTS = 400


def make(folder: Path, name: str, heldout: str) -> None:
    """Write a model and a text, half of it to be held out, into `folder` under the names that a real folder has."""
    scratch, source = folder / "scratch", {"source": "demo", "sequence_length": 128, "samples": 480}
    tokenizer = scratch / "tokenizer"
    vocabulary = {"vocabulary": SIZES["vocab_size"]}
    run_step("data.tokenizer", scratch, tokenizer, vocabulary, seed=0, kind="tokenizer")
    run_step("data.pack", tokenizer, scratch / "data", source, seed=0, kind="tokenizer")
    config = {**gemma3_text.TINY, **SIZES, **HEADS, **IDS}
    run_step("train.initialize", tokenizer, scratch / "blank", {"config": config}, seed=1, kind="tokenizer")
    data = {"data": scratch / "data"}
    run_step("train", scratch / "blank", folder / name, TRAINING, seed=1, inputs=data)
    written = islice(world.documents("heldout", 0), DOCUMENTS)
    (folder / heldout).write_text("\n\n".join(written) + "\n", encoding="utf-8")
