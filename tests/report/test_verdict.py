import pytest

from compress.records import GateResult, Measurement, RunRecord
from compress.report import doubts
from compress.report.verdict import best_student, judge
from tests.report.sample_run import plain, with_step, without
from tests.report.sample_run import sample_run as quickstart
from tests.report.training_facts import watched_run, watched_step


def sample_run(**changes) -> RunRecord:
    """The quickstart, with its best student in the original's runtime: what another one brings has tests of its own."""
    return with_step(quickstart(**changes), "edge", kind="packed")


def words(run: RunRecord) -> str:
    verdict = judge(run)
    return plain(" ".join([verdict.headline, *(f.text for f in verdict.findings)]))


def with_accuracy(run: RunRecord, name: str, value: float) -> RunRecord:
    others = tuple(m for m in run.step(name).measurements if m.name != "mean_accuracy")
    taken = Measurement(name="mean_accuracy", value=value, unit="share", higher_is_better=True)
    return with_step(run, name, measurements=(taken, *others))


def gate(step: str, passed: bool, measured: float | None = 0.0314) -> GateResult:
    return GateResult(gate="max_quality_drop", step=step, limit=0.03, measured=measured, passed=passed)


def test_the_headline_says_what_the_best_student_saves_and_what_it_costs():
    assert plain(judge(sample_run()).headline) == (
        "edge is 8.9x smaller and 5.2x faster, and loses 3.1 points of accuracy"
    )


def with_ratio(run: RunRecord, low: float, high: float) -> RunRecord:
    """The run with another interval of edge's time by the original's, about the same value."""
    taken = tuple(
        m.model_copy(update={"low": low, "high": high}) if m.name == "time_per_output_token_ratio" else m
        for m in run.step("edge").measurements
    )
    return with_step(run, "edge", measurements=taken)


def test_no_speed_is_claimed_where_its_interval_holds_one():
    run = with_ratio(sample_run(), 0.05, 1.02)
    assert plain(judge(run).headline) == "edge is 8.9x smaller, and loses 3.1 points of accuracy"
    assert (
        "The speed of edge cannot be told from the original's: it was 5.2x faster than the original in the median "
        "of 20 rounds (95 %: 0.98x to 20x as fast)." in words(run)
    )


def test_no_speed_is_claimed_where_no_interval_was_recorded():
    run = without(sample_run(), "time_per_output_token_ratio")
    assert plain(judge(run).headline) == "edge is 8.9x smaller, and loses 3.1 points of accuracy"
    assert (
        "Nothing is claimed of the speed of edge: it was 5.2x faster than the original in the median of 20 rounds, "
        "without an interval that would tell this from noise." in words(run)
    )
    assert "the speed of edge" not in words(without(run, "time_per_output_token")).lower()


def test_a_slower_student_is_called_slower_and_one_within_a_tenth_as_fast():
    assert "1.25x slower" in judge_of("int8", sample_run())
    assert "and as fast," in plain(judge(with_ratio(sample_run(), 0.95, 1.05)).headline)


def judge_of(name: str, run: RunRecord) -> str:
    """The headline of a run with only that leaf."""
    kept = tuple(
        step for step in run.steps if step.name in ("original", "narrow", "shallow", "recover", name)
    )
    return plain(judge(run.model_copy(update={"steps": kept})).headline)


def test_a_training_that_kept_what_was_there_before_is_told_not_to_have_helped():
    run = watched_run(kept_tokens=0, stopped_early=True)
    text = (
        "Training recover did not help: the weights of before were kept, because its held-out loss was never"
    )
    assert text in words(run)
    assert "did not help" not in words(run.model_copy(update={"rehearsal": True}))
    assert "did not help" not in words(watched_run(kept_tokens=4096 * 74, stopped_early=True))


def test_a_training_that_ends_worse_than_it_began_is_told_not_to_have_helped():
    step = watched_step({36: 2.5, 146: 2.25})
    run = with_step(sample_run(), "recover", curve=step.curve, facts=step.facts)
    text = "Training recover did not help by its held-out loss, which went from 1.90 to 2.25 nats per token"
    assert text in words(run)
    assert "did not help" not in words(watched_run()) + words(sample_run())


def test_without_gates_the_smallest_leaf_near_the_most_accurate_is_chosen():
    run = sample_run()
    assert best_student(run).name == "edge"
    assert best_student(with_accuracy(run, "edge", 0.80)).name == "int8"


def test_of_a_change_whose_interval_holds_zero_its_end_is_told():
    run = sample_run()
    change = Measurement(
        name="mean_accuracy_change", value=-0.004, unit="share", higher_is_better=True, low=-0.012, high=0.004
    )
    kept = tuple(m for m in run.step("edge").measurements if m.name != "accuracy_change")
    run = with_step(run, "edge", measurements=(*kept, change))
    assert "at most 1.2 points less accurate (95 %; measured -0.4 points)" in words(run)


