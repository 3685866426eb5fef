import re

import pytest

from compress.report import appendix
from compress.report.charts import BOTTOM, LEFT, RIGHT, TOP
from compress.report.looks import comments
from compress.report.page import render
from compress.report.trainings import log_ticks, outer_ticks, training
from tests.report.sample_run import plain, sample_run
from tests.report.training_facts import BEFORE, LOOKS, watched_run, watched_step

KEPT = 4096 * 74
"""Tokens at the lowest held-out loss."""


def panels(step):
    return {panel.y_name: panel for panel in training(step).panels}


def words(step) -> str:
    return plain(" ".join(comment.text for comment in comments(step)))


@pytest.mark.parametrize("losses", [[], [1.0], [float("nan"), float("inf"), 2.0]])
def test_a_training_without_two_finite_points_is_not_drawn(losses):
    step = sample_run().step("recover")
    points = [
        step.curve[0].model_copy(update={"loss": loss, "tokens": i + 1}) for i, loss in enumerate(losses)
    ]
    assert training(step.model_copy(update={"curve": tuple(points)})) is None


def test_the_look_before_training_stands_at_zero_tokens_and_all_lies_in_the_frame():
    held_out = panels(watched_step())["Loss, nats per token"].lines[1]
    first, *others = held_out.dots
    assert first.kind == "original" and "before training: 1.90" in first.title
    assert first.x < others[0].x and first.y < others[0].y
    for line in (line for panel in training(watched_step()).panels for line in panel.lines):
        for place in line.path.split():
            x, y = map(float, place.split(","))
            assert LEFT <= x <= RIGHT and TOP <= y <= BOTTOM


def test_a_look_that_is_not_finite_is_left_out():
    step = watched_step(LOOKS | {110: float("inf")})
    assert len(panels(step)["Loss, nats per token"].lines[1].dots) == 4


def test_a_training_nobody_watched_is_one_line():
    (panel,) = training(sample_run().step("recover")).panels
    assert [line.name for line in panel.lines] == ["text it learns from"] and panel.events == ()


def test_what_was_kept_and_an_early_stop_are_marked():
    step = watched_step(kept_tokens=KEPT, stopped_early=True)
    panel = panels(step)["Loss, nats per token"]
    assert [dot.kind for dot in panel.lines[1].dots] == ["original", "look", "best", "look", "look"]
    assert [event.text for event in panel.events] == ["kept", "stopped early"]
    step = watched_step(kept_tokens=0, stopped_early=True)
    assert "kept: before" in {event.text for event in panels(step)["Loss, nats per token"].events}


def test_after_an_early_stop_the_axis_goes_on_to_what_was_asked_for():
    step = watched_step(kept_tokens=KEPT, stopped_early=True)
    longer = step.model_copy(update={"settings": {"tokens": 2 * step.curve[-1].tokens}})
    last, _ = panels(longer)["Loss, nats per token"].lines[0].path.split()[-1].split(",")
    assert float(last) == pytest.approx((LEFT + 8 + RIGHT) / 2, abs=0.2)
    assert "Stopped early, after 602 k of 1.20 M tokens" in words(longer)
    assert "What it was after 303 k tokens was kept." in words(longer)


def test_divergence_and_watched_tasks_have_charts_of_their_own():
    drawn = panels(watched_step())
    assert list(drawn) == [
        "Loss, nats per token",
        "KL to the teacher on held-out text, nats per token",
        "Accuracy on watched tasks",
    ]
    assert [line.name for line in drawn["Accuracy on watched tasks"].lines] == ["world_sums"]


def test_a_loss_that_is_all_divergence_is_said_to_be_and_drawn_once():
    loss = dict.fromkeys(LOOKS, 0.25)
    before = BEFORE | {"held_out": {"loss": 1.21, "kl": 1.2}}
    drawn = panels(watched_step(loss, before=before))
    assert len(drawn) == 2
    assert drawn["Loss, nats per token"].lines[1].name == "held-out text (all of it KL to the teacher)"


def test_an_axis_is_labelled_below_its_lowest_and_above_its_highest_value():
    assert outer_ticks(0.13, 1.5, 5) == pytest.approx([0, 0.5, 1.0, 1.5])
    assert log_ticks(0.0024, 0.33) == [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]
    assert log_ticks(2e-7, 3.0)[0] == 1e-7 and log_ticks(2e-7, 3.0)[-1] == 10.0
    for panel in training(watched_step()).panels:
        assert panel.y_ticks[0].at == BOTTOM and panel.y_ticks[-1].at == TOP


def test_a_loss_that_falls_far_is_drawn_on_a_logarithmic_axis_that_says_so():
    assert "Loss, nats per token (logarithmic)" in panels(watched_step(LOOKS | {146: 0.01}))


def test_a_figure_that_never_moves_is_drawn():
    before = BEFORE | {"tasks": {"world_sums": 0.5}}
    panel = panels(watched_step(before=before))["Accuracy on watched tasks"]
    assert panel.y_ticks[0].at == BOTTOM and len(panel.y_ticks) >= 2


def test_held_out_and_training_loss_differ_without_colour_and_are_named():
    html = render(watched_run())
    assert re.search(r"\.curve\.held-out \{[^}]*stroke: var\(--rival\)[^}]*stroke-dasharray", html)
    assert not re.search(r"\.curve\.learned \{[^}]*dasharray", html)
    for style, name in (("learned", "text it learns from"), ("held-out", "held-out text")):
        assert re.search(rf'class="curve {style}" d="[^"]*"/></svg>{name}</span>', html)
    assert 'class="curve held-out"' not in render(sample_run())


def test_a_training_that_helped_is_told_by_how_much():
    step = watched_step(kept_tokens=KEPT)
    assert (
        "Held-out loss, nats per token: 1.90 before training, 0.500 in the weights that were kept (74 % lower)."
        in (words(step))
    )
    assert "world_sums: 25.0 % before training, 50.0 % in the weights that were kept." in words(step)
    assert "0.700 at the end (63 % lower)" in words(watched_step())


def test_a_result_that_is_not_exact_to_the_bit_says_why():
    why = "it was worked on by 2, then 1 processes"
    run = watched_run(bit_exact=False, bit_exact_ended_by=why)
    text = f"recover would not come out the same to the bit again: {why}."
    assert text in words(run.step("recover"))
    assert render(run).count(text) == 2, "beside the training and where one reads how to repeat the run"
    assert "the same to the bit" not in render(watched_run(bit_exact=True))


def test_the_table_beside_a_training_begins_before_it_and_has_what_was_evaluated():
    table = appendix.curve_twin(watched_step())
    assert table.columns[3:] == ("Held-out loss", "KL to the teacher", "world_sums")
    first, second = ([plain(cell.main.text) for cell in row.cells] for row in table.rows[:2])
    assert first == ["none yet"] * 3 + ["1.90 nats", "1.20 nats", "25.0 %"]
    assert second[3:] == ["0.800 nats", "0.250 nats", "50.0 %"]
    assert len(table.rows) == 5
