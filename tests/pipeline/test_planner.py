"""Work a step asks for before it: shared, keyed, and part of the step's own key."""

from types import SimpleNamespace

import pytest

import compress.prune
from compress import plugins
from compress.digests import DigestMemo
from compress.errors import InputError
from compress.pipeline.plan import why_not_cached
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline
from compress.plugins import DataRef, ModelRef, Prepared, StepConfig
from compress.records import Work

PIPELINE = """
version: 1
name: small
model:
  tokenizer: bytes
  config:
    {model_type: llama, architectures: [LlamaForCausalLM], vocab_size: 259, hidden_size: 64, intermediate_size: 192,
     num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, max_position_embeddings: 128}
data:
  calibration: {source: demo, split: calibration, sequence_length: 64, samples: 32}
  other: {source: demo, split: calibration, sequence_length: 64, samples: 16}
  heldout: {source: demo, split: heldout, sequence_length: 64, samples: 8}
evaluate: {tasks: [world_facts], samples: 4}
steps:
"""


class Measure(StepConfig):
    calibration: DataRef = "calibration"
    samples: int = 8


class Shrink(StepConfig):
    keep: float = 0.5
    calibration: DataRef = "calibration"
    samples: int = 8


class Compare(StepConfig):
    teacher: ModelRef = "original"


def prepare_shrink(config):
    if config.keep > 1:
        raise InputError("keep is a share")
    return {
        "scores": Prepared("prune.measure", Measure(calibration=config.calibration, samples=config.samples))
    }


STEP = {"VERSION": 1, "ACCEPTS": ("hf",), "predict": lambda spec, config: spec}
MODULES = {
    "prune.measure": SimpleNamespace(
        Config=Measure, VERSION=1, ACCEPTS=("hf",), PRODUCES="scores", estimate=lambda *_: Work(flops=6.0)
    ),
    "prune.compare": SimpleNamespace(Config=Compare, VERSION=1, ACCEPTS=("hf",), PRODUCES="scores"),
    "prune.shrink": SimpleNamespace(
        Config=Shrink,
        PRODUCES="hf",
        prepare=prepare_shrink,
        estimate=lambda *_: Work(),
        rehearse=lambda config: config.model_copy(update={"samples": 2}),
        **STEP,
    ),
    "prune.rank": SimpleNamespace(
        Config=Compare,
        PRODUCES="hf",
        prepare=lambda config: {"told": Prepared("prune.compare", config)},
        **STEP,
    ),
}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Plan a list of steps, written as YAML."""
    names, internal, step = plugins.step_names(), plugins.internal, plugins.step
    known = (*names, "prune.shrink", "prune.rank")
    monkeypatch.setattr(plugins, "step_names", lambda: known)
    monkeypatch.setattr(plugins, "internal", lambda name: MODULES.get(name) or internal(name))
    monkeypatch.setattr(plugins, "step", lambda name: MODULES.get(name) or step(name))

    def make(*steps, rehearsal=False):
        file = tmp_path / "small.yaml"
        file.write_text(PIPELINE + "\n".join(f"  - {step}" for step in steps))
        return make_plan(load_pipeline(file), DigestMemo(tmp_path / "digests"), rehearsal)

    return make


def named(plan, use):
    return [node.name for node in plan.nodes if node.use == use]


def test_a_step_gets_what_it_prepares_made_from_its_own_parent(plan):
    made = plan("{name: a, use: prune.shrink}")
    scores = made["original/measure"]
    assert (scores.role, scores.parent, scores.kind, scores.spec) == ("internal", "original", "scores", None)
    assert scores.inputs == {"calibration": "data/calibration"} and scores.work.flops == 6.0
    assert made["a"].inputs == {"calibration": "data/calibration", "scores": scores.name}
    order = [node.name for node in made.nodes]
    assert order.index("data/calibration") < order.index(scores.name) < order.index("a")


def test_steps_that_prepare_the_same_share_it(plan):
    made = plan("{name: a, use: prune.shrink}", "{name: b, use: prune.shrink, keep: 0.25, from: original}")
    assert named(made, "prune.measure") == ["original/measure"]
    assert made["a"].inputs["scores"] == made["b"].inputs["scores"] == "original/measure"
    assert made["a"].key != made["b"].key


@pytest.mark.parametrize("change", ["samples: 9", "calibration: other"])
def test_steps_that_prepare_differently_do_not(plan, change):
    made = plan("{name: a, use: prune.shrink}", f"{{name: b, use: prune.shrink, {change}, from: original}}")
    first, second = named(made, "prune.measure")
    assert first == "original/measure" and second == f"original/measure-{made[second].key[:8]}"
    assert made["b"].inputs["scores"] == second


def test_another_parent_is_measured_for_itself(plan):
    made = plan("{name: a, use: prune.shrink}", "{name: b, use: prune.shrink}")
    assert named(made, "prune.measure") == ["original/measure", "a/measure"]


def test_what_is_prepared_is_part_of_the_steps_key(plan, monkeypatch):
    before = plan("{name: a, use: prune.shrink}")
    monkeypatch.setattr(MODULES["prune.measure"], "VERSION", 2)
    after = plan("{name: a, use: prune.shrink}")
    assert before["a"].key != after["a"].key
    assert why_not_cached(after["a"], {"a": before["a"].ingredients}) == "scores changed"


def test_a_rehearsal_prepares_for_the_tiny_settings(plan):
    made = plan("{name: a, use: prune.shrink}", rehearsal=True)
    assert made["original/measure"].config.samples == 2


def test_a_model_a_prepared_module_names_is_an_edge(plan):
    made = plan("{name: a, use: prune.shrink}", "{name: b, use: prune.rank, teacher: a, from: original}")
    assert made["original/compare"].inputs == {"teacher": "a"}


def test_a_plan_cut_after_a_step_keeps_what_the_step_prepares(plan):
    made = plan("{name: a, use: prune.shrink}", "{name: b, use: prune.shrink}").until("a")
    assert named(made, "prune.measure") == ["original/measure"]


def test_a_mistake_found_while_preparing_names_the_step(plan):
    with pytest.raises(InputError, match=r"small.yaml.*step 'a': keep is a share"):
        plan("{name: a, use: prune.shrink, keep: 2}")


def test_an_internal_module_is_no_yaml_name(tmp_path, monkeypatch):
    folder = tmp_path / "rooms"
    folder.mkdir()
    for name, line in {"open": "", "closed": "INTERNAL = True\n"}.items():
        (folder / f"{name}.py").write_text(f"VERSION = 1\n{line}PRODUCES = 'hf'\n")
    rooms = [*compress.prune.__path__, str(folder)]
    monkeypatch.setattr(compress.prune, "__path__", rooms)
    monkeypatch.setattr(compress.prune.__spec__, "submodule_search_locations", rooms)
    names = set(plugins._step_names())
    assert "prune.open" in names and "prune.closed" not in names
