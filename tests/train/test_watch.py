"""A training that is looked at on the way: the same weights, a record of what was seen, and an end in time."""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from pydantic import ValidationError

from compress import plugins
from compress.data.tasks import write_tasks
from compress.digests import DigestMemo
from compress.errors import InputError
from compress.measure import quality
from compress.models.checkpoint import load_model, load_tokenizer
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline
from compress.records import Artifact, CurvePoint
from compress.train import checkpoint, step
from compress.train.held_out import held_out_batches
from compress.train.objective import NextToken
from compress.train.settings import TrainingSettings
from compress.train.tasks import WatchedTasks
from compress.train.watch import Watch, falls
from tests.data.chats import MESSAGES, PLAIN, REFUSING
from tests.fakes import FakeContext
from tests.train.inputs import InMemory, context, countable_ids, parent, payload, tokens
from tests.train.test_batches import Marked
from tests.train.test_resume import DiesAt, Killed, Stopped, StopsAt

CONFIG = step.Config(
    tokens=16 * 4 * 12, batch_tokens=16 * 4, learning_rate=3e-3, checkpoint_seconds=0, precision="fp32"
)
WATCHED = CONFIG.model_copy(
    update={"held_out": "heldout", "held_out_rows": 5, "evaluate_every": 0.25, "task_samples": 6}
)
TASKS = WATCHED.model_copy(update={"tasks": ("world_sums", "world_facts")})
TAUGHT = """version: 1
name: small
model: {path: model}
evaluate: {tasks: [world_facts], samples: 4}
steps:
STEPS  - {name: tune, use: train, data: chats, tokens: 100k, held_out: heldout, tasks: [world_facts],
     task_chat_template: true}
data:
  heldout: {source: demo, split: heldout, sequence_length: 64, samples: 8}
  taught: {source: jsonl, paths: [chats.jsonl], sequence_length: 64, chat_template: chat.jinja}
  chats:
    source: jsonl
    paths: [chats.jsonl]
    sequence_length: 64
"""
BEFORE = {
    "before": "  - {name: sft, use: train, data: taught, tokens: 100k}\n",
    "vocabulary": "  - {name: cut, use: prune.vocab, target: {tokens: 256}, corpus: heldout}\n",
}
DOWNWARDS = countable_ids(num=8).flip(1)
"""What training on rows that count upwards soon unlearns."""


@pytest.fixture(autouse=True)
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return parent(tmp_path_factory.mktemp("watched") / "parent", attention_dropout=0.1)


def train(model, config, folder, kind=FakeContext, rows=DOWNWARDS):
    held_out = tokens(folder.with_name("heldout"), rows).model_copy(update={"key": "heldout"})
    given = context(folder, kind=kind, held_out=held_out)
    return step.run(model, config, given), given


def mean_loss(folder, ids_BT) -> float:
    with torch.no_grad():
        return float(load_model(folder, dtype=torch.float32)(input_ids=ids_BT, labels=ids_BT).loss)


def test_looking_changes_no_bit_of_the_result(model, tmp_path):
    step.run(model, CONFIG, context(tmp_path / "blind" / "result"))
    train(model, TASKS, tmp_path / "watched" / "result")
    assert payload(tmp_path / "blind" / "result") == payload(tmp_path / "watched" / "result")


