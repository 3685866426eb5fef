"""Data as pipeline files describe it: every source, what is wrong with it, and what its key is made of."""

import json

import pytest

from compress.errors import InputError
from compress.pipeline.json_schema import pipeline_schema
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline
from compress.pipeline.source import read_source
from tests.data.chats import MESSAGES, PLAIN
from tests.pipeline.test_json_schema import accepts

HEAD = """version: 1
name: small
model: demo
data:
  calibration: {source: demo, sequence_length: 64, samples: 32}
  heldout: {source: demo, split: heldout, sequence_length: 64, samples: 8}
  recovery:
"""
STEPS = """
    sequence_length: 64
    samples: 9
steps:
  - {name: recover, use: distill, tokens: 100k}
"""
MIXTURE = """
    source: mixture
    chat_template: chat.jinja
    parts:
      - {source: jsonl, paths: [chats.jsonl], field: said, weight: 0.7}
      - {source: demo, weight: 0.3}"""


@pytest.fixture
def load(tmp_path):
    (tmp_path / "chats.jsonl").write_text(json.dumps({"said": list(MESSAGES)}))
    (tmp_path / "chat.jinja").write_text(PLAIN)

    def load(recovery):
        (tmp_path / "p.yaml").write_text(HEAD + recovery.lstrip("\n") + STEPS)
        return load_pipeline(tmp_path / "p.yaml")

    return load


def recovery_of(plan):
    return next(node for node in plan.nodes if node.name == "data/recovery")


def test_a_mixture_is_read_with_its_paths_taken_from_the_files_folder(load, tmp_path):
    data = load(MIXTURE).data["recovery"]
    assert [part.source for part in data.settings.parts] == ["jsonl", "demo"]
    assert data.settings.parts[0].paths == (str(tmp_path / "chats.jsonl"),)
    assert data.chat_template == tmp_path / "chat.jinja"


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            "source: jsonl",
            "source: jsnl",
            "11:9: data.recovery.parts.0: source cannot be 'jsnl'; did you mean 'jsonl'? Allowed: demo, hf, ",
        ),
        (
            "field: said",
            "feild: said",
            "11:47: data.recovery.parts.0: 'feild' is not a key of parts; did you mean 'f",
        ),
        (
            "weight: 0.3",
            "weight: 0",
            "12:24: data.recovery.parts.1.weight: must be more than 0, found the number 0",
        ),
        (
            "paths: [chats.jsonl], ",
            "",
            "11:9: data.recovery.parts.0: an entry of parts needs the key 'paths': files",
        ),
        ("source: demo, ", "", "12:9: data.recovery.parts.1: an entry of parts needs the key 'source'"),
        (
            "    parts:",
            "    on_end: repeet\n    parts:",
            "10:5: data.recovery.on_end: expected 'stop' or 'repeat'",
        ),
        (
            "source: mixture",
            "source: mixtur",
            "data.recovery.source: a data source cannot be 'mixtur'; did you mean",
        ),
    ],
)
def test_what_is_wrong_in_a_mixture_is_told_with_its_place(load, right, wrong, message):
    assert right in MIXTURE
    with pytest.raises(InputError) as raised:
        load(MIXTURE.replace(right, wrong))
    assert message in str(raised.value)


def test_a_mixture_that_never_ends_needs_a_number(load, tmp_path):
    load(MIXTURE.replace("    parts:", "    on_end: repeat\n    parts:"))
    endless = (tmp_path / "p.yaml").read_text().replace("    samples: 9\n", "")
    (tmp_path / "p.yaml").write_text(endless)
    with pytest.raises(
        InputError, match="the source 'mixture' never ends; say how much to take with samples or"
    ):
        load_pipeline(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text(endless.replace("repeat", "stop"))
    load_pipeline(tmp_path / "p.yaml")


def test_editors_accept_a_mixture_and_draw_a_red_line_under_a_wrong_key(load, tmp_path):
    schema = pipeline_schema()
    load(MIXTURE)
    written = read_source(tmp_path / "p.yaml").data
    assert accepts(schema, written, schema)
    written["data"]["recovery"]["parts"][1]["splt"] = "train"
    assert not accepts(schema, written, schema)


def test_data_is_known_by_what_its_files_hold_and_not_by_where_they_are(load, memo, tmp_path):
    keys = [recovery_of(make_plan(load(MIXTURE), memo)).key]
    for name in ("chats.jsonl", "chat.jinja"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    moved = MIXTURE.replace("chats.jsonl", "moved-chats.jsonl").replace("chat.jinja", "moved-chat.jinja")
    keys.append(recovery_of(make_plan(load(moved), memo)).key)
    assert keys[1] == keys[0]
    (tmp_path / "moved-chat.jinja").write_text(PLAIN + " ")
    keys.append(recovery_of(make_plan(load(moved), memo)).key)
    (tmp_path / "moved-chats.jsonl").write_text(json.dumps({"said": list(MESSAGES[:3])}))
    keys.append(recovery_of(make_plan(load(moved), memo)).key)
    keys.append(recovery_of(make_plan(load(moved.replace("0.7", "0.6")), memo)).key)
    assert len(set(keys)) == 4


LINES = """
    source: jsonl
    paths: [chats.jsonl]
    field: said"""


def test_a_missing_file_is_named_at_its_line_when_the_plan_is_made(load, memo, tmp_path):
    with pytest.raises(
        InputError,
        match=r"^\S*p\.yaml:9:5: data\.recovery\.paths: no such file: \S*chat\.jsonl; did you mean 'chats",
    ):
        make_plan(load(LINES.replace("chats", "chat")), memo)


def test_a_missing_chat_template_is_named_at_its_line_when_the_plan_is_made(load, memo, tmp_path):
    with pytest.raises(
        InputError, match=r"^\S*p\.yaml:9:5: data\.recovery\.chat_template: no such file: .*other\.jinja"
    ):
        make_plan(load(MIXTURE.replace("chat.jinja", "other.jinja")), memo)


def test_a_misspelled_task_is_named_at_its_line_when_the_plan_is_made(load, memo, tmp_path):
    pipeline = load(LINES)
    (tmp_path / "p.yaml").write_text(
        (tmp_path / "p.yaml").read_text() + "evaluate: {tasks: [arc_challange]}\n"
    )
    with pytest.raises(
        InputError,
        match=r"^\S*p\.yaml:\d+:\d+: evaluate\.tasks: no task is called 'arc_challange'; did you mean 'arc",
    ):
        make_plan(load_pipeline(pipeline.path), memo)


def test_a_rehearsal_needs_none_of_the_files(load, memo):
    plan = make_plan(load(MIXTURE.replace("chats.jsonl", "nowhere.jsonl")), memo, rehearsal=True)
    assert recovery_of(plan).config.source == "demo"
