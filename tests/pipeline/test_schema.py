import json
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest

from compress import plugins
from compress.data import world
from compress.errors import InputError
from compress.pipeline.schema import DEMO_TASKS, Evaluate, ModelSource, load_pipeline
from compress.quantities import parse_count
from tests.pipeline.fake_steps import fake_steps  # noqa: F401  replaces the steps in every test here

BROKEN = Path(__file__).parent / "broken"

HEAD = "version: 1\nname: small\nmodel: demo\n"
STEPS = """steps:
  - {name: narrow, use: prune.width, target: {params: 50%}}
  - {name: recover, use: distill, tokens: 1.6M, learning_rate: 1e-4}
  - {name: int4, use: quantize.rtn}
  - {name: int8, use: quantize.rtn, bits: 8, from: recover}
"""

MESSAGES = (BROKEN / "messages.txt").read_text().splitlines()
"""What each broken file is told, a line a message: place, key, what is expected, the nearest match."""


@pytest.fixture
def load(tmp_path):
    def write_and_load(text, overrides=()):
        (tmp_path / "pipeline.yaml").write_text(text)
        return load_pipeline(tmp_path / "pipeline.yaml", overrides)

    return write_and_load


@pytest.mark.parametrize("file", sorted(file.name for file in BROKEN.glob("*.yaml")))
def test_a_broken_file_is_told_where_and_what_and_how_to_mend_it(file, monkeypatch):
    monkeypatch.chdir(BROKEN)
    with pytest.raises(InputError) as raised:
        load_pipeline(file)
    expected = [message for message in MESSAGES if message.startswith(f"{file}:")]
    assert expected
    for line, message in zip(str(raised.value).splitlines(), expected, strict=True):
        assert line.startswith(message)
    for word in ("pydantic", "Traceback", "http", "Input should", "[type="):
        assert word not in str(raised.value)


def test_all_mistakes_of_a_file_are_told_at_once_in_their_order(load):
    text = (
        HEAD.replace("version: 1", "version: 3")
        + "evaluate: {sample: 3}\nseed: x\n"
        + STEPS.replace("1.6M", "no")
    )
    with pytest.raises(InputError) as raised:
        load(text)
    places = [line.split("pipeline.yaml:")[1].split(":")[0] for line in str(raised.value).splitlines()]
    assert places == ["1", "4", "5", "8"]


def test_steps_start_from_the_one_before_unless_they_say_otherwise(load):
    pipeline = load(HEAD + STEPS)
    assert [(step.name, step.parent) for step in pipeline.steps] == [
        ("narrow", "original"), ("recover", "narrow"), ("int4", "recover"), ("int8", "recover"),
    ]  # fmt: skip


def test_settings_are_the_plugins_own_type_and_numbers_are_read_as_written(load):
    recover = load(HEAD + STEPS).steps[1]
    assert recover.config == plugins.step("distill").Config(tokens=1_600_000, learning_rate=1e-4)
    assert recover.where.endswith("pipeline.yaml:6:5")


def test_what_is_left_out_is_the_demo(load):
    pipeline = load(HEAD + STEPS)
    assert pipeline.model.kind == "demo"
    assert list(pipeline.data) == ["calibration", "recovery", "heldout"]
    assert pipeline.data["recovery"].settings.split == "train"
    assert pipeline.evaluate == Evaluate()
    assert pipeline.evaluate.uses_demo_tasks
    assert pipeline.text.startswith("version: 1\n")


def test_the_default_tasks_are_those_of_the_demo_world():
    assert (*world.DEMO_TASKS, world.TEXT_TASK) == DEMO_TASKS


def test_the_demo_data_keeps_the_three_splits_apart(load):
    splits = {name: source.settings.split for name, source in load(HEAD + STEPS).data.items()}
    assert len(set(splits.values())) == 3


@pytest.mark.parametrize(
    ("written", "kind"),
    [("demo", "demo"), ("{path: ./m}", "path"), ("{id: a/b, revision: v1}", "id"),
     ("{config: m/config.json}", "config"),
     ("{config: {model_type: llama}, dtype: bfloat16, tokenizer: bytes}", "config")],
)  # fmt: skip
def test_a_model_comes_from_one_of_four_places(load, written, kind):
    assert load(HEAD.replace("demo", written) + STEPS).model.kind == kind


def test_a_dtype_is_kept_by_the_name_it_is_stored_under(load):
    model = load("version: 1\nname: x\nmodel: {config: {a: 1}, dtype: bfloat16}\n" + STEPS).model
    assert model.dtype == "BF16"
    assert model.read_config() == {"a": 1}


