"""What the report says of vocabularies: how much of a text was compared, and how much of a model they are."""

import pytest

from compress.records import Measurement
from compress.report import tables
from compress.report.verdict import judge
from tests.report.sample_run import plain, sample_run, with_step


def cells_of(run, name):
    table = tables.results(run, None)
    row = next(row for row in table.rows if row.name == name)
    return dict(zip(table.columns, row.cells, strict=True))


def student_of(run):
    return next(step for step in run.steps if step.role == "student" and step.measurements)


def covered(step, share, without=()):
    coverage = Measurement(name="kl_coverage", value=share, unit="share", higher_is_better=True)
    return (*(m for m in step.measurements if m.name not in without), coverage)


def test_the_share_that_was_compared_stands_beneath_the_divergence():
    run = sample_run()
    student = student_of(run)
    cells = cells_of(with_step(run, student.name, measurements=covered(student, 0.93)), student.name)
    for column in ("KL divergence", "Same top token"):
        assert "at 93.0 % of positions" in [plain(note.text) for note in cells[column].notes]
    without = cells_of(run, student.name)
    assert not any("positions" in note.text for note in without["KL divergence"].notes)


def test_what_is_not_comparable_is_said_so():
    run = sample_run()
    student = student_of(run)
    measurements = covered(student, 0.21, without=("kl_divergence", "same_top_token"))
    cells = cells_of(with_step(run, student.name, measurements=measurements), student.name)
    for column in ("KL divergence", "Same top token"):
        assert cells[column].main.text == "not comparable"
        assert [plain(note.text) for note in cells[column].notes] == ["21.0 % of positions read alike"]


@pytest.mark.parametrize(
    ("share", "use", "status", "is_said"),
    [
        (0.63, "prune.width", "done", True),
        (0.3, "prune.width", "done", False),
        (0.63, "prune.vocab", "done", False),
        (0.63, "prune.width", "failed", False),
    ],
)
def test_a_large_vocabulary_that_no_step_shrinks_is_remarked_on(share, use, status, is_said):
    run = sample_run(status=status)
    original = next(step for step in run.steps if step.role == "original")
    facts = {"vocabulary_bytes": round(share * original.realized.weight_bytes)}
    run = with_step(with_step(run, original.name, facts=facts), student_of(run).name, use=use)
    said = [plain(finding.text) for finding in judge(run).findings if "vocabulary" in finding.text]
    assert len(said) == is_said
    assert not is_said or "63.0 % of the original's bytes are its vocabulary" in said[0]


@pytest.mark.parametrize(
    ("size", "rows", "said"),
    [
        (3.0, 2.5, ", more than"),
        (3.0, 0.1, "kept in more bits"),
        (0.5, 0.4, "80.0 % of them are the rows"),
        (0.5, 0.1, None),
    ],
)
def test_weights_that_take_more_than_the_parents_or_are_mostly_vocabulary_are_remarked_on(size, rows, said):
    run = sample_run()
    edge = next(step for step in run.steps if step.kind == "onnx" and step.role == "student")
    parent = run.step(edge.parent).realized.weight_bytes
    made = edge.realized.model_copy(update={"weight_bytes": round(size * parent)})
    run = with_step(run, edge.name, realized=made, facts={"vocabulary_bytes": round(rows * parent)})
    found = [
        plain(f.text) for f in judge(run).findings if plain(f.text).startswith(f"{edge.name}'s weights take ")
    ]
    assert len(found) == (said is not None) and (said is None or said in found[0])
