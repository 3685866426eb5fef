"""What the README and CONTRIBUTING show works: YAML validates, modules satisfy their folder's contract."""

import importlib
import json
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from compress import cli, plugins
from compress.pipeline.schema import load_pipeline
from compress.records import Artifact, ModelSpec
from compress.train.distribution import Distribution
from tests.fakes import FakeContext

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def module(source):
    made = types.ModuleType("example")
    exec(source, made.__dict__)
    return made


def test_the_pipeline_in_the_readme_is_valid(tmp_path):
    text, gates, _ = blocks(README, "yaml")
    (tmp_path / "gated.yaml").write_text(text + gates)
    assert len(load_pipeline(tmp_path / "gated.yaml").gates.limits) == 3
    (tmp_path / "my.yaml").write_text(text)
    assert [s.name for s in load_pipeline(tmp_path / "my.yaml").steps] == [
        "narrow",
        "recover",
        "int8",
        "int4",
        "edge",
    ]


def test_the_distillation_in_the_readme_is_valid_after_the_pruning_above_it(tmp_path):
    whole, _, steps = blocks(README, "yaml")
    before = whole[: whole.index("  - {name: recover")]
    (tmp_path / "my.yaml").write_text(before + steps.removeprefix("steps:\n"))
    [_, recover] = load_pipeline(tmp_path / "my.yaml").steps
    assert (recover.name, recover.config.divergence) == ("recover", {"use": "jsd", "beta": 0.1})


def test_every_command_in_the_readme_exists():
    shown = set(re.findall(r"`?compress ([a-z]+)", "\n".join([*blocks(README, "sh"), README])))
    assert set(cli.main.commands) <= shown
    assert {
        name
        for name in shown
        if name in "run plan validate status report compare export init schema doctor gc"
    }


def test_the_python_in_the_readme_uses_what_is_public():
    import compress

    [text] = blocks(README, "python")
    for name in re.findall(r"compress\.(\w+)", text):
        assert hasattr(compress, name)


def test_every_command_shows_an_example():
    for name, command in cli.main.commands.items():
        result = CliRunner().invoke(cli.main, [name, "--help"])
        assert result.exit_code == 0 and f"Example: compress {name}" in result.output, command


def test_the_example_step_keeps_the_step_contract(tmp_path):
    step = module(blocks(CONTRIBUTING, "python")[0])
    (tmp_path / "parent").mkdir()
    (tmp_path / "parent" / "file").write_text("weights")
    spec = ModelSpec(config={}, tensors={}, num_parameters=0)
    parent = Artifact(key="k", kind="hf", path=tmp_path / "parent", spec=spec)
    context = FakeContext(tmp_path / "work")
    config = step.rehearse(step.Config(note="hello"))
    outcome = step.run(parent, config, context)
    assert outcome.spec == step.predict(spec, config) and outcome.facts == {"note": "hello"}
    assert (context.folder / "file").read_text() == "weights"
    assert step.estimate(spec, config, {}).disk_bytes == 0


def test_the_example_loss_is_a_divergence():
    example = module(blocks(CONTRIBUTING, "python")[1])
    logits, others = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)

    def loss(student, teacher):
        return example.divergence(Distribution.of(student), Distribution.of(teacher), example.Config())

    assert torch.equal(loss(logits, logits)[0], torch.zeros(5))
    loss_N, slope_NV = loss(logits, others)
    assert (loss_N > 0).all()
    torch.testing.assert_close(torch.autograd.grad(loss_N.sum(), logits)[0], slope_NV)


def test_the_example_metric_scores_what_it_says(tmp_path):
    from compress.models.layout import layout

    metric = module(blocks(CONTRIBUTING, "python")[2])
    tiny = layout(plugins.load("models.families", "llama").TINY)
    scores = metric.score(SimpleNamespace(layout=tiny))
    assert set(scores) == set(metric.UNITS)
    assert scores["ffn"].shape == (tiny.num_layers, tiny.length("ffn"))


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_pipeline_is_valid_and_points_to_its_schema(path):
    assert path.read_text().startswith("# yaml-language-server: $schema=pipeline.schema.json")
    assert load_pipeline(path).steps


def test_the_shipped_schema_is_the_current_one():
    import compress

    shipped = json.loads((ROOT / "pipelines" / "pipeline.schema.json").read_text())
    assert shipped == compress.pipeline_schema(), "run: compress schema > pipelines/pipeline.schema.json"


@pytest.mark.parametrize(
    "module", ["pruning.readme", "pruning.real_readme", "distilling.readme", "real_models.readme"]
)
def test_a_benchmark_table_is_made_of_the_committed_results(module):
    benchmarks = ROOT / "tests" / "benchmarks"
    sys.path.insert(0, str(benchmarks))
    try:
        readme, tables = importlib.import_module(module), importlib.import_module("tables")
    finally:
        sys.path.remove(str(benchmarks))
    rows = json.loads((benchmarks / "results" / f"{readme.NAME}.json").read_text())["rows"]
    begin, end = tables.marks(readme.NAME)
    shown = README.partition(begin)[2].partition(end)[0]
    assert shown.strip() == readme.table(rows).strip()