def test_a_configuration_file_is_read_or_its_absence_explained(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert ModelSource(config=tmp_path / "config.json").read_config() == {"model_type": "llama"}
    assert ModelSource(config=tmp_path).read_config() == {"model_type": "llama"}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        ModelSource(config=tmp_path / "config.json").read_config()
    with pytest.raises(InputError, match=r"missing\.json cannot be read: No such file"):
        ModelSource(config=tmp_path / "missing.json").read_config()


def test_paths_start_from_the_folder_of_the_file(load, tmp_path):
    model = "version: 1\nname: x\nmodel: {path: models/a, tokenizer: ../tok}\n"
    data = (
        "data:\n  heldout: {source: text, paths: [a.txt, /abs/b.txt], sequence_length: 64}\n"
        "evaluate: {task_folder: tasks}\nsteps: [{name: int4, use: quantize.rtn}]\n"
    )
    pipeline = load(model + data)
    assert pipeline.model.path == tmp_path / "models/a"
    assert pipeline.model.tokenizer == tmp_path / "../tok"
    assert pipeline.evaluate.task_folder == tmp_path / "tasks"
    assert pipeline.data["heldout"].settings.paths == (str(tmp_path / "a.txt"), "/abs/b.txt")


def test_the_builtin_tokenizers_are_names_and_no_paths(load):
    model = load("version: 1\nname: x\nmodel: {path: m, tokenizer: bytes}\n" + STEPS).model
    assert model.tokenizer == "bytes"


def test_baselines_are_checkpoints_or_steps_on_the_original(load):
    rivals = (
        "baselines:\n  - {name: off-the-shelf, id: some/model, revision: v2}\n"
        "  - {name: just4, use: quantize.rtn}\n  - {name: shelf8, use: quantize.rtn, bits: 8, from: off-the-shelf}\n"
    )
    shelf, just4, shelf8 = load(HEAD + rivals + STEPS).baselines
    assert shelf.source.id == "some/model"
    assert (just4.steps[0].parent, just4.steps[0].config.bits) == ("original", 4)
    assert shelf8.steps[0].parent == "off-the-shelf"


def test_a_list_written_once_can_be_used_twice(load):
    text = HEAD + "profile: {batch_sizes: &small [1, 2], prompt_tokens: *small}\n" + STEPS
    assert load(text).profile.prompt_tokens == (1, 2)


def test_overrides_are_validated_like_the_file_and_named_in_messages(load):
    pipeline = load(HEAD + STEPS, ["seed=7", "steps.recover.tokens=2M", "profile.repeats=3"])
    assert (pipeline.seed, pipeline.steps[1].config.tokens, pipeline.profile.repeats) == (
        7,
        parse_count("2M"),
        3,
    )
    with pytest.raises(
        InputError, match=r"^--set steps\.recover\.tokns=2M: steps\.recover: 'tokns' is not a key"
    ):
        load(HEAD + STEPS, ["steps.recover.tokns=2M"])
    with pytest.raises(
        InputError, match=r"^--set seed=many: seed: expected a whole number, found the text 'many'$"
    ):
        load(HEAD + STEPS, ["seed=many"])


def test_a_place_can_be_asked_for_later(load):
    pipeline = load(HEAD + STEPS)
    assert pipeline.where("steps", 3, "from").endswith("pipeline.yaml:8:46")
    assert pipeline.where("steps", 0, "nothing").endswith("pipeline.yaml:5:5")


def test_a_pipeline_is_read_without_torch_and_at_once():
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from compress.pipeline.schema import load_pipeline\n"
        "try: load_pipeline(sys.argv[1])\n"
        "except Exception: pass\n"
        "print(time.perf_counter() - start, *{'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    file = BROKEN / "unknown_key.yaml"
    seconds, *heavy = subprocess.run(
        [sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not heavy
    assert float(seconds) < 3  # 0.2 s alone on a machine; other tests run beside this one


def paths_in(value, path=()):
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path] + [inner for key, item in entries for inner in paths_in(item, (*path, key))]


@pytest.mark.parametrize("junk", [None, True, -1, "no such", [], [{}], {"odd": [1]}], ids=str)
def test_whatever_stands_anywhere_is_accepted_or_refused_in_words(load, junk):
    good = (
        "version: 1\nname: x\nmodel: {id: a/b, family: llama}\n"
        "data:\n  heldout: {source: text, paths: [a], sequence_length: 8}\n"
        "  recovery: {source: jsonl, paths: [b], sequence_length: 8}\n"
        "evaluate: {tasks: [t], text: heldout}\nprofile: {batch_sizes: [1]}\ngates: {min_accuracy: 0.5}\n"
        "baselines: [{name: b, use: quantize.rtn}, {name: c, id: d/e}]\n"
        "steps:\n  - {name: recover, use: distill, tokens: 1M, data: recovery, teacher: original}\n"
        "  - {name: int4, use: quantize.rtn, from: recover}\n"
    )
    data = load(good)._source.data
    for path in paths_in(data)[1:]:
        changed = json.loads(json.dumps(data))
        reduce(getitem, path[:-1], changed)[path[-1]] = junk
        try:
            load(json.dumps(changed))
        except InputError as error:
            assert "pipeline.yaml:1:" in str(error)
