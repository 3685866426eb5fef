"""A tiny random Llama that reads and writes bytes."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compress.data import tokenizer as tokenizers
from compress.models.checkpoint import quiet
from compress.records import Artifact
from tests.fakes import FakeContext


def write_llama(folder, seed) -> Artifact:
    tokenizers.run(None, tokenizers.Config(kind="bytes"), FakeContext(folder))
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        initializer_range=0.2,
    )
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
    return Artifact(key=f"llama {seed}", kind="hf", path=folder)
