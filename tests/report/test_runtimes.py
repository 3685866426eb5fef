"""What a runtime brings is never told as what compressing brought."""

import pytest

from compress.records import Measurement
from compress.report import charts, figures
from compress.report.key_figures import key_figures
from compress.report.tables import speed
from compress.report.verdict import best_student, judge
from tests.report.sample_run import latency, plain, sample_run, step, taken, with_step

ONNX, TORCH = "onnxruntime 1.23.0, cpu", "transformers 5.23.0, torch 2.13.0, float32, cpu"


def in_runtime(measurements, runtime):
    timed = ("time_to_first_token", "time_per_output_token", "tokens_per_second")
    return tuple(m.model_copy(update={"runtime": runtime if m.name in timed else None}) for m in measurements)


def to_rival(value, low, high):
    labels = {"batch_size": 1, "prompt_tokens": 32}
    return Measurement(
        name="time_per_output_token_to_rival", value=value, unit="ratio", higher_is_better=False, labels=labels,
        low=low, high=high, n=20,
    )  # fmt: skip


def judged(ratio=(1.0, 0.96, 1.04), rival=True, accuracy=0.861):
    """The quickstart with its best student in ONNX Runtime, beside the original there."""
    run = sample_run()
    for each in run.steps:
        runtime = ONNX if each.kind == "onnx" else TORCH
        run = with_step(run, each.name, measurements=in_runtime(each.measurements, runtime))
    if not rival:
        return run
    measured = in_runtime(taken((accuracy, 0.949, 0.702), 0.047, 0.934, 3.55, 5.2, 63e6), ONNX)
    other = step(
        "original_in_edge", "export.onnx", "original_int4", (2_836_416, 1_931_264), role="baseline", kind="onnx",
        rival_of=("edge",), measurements=measured,
    )  # fmt: skip
    edge = run.step("edge")
    run = with_step(run, "edge", measurements=(*edge.measurements, to_rival(*ratio)))
    return run.model_copy(update={"steps": (*run.steps, other)})


def words(run):
    verdict = judge(run)
    return plain(" ".join([verdict.headline, *(f.text for f in verdict.findings)]))


def test_the_headline_is_against_the_original_in_the_students_runtime():
    assert plain(judge(judged()).headline) == (
        "edge is 1.57x smaller than the original at 4 bits in ONNX Runtime and as fast, "
        "and loses 3.1 points of accuracy"
    )


def test_what_the_runtime_brings_is_told_beside_the_whole():
    assert (
        "Beside the original as it is, edge is 8.9x smaller and 5.2x faster, of which the original at 4 bits in ONNX "
        "Runtime brings 5.7x smaller and 5.2x faster without compressing." in words(judged())
    )


def test_a_student_faster_in_its_runtime_is_called_so_and_one_that_cannot_be_told_is_not():
    assert "in ONNX Runtime and 2.0x faster, and loses" in words(judged((0.5, 0.48, 0.52)))
    undecided = words(judged((0.5, 0.3, 1.2)))
    assert "in ONNX Runtime, and loses" in undecided
    assert "The speed of edge cannot be told from original_in_edge's: it was 2.0x faster" in undecided


def test_where_the_original_was_not_measured_there_the_headline_claims_no_speed():
    run = judged(rival=False)
    assert plain(judge(run).headline) == "edge is 8.9x smaller, and loses 3.1 points of accuracy"
    assert "which was not measured there: how much of it the runtime brings cannot be told." in words(run)


def test_a_rival_as_accurate_and_as_fast_keeps_the_tick_away():
    text = words(judged(accuracy=0.99))
    assert (
        "original_in_edge is at least as accurate as edge, and its speed cannot be told from edge's" in text
    )
    assert "No baseline" not in text


def test_the_runtime_stands_in_the_speed_table():
    run = judged()
    (table, *_) = speed(run, best_student(run))
    assert table.columns[0] == "Runtime"
    shown = {row.name: row.cells[0].main.text for row in table.rows}
    assert (shown["original"], shown["edge"], shown["int4"]) == (
        "transformers",
        "ONNX Runtime",
        "transformers",
    )


def test_the_table_gives_the_ratio_to_the_rival_that_was_timed_in_turns():
    (table, *_) = speed(judged((0.5, 0.48, 0.52)), None)
    times = {row.name: row.cells[table.columns.index("Time per output token")] for row in table.rows}
    assert "0.50x original_in_edge, in turns" in [plain(note.text) for note in times["edge"].notes]
    assert not any("in turns" in note.text for note in times["int4"].notes)


@pytest.fixture
def drifting():
    """The machine was three times as slow while int8 and the original beside it were timed."""
    run = sample_run()
    slow = tuple(
        m.model_copy(
            update={
                "value": m.value * (3 if "time" in m.name or "usd" in m.name else 1 / 3),
                "beside": {
                    k: v * (3 if "time" in m.name or "usd" in m.name else 1 / 3) for k, v in m.beside.items()
                },
            }
        )
        if m.beside
        else m
        for m in latency(0.96, 99e6)
    )
    kept = tuple(m for m in run.step("int8").measurements if not m.labels.get("batch_size"))
    return with_step(run, "int8", measurements=(*kept, *slow))


def test_what_is_drawn_and_priced_is_the_paired_ratio_of_the_originals_own(drifting):
    profile = figures.profiles(drifting)[0]
    original, int8 = figures.original(drifting), drifting.step("int8")
    for name in ("time_per_output_token", "tokens_per_second", "usd_per_million_output_tokens"):
        ratio = figures.to_original(drifting, int8, name, profile)
        shown = figures.paired(drifting, int8, name, profile).value
        assert shown == pytest.approx(ratio * figures.within(original, name, profile).value)
        assert 0.9 < ratio < 1.1
    cost = charts.costs(drifting)[1]
    assert cost.of(int8) / cost.of(original) == pytest.approx(1 / 0.96)
    values = {
        row.name: row.cells[
            1 + ["time_to_first_token", "time_per_output_token"].index("time_per_output_token")
        ]
        for row in speed(drifting, None)[0].rows
    }
    assert values["int8"].main.values[0] / values["original"].main.values[0] == pytest.approx(1 / 0.96)


def test_key_figures_name_the_rival_and_the_runtime():
    run = judged()
    found = dict(key_figures(run, best_student(run)))
    notes = [plain(note.text) for note in found["Time per output token"].notes]
    assert "as fast as original_in_edge" in notes and "in ONNX Runtime" in notes
    assert "1.57x smaller than original_in_edge" in [plain(note.text) for note in found["Size on disk"].notes]
