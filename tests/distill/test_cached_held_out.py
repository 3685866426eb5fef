"""Held-out text that the teacher was asked about once, against the teacher itself.

Shapes: B rows, T positions.
"""

import pytest
import torch

from compress.data.tokens import PackedTokens
from compress.distill import cache_teacher, step
from compress.distill.cache_teacher import HELD_OUT, Config
from compress.distill.cached_objective import CachedDistillation
from compress.distill.divergences import named
from compress.distill.objective import Distillation, Recipe
from compress.distill.signals import TeacherSignals
from compress.distill.teacher import load_teacher
from compress.models.checkpoint import load_model
from compress.records import Artifact
from compress.train import checkpoint
from compress.train.held_out import held_out_batches
from tests.fakes import FakeContext, Stopped
from tests.models.tiny import token_ids
from tests.train.inputs import context, parent, payload, tokens

ROWS, LENGTH = 40, 16
SETTINGS = {"tokens": 24 * 16, "batch_tokens": 64, "learning_rate": 3e-3, "precision": "fp32"}
WATCHED = {
    **SETTINGS,
    "cache_teacher": True,
    "held_out": "held_out",
    "held_out_rows": 30,
    "evaluate_every": 0.5,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Surer of what comes next than a model at random."""
    made = parent(tmp_path_factory.mktemp("teacher"), "qwen3", seed=5)
    model = load_model(made.path)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)  # about as much in the tail as of trained ones
    model.save_pretrained(made.path)
    return made


@pytest.fixture
def held_out(tmp_path):
    made = tokens(tmp_path / "held_out", token_ids(num=ROWS, length=LENGTH, seed=4))
    return made.model_copy(update={"key": "held out"})


@pytest.fixture(params=["whole rows", "documents apart", "documents together"])
def across(request, monkeypatch):
    """Whether texts see each other. Rows but for whole ones hold documents of five tokens, some not to be learned."""
    whole = PackedTokens.learning_batch

    def marked(self, indices):
        batch = whole(self, indices)
        learned = batch.rows[:, None] % 7 != torch.arange(LENGTH) % 7
        learned[batch.rows == 2] = False
        object.__setattr__(batch, "positions", (torch.arange(LENGTH) % 5).expand_as(batch.ids))
        object.__setattr__(batch, "learned", learned)
        return batch

    if request.param != "whole rows":
        monkeypatch.setattr(PackedTokens, "learning_batch", marked)
    return request.param == "documents together"


def asked(teacher, data, folder, rows=30, kept=HELD_OUT, **settings) -> Artifact:
    """Do what the engine does with a prepared node."""
    config = Config(**kept.model_dump(), tokens=None, first_rows=rows, precision="fp32", **settings)
    outcome = cache_teacher.run(teacher, config, FakeContext(folder, inputs={"data": data}, seed=7))
    return Artifact(key=folder.name, kind="teacher_signals", path=folder, facts=outcome.facts)


def figures(objective, data, across, rows=30):
    """The means over all targets of these rows, and how many there are."""
    sums, count = {}, 0
    for batch in held_out_batches(PackedTokens.open(data.path), rows, 4, across):
        found, num = objective.held_out(batch)
        sums = {name: sums.get(name, 0) + float(value) for name, value in found.items()}
        count += num
    return {name: value / count for name, value in sums.items()}, count


@pytest.mark.parametrize("label_weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_its_figures_are_those_of_the_teacher_itself(
    temperature, label_weight, across, teacher, held_out, tmp_path
):
    made = asked(
        teacher, held_out, tmp_path / "asked", temperature=temperature, attend_across_documents=across
    )
    student, signals = load_model(parent(tmp_path / "student").path), TeacherSignals.open(made.path)
    recipe = Recipe(named("forward_kl"), temperature, label_weight)
    whole = Distillation(student, load_teacher(teacher.path, "fp32"), recipe, 259)
    expected, num_expected = figures(whole, held_out, across)
    found, num = figures(CachedDistillation(student, signals, label_weight, 259, signals), held_out, across)
    assert num == num_expected
    # The likeliest token, the entropies and the text's own loss are exact.
    assert found["same_top"] == expected["same_top"] < 1
    exact = {"label_loss", "student_entropy", "teacher_entropy"} & found.keys()
    assert {name: found[name] for name in exact} == pytest.approx({n: expected[n] for n in exact}, rel=1e-5)
    # The divergence is a mean of samples.
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5 if label_weight == 1 else 0.01)
    if temperature == 1:
        assert found.keys() == expected.keys()
        assert found["kl"] == pytest.approx(expected["kl"], rel=0.01)
    else:
        assert expected.keys() - found.keys() == {"kl", "teacher_entropy"}


def test_a_bucket_alone_would_tell_too_little(teacher, held_out, tmp_path):
    """Why held-out text has settings of its own."""
    student = load_model(parent(tmp_path / "student").path)
    whole = Distillation(student, load_teacher(teacher.path, "fp32"), Recipe(named("forward_kl")), 259)
    bucket = TeacherSignals.open(
        asked(teacher, held_out, tmp_path / "bucket", kept=cache_teacher.CacheSettings(tail="bucket")).path
    )
    found, _ = figures(CachedDistillation(student, bucket, 0.0, 259, bucket), held_out, False)
    expected, _ = figures(whole, held_out, False)
    assert found["kl"] < 0.97 * expected["kl"]


def test_only_the_first_rows_are_asked_about_and_all_where_there_are_fewer(teacher, held_out, tmp_path):
    for rows, there in ((3, 3), (ROWS, ROWS), (99, ROWS)):
        made = asked(teacher, held_out, tmp_path / str(rows), rows)
        assert TeacherSignals.open(made.path).rows == list(range(there)) and made.facts["rows"] == there


def test_it_is_asked_alike_whatever_is_kept_for_training():
    def wanted(**settings):
        return step.prepare(step.Config(**{**WATCHED, **settings}))["held_out_signals"]

    assert (
        wanted().on == "teacher" and wanted().config.data == "held_out" and wanted().config.first_rows == 30
    )
    kept = {"cache_teacher": {"top_k": 4, "tail": "bucket"}, "tokens": 9_999, "batch_tokens": 48}
    assert wanted(**kept).config == wanted().config
    for changed in ({"temperature": 2}, {"held_out_rows": 8}, {"attend_across_documents": True}):
        assert wanted(**changed).config != wanted().config
    assert step.prepare(step.Config(**{**WATCHED, "held_out": None})).keys() == {"signals"}
    assert step.prepare(step.Config(**{**WATCHED, "cache_teacher": False})) == {}


def distilled(student, teacher, held_out, folder, kind=FakeContext, **settings):
    config = step.Config(**{**WATCHED, **settings})
    inputs = context(folder, kind=kind, teacher=teacher, held_out=held_out)
    for name, prepared in step.prepare(config).items():
        made = FakeContext(
            folder.with_name(f"{folder.name}-{name}"),
            inputs={"data": {"recovery": inputs.inputs["data"], "held_out": held_out}[prepared.config.data]},
            seed=7,
        )
        if not (made.folder / "signals.json").exists():
            cache_teacher.run(teacher, prepared.config, made)
        signals = Artifact(key=name, kind="teacher_signals", path=made.folder)
        inputs.inputs = {**inputs.inputs, name: signals}
    return step.run(student, config, inputs)


def looks(outcome):
    """What each look at held-out text saw."""
    return [outcome.facts["before"]["held_out"]] + [
        point["held_out"] for point in outcome.facts["curve"] if point["held_out"]
    ]


def test_training_watches_what_it_would_with_a_running_teacher(teacher, held_out, tmp_path):
    student = parent(tmp_path / "student")
    cached = looks(distilled(student, teacher, held_out, tmp_path / "cached"))
    online = looks(distilled(student, teacher, held_out, tmp_path / "online", cache_teacher=False))
    assert len(cached) == len(online) == 3 and cached[0].keys() == online[0].keys()
    for name in cached[0]:
        assert cached[0][name] == pytest.approx(online[0][name], rel=0.01)
        # A share of few tokens moves by whole ones: two or three of 450 are the same.
        assert cached[-1][name] == pytest.approx(online[-1][name], rel=0.1, abs=0.005)
    assert cached[0]["kl"] == pytest.approx(cached[0]["loss"]) != cached[0]["label_loss"]


def test_training_stops_by_the_divergence_and_keeps_the_best_weights(teacher, held_out, tmp_path):

    student = parent(tmp_path / "student")
    wild = {"learning_rate": 1.0, "evaluate_every": 0.01, "stop_after": 1, "warmup": 0}
    outcome = distilled(student, teacher, held_out, tmp_path / "result", **wild)
    assert outcome.facts["stopped_early"] and outcome.facts["kept_tokens"] == 0
    before, after = looks(outcome)
    assert after["loss"] > before["loss"] == outcome.facts["best_held_out_loss"]
    ours, theirs = payload(tmp_path / "result"), payload(student.path)
    assert ours["model.safetensors"] == theirs["model.safetensors"]


def test_stopped_and_resumed_it_sees_the_same_and_ends_in_the_same_bytes(
    teacher, held_out, tmp_path, monkeypatch
):
    class StopsAfterThree(FakeContext):
        def progress(self, *arguments, **figures):
            super().progress(*arguments, **figures)
            self.stopping = len(self.reports) == 3

    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)
    student, often = parent(tmp_path / "student"), {"checkpoint_seconds": 0, "stop_after": 9}
    whole = distilled(student, teacher, held_out, tmp_path / "whole" / "result", **often)
    with pytest.raises(Stopped):
        distilled(student, teacher, held_out, tmp_path / "cut" / "result", StopsAfterThree, **often)
    cut = distilled(student, teacher, held_out, tmp_path / "cut" / "result", **often)
    assert payload(tmp_path / "whole" / "result") == payload(tmp_path / "cut" / "result")
    assert looks(whole) == looks(cut) and cut.facts["resumed"] == 1
