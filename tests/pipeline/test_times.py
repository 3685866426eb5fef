"""Every node of every shipped pipeline has a time, before anything ran."""

from pathlib import Path

import pytest

from compress.digests import DigestMemo
from compress.engine.rates import Rates
from compress.machine import Card, Machine, planning_for
from compress.models import download
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline

PIPELINES = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))

LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 4096,
    "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "dtype": "bfloat16", "max_position_embeddings": 131_072,
}  # fmt: skip
SHAPES = {
    "meta-llama/Llama-3.1-8B": LLAMA_8B,
    "meta-llama/Llama-3.2-3B": {
        **LLAMA_8B, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-8B": {
        **LLAMA_8B, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151_936,
        "intermediate_size": 12_288, "num_hidden_layers": 36,
    },
}  # fmt: skip
"""Published ``config.json``, as far as shapes go."""

CARD = Card(
    name="H100 80GB",
    memory_bytes=85 * 10**9,
    bf16_flops_per_second=989e12,
    memory_bytes_per_second=3.35e12,
    link_bytes_per_second=4.5e11,
)


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def resolve(repository, revision):
        shape = SHAPES.get(repository, SHAPES["Qwen/Qwen3-8B"])
        return download.Config(id=repository, commit="0", config=shape)

    monkeypatch.setattr(download, "resolve", resolve)
    monkeypatch.setattr("compress.data.sources.hf._commit", lambda *_: "0")


def planned(path, tmp_path, machine):
    """Return the seconds of every node on a machine that nothing was learned of."""
    with planning_for(machine):
        plan = make_plan(load_pipeline(path), DigestMemo(tmp_path / "digests.sqlite"))
        rates = Rates(tmp_path)
        return {node.name: rates.seconds(node) for node in plan.nodes}


@pytest.mark.parametrize("machine", [Machine(), Machine(card=CARD, num_cards=8)], ids=["processor", "cards"])
@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_node_has_a_time_from_the_first_time(path, machine, tmp_path):
    seconds = planned(path, tmp_path, machine)
    assert [name for name, each in seconds.items() if not each] == []


def test_the_main_job_takes_a_day_and_a_half_and_its_graph_is_judged_for_hours(tmp_path):
    path = next(path for path in PIPELINES if path.stem == "llama8b_to_4b")
    seconds = planned(path, tmp_path, Machine(card=CARD, num_cards=1))
    hours = {name: each / 3600 for name, each in seconds.items()}
    assert 20 < hours["recover"] < 60
    assert 0.02 < hours["original/scores"] < 0.5
    assert hours["recover/quality"] < 0.1 < 0.5 < hours["edge/quality"] < 6  # options share their question
    assert 0.05 < hours["data/recovery"] < 1
    assert sum(hours.values()) < 1.25 * hours["recover"] + 6


def test_the_quickstart_takes_minutes_on_two_cores(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.speed.usable_cores", lambda: 2)
    path = next(path for path in PIPELINES if path.stem == "quickstart")
    seconds = planned(path, tmp_path, Machine())
    assert 120 < sum(seconds.values()) < 900
