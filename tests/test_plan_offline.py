"""`compress plan --device` on the shipped pipelines, with no network and no card."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.cli import main
from compress.machine import Machine

ROOT = Path(__file__).parents[1]
ON_THE_HUB = sorted(
    path.name
    for path in (ROOT / "pipelines").glob("*.yaml")
    if re.search(r"^model: \{id:", path.read_text(), re.M)
)


@pytest.fixture(autouse=True)
def laptop(monkeypatch, tmp_path):
    monkeypatch.setattr("compress.machine.this_machine", Machine)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path / "home"))


def call(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_there_are_pipelines_of_hub_models():
    assert {"llama8b_to_4b.yaml", "llama8b_search.yaml", "llama8b_16_gpus.yaml", "qwen3_8b_to_6b.yaml"} <= {
        *ON_THE_HUB
    }


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_every_shipped_pipeline_is_planned_for_a_named_card_offline(name):
    code, output = call("plan", ROOT / "pipelines" / name, "--device", "8xh100-80gb")
    assert code == 0
    assert output.startswith("planned for 8 cards h100-80gb, 79.6 GiB each")
    assert (
        "nothing was looked up on the hub" in output
        and "data.recovery: which commit its text is at" in output
    )
    assert re.search(r"about \d+ h \d+ min of work, about \$\d+", output.splitlines()[-1])
    assert "it will write about" in output and "/home" not in output


def test_a_card_that_is_too_small_is_refused_in_the_plan_with_the_step_and_the_sum():
    code, output = call("plan", ROOT / "pipelines/llama8b_to_4b.yaml", "--device", "t4")
    assert code == 5
    refused = re.search(
        r"`compress run` would refuse: step '(\w+)' needs about ([\d.]+) GiB on the card; t4 gives a process 14\.2 GiB",
        output,
    )
    assert refused is not None and float(refused[2]) > 14.2


def test_hours_depend_on_the_card():
    outputs = {
        device: call("plan", ROOT / "pipelines/quickstart.yaml", "--device", device)[1]
        for device in ("cpu", "h200")
    }
    assert outputs["cpu"].startswith("planned for this machine: a processor alone")
    assert outputs["h200"].startswith("planned for 1 card h200")
    times = [output.splitlines()[-1] for output in outputs.values()]
    assert times[0] != times[1]


def test_a_name_of_no_card_is_refused_with_the_nearest():
    code, output = call("plan", ROOT / "pipelines/quickstart.yaml", "--device", "h10-80gb")
    assert code == 2 and "no card is called 'h10-80gb'; did you mean 'h100-80gb'?" in output


def test_a_card_of_ones_own_is_planned_for(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/cards.yaml").write_text(
        "mine: {memory_mib: 98304, bf16_tflops: 500, memory_gb_per_second: 3000, link_gb_per_second: 100}\n"
    )
    code, output = call("plan", ROOT / "pipelines/quickstart.yaml", "--device", "2xmine")
    assert code == 0 and output.startswith("planned for 2 cards mine, 96.0 GiB each")


def test_a_file_of_hub_models_is_validated_offline_and_says_what_was_not_looked_up():
    code, output = call("validate", ROOT / "pipelines/qwen3_8b_to_6b.yaml")
    assert code == 0 and "valid, 11 models" in output
    assert "not looked up on the hub: Qwen/Qwen3-8B: its shape is as published" in output


def test_a_run_offline_is_refused_before_anything_is_made(tmp_path):
    code, output = call("run", ROOT / "pipelines/llama8b_to_4b.yaml")
    assert code == 2 and "the hub cannot be reached" in output
    assert not (tmp_path / "home" / "store").exists()