def test_what_was_seen_stands_at_its_points_of_the_curve(model, tmp_path):
    outcome, given = train(model, WATCHED, tmp_path / "result")
    points = [CurvePoint(**point) for point in outcome.facts["curve"]]
    assert [point.tokens // 64 for point in points if point.held_out] == [3, 6, 9, 12]
    before, after = mean_loss(model.path, DOWNWARDS[:5]), mean_loss(tmp_path / "result", DOWNWARDS[:5])
    assert outcome.facts["before"]["held_out"]["loss"] == pytest.approx(before, rel=1e-5)
    assert points[-1].held_out["loss"] == pytest.approx(after, rel=1e-5)
    assert given.reports[-1][3]["held_out_loss"] == points[-1].held_out["loss"]


@pytest.mark.parametrize(("kind", "end"), [(StopsAt, Stopped), (DiesAt, Killed)])
def test_an_interrupted_training_sees_the_same(model, tmp_path, kind, end):
    config = TASKS.model_copy(update={"stop_after": 2})
    whole, _ = train(model, config, tmp_path / "whole" / "result")
    with pytest.raises(end):
        train(model, config, tmp_path / "cut" / "result", kind)
    resumed, _ = train(model, config, tmp_path / "cut" / "result")
    assert payload(tmp_path / "whole" / "result") == payload(tmp_path / "cut" / "result")
    for name in ("before", "best_held_out_loss", "kept_tokens", "stopped_early"):
        assert resumed.facts[name] == whole.facts[name]
    seen = [[(p["tokens"], p["held_out"], p["tasks"]) for p in o.facts["curve"]] for o in (whole, resumed)]
    assert seen[0] == seen[1]


def test_it_stops_when_held_out_loss_rises_and_keeps_the_best_weights(model, tmp_path):
    config = WATCHED.model_copy(update={"tokens": 16 * 4 * 200, "evaluate_every": 0.05, "stop_after": 2})
    outcome, _ = train(model, config, tmp_path / "result")
    facts = outcome.facts
    assert facts["stopped_early"] and facts["tokens"] == facts["kept_tokens"] + 2 * 10 * 64 < 16 * 4 * 200
    kept = mean_loss(tmp_path / "result", DOWNWARDS[:5])
    assert kept == pytest.approx(facts["best_held_out_loss"], rel=1e-5)
    assert facts["curve"][-1]["held_out"]["loss"] > kept + 1e-3


def test_to_return_what_was_there_before_training_is_said(model, tmp_path):
    config = WATCHED.model_copy(update={"learning_rate": 1.0, "stop_after": 2})
    outcome, given = train(model, config, tmp_path / "result")
    assert outcome.facts["kept_tokens"] == 0
    assert mean_loss(tmp_path / "result", DOWNWARDS[:5]) == mean_loss(model.path, DOWNWARDS[:5])
    (warning,) = given.warnings
    assert "nothing was learned" in warning and "6 steps" in warning and "`learning_rate`" in warning


def test_to_return_what_was_learned_is_not_remarked_on(model, tmp_path):
    outcome, given = train(
        model, WATCHED.model_copy(update={"stop_after": 2, "warmup": 0.0}), tmp_path / "result"
    )
    assert outcome.facts["kept_tokens"] > 0 and given.warnings == []


def test_answers_are_those_that_measurement_finds(model, tmp_path):
    outcome, _ = train(model, TASKS, tmp_path / "result")
    (tmp_path / "demo").mkdir()
    write_tasks(tmp_path / "demo")
    given = FakeContext(
        tmp_path / "measured", inputs={"tasks": Artifact(key="t", kind="tasks", path=tmp_path / "demo")}
    )
    result = Artifact(key="r", kind="hf", path=tmp_path / "result", spec=outcome.spec)
    measured = quality.measure(result, quality.Config(tasks=TASKS.tasks, samples=6), given)
    accuracy = {str(m.labels["task"]): m.value for m in measured if m.name == "accuracy"}
    assert outcome.facts["curve"][-1]["tasks"] == pytest.approx(accuracy)


def watched(tmp_path, losses, rights) -> list[str]:
    """Look once a loss; return the warnings."""
    given = FakeContext(tmp_path / "result")
    watch = Watch(InMemory(countable_ids(num=1)), WATCHED, given)
    for number, (loss, right) in enumerate(zip(losses, rights, strict=True)):
        watch.note(number, {"loss": loss}, {"sums": [place < right for place in range(40)]}, {})
    return given.warnings


def test_a_task_that_falls_while_the_loss_improves_raises_the_alarm_once(tmp_path):
    (warning,) = watched(tmp_path, [3.0, 2.0, 1.9, 1.8], [20, 30, 15, 14])
    assert (
        "'sums' fell from 75.0 % to 37.5 % of 40 items while the held-out loss fell from 2.000 to 1.900"
        in warning
    )


def test_a_task_that_falls_with_the_model_or_by_chance_raises_none(tmp_path):
    assert watched(tmp_path, [2.0, 3.0], [30, 10]) == []
    assert watched(tmp_path, [2.0, 1.9], [30, 26]) == []


def test_a_fall_is_told_from_chance_by_the_answers_that_changed():
    before = [True] * 50 + [False] * 50
    assert falls(before, [True] * 38 + [False] * 62)
    churned = [False] * 26 + [True] * 24 + [True] * 14 + [False] * 36
    assert sum(churned) == 38 and not falls(before, churned)
    assert not falls(before, before) and not falls(before, [True] * 100)
    assert falls([True] * 9, [False] * 9)


class TellsOfIt(NextToken):
    def held_out(self, batch):
        loss, count = self(batch)
        return {"loss": loss, "same_top": torch.tensor(count / 4)}, count


def test_held_out_rows_are_read_as_training_reads_its_own():
    marked = Marked(countable_ids(num=6, length=3))
    apart, together = (held_out_batches(marked, 5, 2, asked) for asked in (False, True))
    assert [len(batch) for batch in apart] == [len(batch) for batch in together] == [2, 2, 1]
    assert [sum(len(b.targets) for b in batches) for batches in (apart, together)] == [5, 10]


def test_an_objective_may_tell_more_than_its_loss(model, tmp_path, monkeypatch):
    monkeypatch.setattr("compress.train.objective.NextToken", TellsOfIt)
    outcome, _ = train(model, WATCHED, tmp_path / "result")
    assert outcome.facts["before"]["held_out"]["same_top"] == 0.25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": "recovery"}, "is the data learned from"),
        ({"tasks": ("world_sums",)}, "'tasks' needs 'held_out'"),
        ({"stop_after": 3}, "'stop_after' needs 'held_out'"),
        ({"task_chat_template": True}, "'task_chat_template' is how 'tasks' are asked, and there are none"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TrainingSettings(tokens=64, **settings)


def test_held_out_data_is_an_edge_only_where_it_is_asked_for():
    assert plugins.references_of(CONFIG) == {"data": "data"}
    assert plugins.references_of(WATCHED) == {"data": "data", "held_out": "data"}


def test_the_same_rows_under_another_name_are_refused(model, tmp_path):
    rows = tokens(tmp_path / "tokens")
    with pytest.raises(InputError, match="'heldout' and 'recovery' are the same rows"):
        step.run(model, WATCHED, context(tmp_path / "result", held_out=rows))


def test_a_task_without_accuracy_is_refused(model, tmp_path):
    tasks = WatchedTasks(["world_text"], 2, load_tokenizer(model.path), tmp_path / "tasks")
    with pytest.raises(InputError, match="'world_text' has no accuracy to watch"):
        tasks.answers(load_model(model.path))


@pytest.mark.parametrize("as_chat", [False, True], ids=["as text", "as chat"])
def test_tasks_are_asked_by_the_template_of_the_data_where_it_is_wanted(model, tmp_path, as_chat):
    rows = tokens(tmp_path / "tokens").model_copy(update={"key": "other"})
    given = context(tmp_path / "result", data=rows, held_out=tokens(tmp_path / "heldout", DOWNWARDS))
    (rows.path / "chat_template.jinja").write_text(REFUSING)
    with pytest.raises(InputError, match="chat template refuses") if as_chat else nullcontext():
        step.run(model, TASKS.model_copy(update={"task_chat_template": as_chat}), given)


def of(template):
    return json.dumps({"chat_template": template})


NAMED = [{"name": "other", "template": PLAIN}]
STORED = {
    "nowhere": ({}, "", "the tokenizer in .* has no chat template"),
    "a processor's": ({"chat_template.json": of(PLAIN)}, "", "has no chat template"),
    "empty": ({"chat_template.jinja": ""}, "", "has no chat template"),
    "by other names": ({"tokenizer_config.json": of(NAMED)}, "", "called 'other', and none called 'default'"),
    "broken": ({"chat_template.jinja": "{% for"}, "", r"chat_template\.jinja:1: no valid chat template"),
    "made here": ({}, "made", "tokenizer is made here and has no chat template"),
    "beside the model": ({"chat_template.jinja": PLAIN}, "", None),
    "in its settings": ({"tokenizer_config.json": of(PLAIN)}, "", None),
    "by name": (
        {"tokenizer_config.json": of([*NAMED, {"name": "default", "template": PLAIN}])},
        "",
        None,
    ),
    "in the data": ({}, "data", None),
    "learned before": ({}, "before", None),
    "not learned before": ({}, "vocabulary", "has no chat template"),
}


@pytest.mark.parametrize("files, where, message", STORED.values(), ids=STORED)
def test_the_plan_knows_whether_there_is_a_template_to_ask_tasks_by(model, tmp_path, files, where, message):
    folder = shutil.copytree(model.path, tmp_path / "model")
    (tmp_path / "chat.jinja").write_text(PLAIN)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": list(MESSAGES)}))
    for name, text in files.items():
        kept = json.loads((folder / name).read_text()) if name == "tokenizer_config.json" else {}
        (folder / name).write_text(json.dumps({**kept, **json.loads(text)}) if kept else text)
    text = TAUGHT.replace("STEPS", BEFORE.get(where, ""))
    text = (
        text.replace("model: {path: model", "model: {path: model, tokenizer: bytes")
        if where == "made"
        else text
    )
    (tmp_path / "p.yaml").write_text(text + ("    chat_template: chat.jinja\n" if where == "data" else ""))
    pipeline = load_pipeline(tmp_path / "p.yaml")
    refused = message and rf"p\.yaml:\d+:\d+: step 'tune': task_chat_template: .*{message}"
    with pytest.raises(InputError, match=refused) if message else nullcontext():
        make_plan(pipeline, DigestMemo(tmp_path / "digests"))


def test_evaluation_is_refused_for_the_same_reasons(model, tmp_path):
    shutil.copytree(model.path, tmp_path / "model")
    (tmp_path / "p.yaml").write_text(
        "version: 1\nname: small\nmodel: {path: model, tokenizer: bytes}\n"
        "evaluate: {tasks: [world_facts], samples: 4, chat_template: true}\n"
        "steps:\n  - {name: int8, use: quantize.rtn, bits: 8}\n"
    )
    with pytest.raises(InputError, match=r"evaluate\.chat_template: .* made here and has no chat template"):
        make_plan(load_pipeline(tmp_path / "p.yaml"), DigestMemo(tmp_path / "digests"))


def test_data_without_conversations_hand_on_no_template_and_the_step_says_so_at_once(model, tmp_path):
    given = context(tmp_path / "result", held_out=tokens(tmp_path / "heldout", DOWNWARDS))
    given.inputs["held_out"] = given.inputs["held_out"].model_copy(update={"key": "heldout"})
    with pytest.raises(InputError, match="task_chat_template: neither the model's tokenizer nor the data"):
        step.run(model, TASKS.model_copy(update={"task_chat_template": True}), given)