def test_a_baseline_as_small_and_as_accurate_takes_the_headline():
    run = with_step(sample_run(), "original_int4", disk_bytes=1_000_000)
    verdict = judge(run)
    assert (verdict.tone, "original_int4 beats the best student, edge" in verdict.headline) == ("bad", True)
    assert "at least as accurate, and no larger (1.00 MB, 84.2 % against 1.29 MB, 83.8 %)" in words(run)


def test_a_baseline_as_fast_and_as_accurate_but_larger_is_told_without_taking_the_headline():
    run = sample_run()
    run = with_step(run, "original_int8", measurements=run.step("edge").measurements)
    run = with_accuracy(run, "original_int8", 0.9)
    verdict = judge(run)
    assert verdict.headline.startswith("edge is")
    assert "original_int8 is at least as accurate as edge, and its speed cannot be told from edge's" in words(
        run
    )


def test_baselines_that_are_less_accurate_are_named_as_losing():
    run = with_accuracy(with_accuracy(sample_run(), "original_int8", 0.8), "original_int4", 0.8)
    verdict = judge(run)
    assert "No baseline (original_int8 or original_int4) is as accurate as edge." in words(run)
    assert any(f.tone == "good" and f.text.startswith("No baseline") for f in verdict.findings)


def test_no_tick_is_given_where_a_baselines_accuracy_may_be_the_students():
    run = with_accuracy(with_accuracy(sample_run(), "original_int8", 0.8), "original_int4", 0.83)
    verdict = judge(run)
    assert "but by their 95 % intervals original_int4 may be." in words(run)
    assert not any(f.tone == "good" for f in verdict.findings)


def test_a_baseline_that_is_better_but_larger_and_slower_is_told_and_no_tick_is_given():
    run = sample_run()
    assert "original_int8 is at least as accurate as edge, but larger and 5.8x slower" in words(run)
    assert "No baseline" not in words(run)


def test_a_baseline_whose_speed_overlaps_is_told_to_be_undecided():
    run = sample_run()
    taken = tuple(
        m.model_copy(update={"low": 0.15, "high": 1.9}) if m.name == "time_per_output_token_ratio" else m
        for m in run.step("original_int8").measurements
    )
    text = words(with_step(run, "original_int8", measurements=taken))
    assert "and its speed cannot be told from edge's (95 %: 0.10x to 1.33x as fast), but larger" in text
    assert "No baseline" not in text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("kl_divergence", 1.1, "diverge by 1.10 nats/token"), ("same_top_token", 0.5, "same at only 50.0 %")],
)
def test_a_student_far_from_the_original_is_not_recommended_without_a_word(name, value, said):
    run = sample_run()
    taken = tuple(
        m.model_copy(update={"value": value}) if m.name == name else m for m in run.step("edge").measurements
    )
    far = judge(with_step(run, "edge", measurements=taken))
    assert far.tone == "warn" and judge(run).tone == "plain"
    assert any(f.tone == "warn" and said in plain(f.text) for f in far.findings)
    assert "another model than the original" not in words(run)


@pytest.mark.parametrize(("change", "advised"), [(0.03, False), (-0.03, True), (None, True)])
def test_more_recovery_is_advised_only_where_something_was_lost(change, advised):
    changed = {"mean_accuracy_change": change, "accuracy_change": change, "kl_divergence": 1.1}
    taken = tuple(
        m.model_copy(update={"value": changed.get(m.name, m.value)})
        for m in sample_run().step("edge").measurements
        if changed.get(m.name, 0) is not None
    )
    step = sample_run().step("edge").model_copy(update={"measurements": taken})
    (finding,) = doubts.other_model(step)
    assert ("more recovery may bring it back" in finding.text) is advised
    assert "What the tasks do not ask may be lost" in finding.text


def test_a_run_without_baselines_says_that_nothing_was_compared():
    run = sample_run()
    students = tuple(step for step in run.steps if step.role != "baseline")
    assert "No baseline was measured" in words(run.model_copy(update={"steps": students}))


def test_with_gates_the_smallest_leaf_that_passes_is_chosen_and_failures_are_told():
    run = sample_run(status="gates failed", gates=(gate("int8", True, 0.024), gate("edge", False)))
    assert best_student(run).name == "int8"
    assert "edge fails the gate max_quality_drop (3.14 points, at most 3.00 points allowed)." in words(run)
    assert "int8 passes the gate" in words(run)


def test_when_no_leaf_passes_the_headline_says_so():
    run = sample_run(status="gates failed", gates=(gate("int8", False), gate("edge", False, None)))
    verdict = judge(run)
    assert (verdict.tone, verdict.headline) == (
        "bad",
        "No student passed the quality gates; int8 came closest",
    )
    assert "edge fails the gate max_quality_drop (not measured, at most 3.00 points allowed)." in words(run)


def test_unmeasured_quality_is_said_and_the_smallest_leaf_is_chosen():
    run = without(sample_run(), "mean_accuracy", "accuracy_change")
    assert "edge is 8.9x smaller and 5.2x faster, but what it lost in quality was not measured" in words(run)
    assert "chosen among 2 candidates as the smallest on disk; quality was not measured" in words(run)
    assert "Student and baselines cannot be compared" in words(run)


