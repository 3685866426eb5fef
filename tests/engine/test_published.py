"""What the plan says of trainings whose speed others have published: each within 30 %."""

from math import isclose

import pytest

from compress.distill.step import Config as Distill
from compress.machine import Card, Machine, planning_for
from compress.models.layout import spec_from_config
from compress.plugins import Text
from compress.records import Work
from compress.speed import seconds_of
from compress.train.duration import timed
from compress.train.launch import Launch
from compress.train.step import Config as Train

WITHIN = 0.30

# Datasheets of the SXM cards: dense bf16, memory, NVLink each way.
CARDS = {
    "a100": Card(
        name="A100 80GB", memory_bytes=85 * 10**9, bf16_flops_per_second=312e12,
        memory_bytes_per_second=2.04e12, link_bytes_per_second=3e11,
    ),
    "h100": Card(
        name="H100 80GB", memory_bytes=85 * 10**9, bf16_flops_per_second=989e12,
        memory_bytes_per_second=3.35e12, link_bytes_per_second=4.5e11,
    ),
    # Meta's, with HBM2e and a lower power limit: 96 GB at 2.4 TB/s.
    "h100-hbm2e": Card(
        name="H100 96GB", memory_bytes=96 * 10**9, bf16_flops_per_second=989e12,
        memory_bytes_per_second=2.4e12, link_bytes_per_second=4.5e11,
    ),
}  # fmt: skip

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "head_dim": 128}
LLAMA_8B = {
    **LLAMA, "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
# MPT has two matrices in its FFN, four times as wide as the hidden state: three of two thirds of that are as many.
MPT = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5461,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
    },
    "3b": {
        "hidden_size": 2560,
        "intermediate_size": 6827,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 10_923,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13b": {
        "hidden_size": 5120,
        "intermediate_size": 13_653,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}
QWEN3_8B = {
    **LLAMA, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151_936,
    "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8,
}  # fmt: skip


def tokens_per_second(card, config, tied, cards, row_tokens, rows, recomputed):
    """Return what a card is planned to train in a second, in a long training."""
    spec = spec_from_config({**config, "tie_word_embeddings": tied}, "BF16")
    tokens = 10**9
    settings = Train(
        tokens=tokens,
        batch_tokens=cards * rows * row_tokens * 2,
        micro_batch=rows,
        checkpoint_activations=recomputed,
        launch=Launch(processes=cards),
        attend_across_documents=True,
    )
    with planning_for(Machine(card=CARDS[card], num_cards=cards)):
        work = timed(Work(devices=cards), spec, settings, None, {"data": Text(row_tokens, None)})
        return tokens / seconds_of(work) / cards


# mosaicml/llm-foundry, scripts/train/benchmarking/README.md (commit 061f2c7): "Throughput (T/s/GPU)" of rows in
# amp_bf16 with fully sharded fp32 weights, on 8 cards.
@pytest.mark.parametrize(
    ("card", "model", "row_tokens", "rows", "recomputed", "published"),
    [
        ("h100", "13b", 4096, 10, True, 4717),
        ("h100", "13b", 1024, 40, True, 5502),
        ("h100", "7b", 8192, 8, True, 6935),
        ("h100", "7b", 4096, 16, True, 8611),
        ("h100", "7b", 2048, 6, False, 10_643),
        ("h100", "3b", 4096, 5, False, 20_964),
        ("h100", "3b", 8192, 3, False, 16_578),
        ("h100", "1b", 4096, 7, False, 38_535),
        ("a100", "13b", 4096, 10, True, 2060),
        ("a100", "13b", 2048, 2, False, 2262),
        ("a100", "7b", 4096, 16, True, 3684),
        ("a100", "7b", 2048, 6, False, 4641),
        ("a100", "3b", 4096, 5, False, 9457),
        ("a100", "1b", 2048, 14, False, 20_513),
    ],
)
def test_trainings_of_llm_foundry(card, model, row_tokens, rows, recomputed, published):
    shape = {**LLAMA, **MPT[model], "vocab_size": 50_432}
    planned = tokens_per_second(card, shape, True, 8, row_tokens, rows, recomputed)
    assert isclose(published / planned, 1.0, abs_tol=WITHIN), (published, planned)


# pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md (commit 31a17bf), tables 1 and 3: Llama 3.1 8B in
# bf16 without Float8, rows of 8192 (its llama3_8b.toml), eager and compiled.
@pytest.mark.parametrize("published", [5762, 6667], ids=["eager", "compiled"])
def test_trainings_of_torchtitan(published):
    planned = tokens_per_second("h100-hbm2e", LLAMA_8B, False, 8, 8192, 2, False)
    assert isclose(published / planned, 1.0, abs_tol=WITHIN), (published, planned)


def test_a_distillation_of_model_optimizer():
    """Qwen3-8B to 24 of its 36 layers, 90B tokens in rows of 4096, 768 a batch: "~6k H100 GPU hours".

    NVIDIA/Model-Optimizer, examples/nemo_run/prune_distill/README.md. How many cards it ran on is not said there; its
    default is 8. Published are hours in all, start and evaluations included.
    """
    teacher = spec_from_config(QWEN3_8B, "BF16")
    student = spec_from_config({**QWEN3_8B, "num_hidden_layers": 24}, "BF16")
    settings = Distill(
        tokens=90 * 10**9, batch_tokens=768 * 4096, micro_batch=1, launch=Launch(processes=8),
        held_out="heldout", attend_across_documents=True,
    )  # fmt: skip
    texts = {"data": Text(4096, None), "held_out": Text(4096, 128)}
    with planning_for(Machine(card=CARDS["h100"], num_cards=8)):
        work = timed(Work(devices=8), student, settings, teacher, texts)
        hours = seconds_of(work) * 8 / 3600
    assert isclose(hours / 6000, 1.0, abs_tol=WITHIN), hours