def test_nothing_measured_at_all_still_gives_a_verdict():
    assert "edge is 8.9x smaller, but what it lost in quality was not measured" in words(
        without(sample_run())
    )


def test_a_rehearsal_claims_nothing_about_models():
    text = words(sample_run(rehearsal=True))
    assert text.startswith("The rehearsal went through: every step of this pipeline runs")
    assert "smaller" not in text and "baseline" not in text.lower()


@pytest.mark.parametrize(
    ("status", "start"),
    [
        ("failed", "The run failed before it was finished"),
        ("interrupted", "The run was interrupted"),
        ("running", "The run has not finished yet"),
    ],
)
def test_an_unfinished_run_says_so_first(status, start):
    text = words(sample_run(status=status, error="recover: the loss is not finite"))
    assert text.startswith(start)
    assert "It stopped with: recover: the loss is not finite" in text


def test_a_run_without_students_says_that_nothing_was_compressed():
    run = sample_run()
    assert judge(run.model_copy(update={"steps": run.steps[:1]})).headline.startswith(
        "Nothing was compressed"
    )
    assert judge(run.model_copy(update={"steps": ()})).best is None


def test_answers_no_better_than_guessing_are_called_that():
    assert "The answers of edge cannot be told from guessing (33.3 % right by chance)." in words(
        with_accuracy(with_accuracy(sample_run(), "edge", 0.32), "int8", 0.31)
    )


def test_limits_are_told_in_their_own_units():
    def said(gate, **more):
        result = GateResult(gate=gate, step="int8", passed=False, finding="lost", **more)
        return words(sample_run(gates=(result,)))

    margin = said(
        "perplexity, worse than the original", measured=0.081, limit=0.05, unit="share", bound="at most"
    )
    assert "int8 fails the gate perplexity, worse than the original (8.1 %, at most 5.0 % allowed)." in margin
    points = said(
        "f1 of a, worse than the original", measured=0.04, limit=0.03, unit="points", bound="at most"
    )
    assert "(4.00 points, at most 3.00 points allowed)" in points
    size = said("disk_bytes", measured=2e9, limit=1e9, unit="bytes", bound="at most")
    assert "at most" in size and "2000000000" not in size
    least = said("same_top_token", measured=0.8, limit=0.9, unit="share", bound="at least")
    assert "(80.0 %, at least 90.0 % allowed)" in least
    few = GateResult(
        gate="accuracy of a", step="int8", limit=0.5, measured=0.6, passed=False, finding="not enough items",
        unit="share", bound="at least", n=40, enough_items=900, judged_at_once=6,
    )  # fmt: skip
    told = "40 items are not enough to prove it; about 900 items would do (6 limits are judged at once)"
    assert told in words(sample_run(gates=(few,)))


def with_chance(run, **levels):
    """The run as one of tasks that are not the demo's: what guessing scores stands in the measurements alone."""

    def told(m):
        return (
            m.model_copy(update={"chance": levels.get(m.labels.get("task"))}) if m.name == "accuracy" else m
        )

    steps = tuple(s.model_copy(update={"measurements": tuple(map(told, s.measurements))}) for s in run.steps)
    return run.model_copy(update={"steps": steps, "chance": {}})


def test_guessing_is_told_of_tasks_that_no_record_knows_beforehand():
    run = with_accuracy(with_accuracy(sample_run(), "edge", 0.32), "int8", 0.31)
    known = with_chance(run, facts=0.25, agreement=0.5, sums=0.25)
    assert "The answers of edge cannot be told from guessing (33.3 % right by chance)." in words(known)
    partly = with_chance(sample_run(), facts=0.25, sums=0.9)
    assert "cannot be told from guessing in sums (90.0 % right by chance)." in words(partly)


def test_a_wrong_prediction_of_the_size_is_told():
    run = sample_run()
    wrong = run.step("narrow").realized.model_copy(update={"num_parameters": 1})
    assert "predicted by the plan was not the size made: narrow" in words(
        with_step(run, "narrow", predicted=wrong)
    )


def test_the_cards_of_a_launched_step_are_paid_for():
    run = sample_run(usd_per_hour=2.0)
    only = run.steps[1].model_copy(update={"seconds": 3600.0, "device_seconds": 8 * 3600.0, "cached": False})
    assert "$16.00 at $2.00 per hour of each card" in words(run.model_copy(update={"steps": (only,)}))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"processes": 2}, "was rehearsed with 2 processes on this machine"),
        ({"processes": 1}, "was rehearsed with one process on this machine"),
        ({}, "was not rehearsed: it was in the store"),
    ],
)
def test_a_rehearsal_says_how_much_of_a_launch_was_tried(facts, said):
    run = sample_run(rehearsal=True)
    name = run.steps[1].name
    settings = {**run.steps[1].settings, "launch": {"processes": 2, "nodes": 1, "rendezvous": None}}
    assert f"The launch of {name} {said}" in words(with_step(run, name, settings=settings, facts=facts))
    assert "launch" not in words(run)
