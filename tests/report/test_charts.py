import itertools

from compress.report import charts
from compress.report.labels import CHARACTER, place
from compress.report.verdict import best_student
from tests.report.sample_run import TASKS, sample_run, with_step, without


def drawn(run, cost=0):
    return charts.scatters(run, charts.costs(run)[cost], best_student(run))


def test_every_measured_model_is_drawn_and_linked_to_its_parent():
    run = sample_run()
    whole = drawn(run)[-1]
    assert len(whole.marks) == len(run.steps)
    students = [step for step in run.steps if step.role == "student"]
    assert len(whole.links) == len(students)


def test_more_accurate_is_higher_and_larger_is_further_right():
    run = sample_run()
    marks = dict(zip((step.name for step in run.steps), drawn(run)[-1].marks, strict=True))
    assert marks["original"].y < marks["recover"].y < marks["narrow"].y < marks["shallow"].y
    assert marks["edge"].x < marks["int8"].x < marks["original_int8"].x < marks["original"].x


def test_the_kinds_tell_original_baselines_and_the_chosen_student_apart():
    kinds = [mark.kind for mark in drawn(sample_run())[-1].marks]
    assert kinds.count("original") == kinds.count("best") == 1
    assert kinds.count("baseline") == 2


def test_steps_that_broke_the_model_are_left_out_of_the_close_up():
    close, whole = drawn(sample_run())
    assert {m.label.text for m in close.marks} == {
        "original", "recover", "int8", "int4", "edge", "original_int8", "original_int4"
    }  # fmt: skip
    assert {m.label.text for m in whole.marks if m.label} == {"original", "narrow", "shallow"}
    assert close.chance is None and whole.chance is not None


def test_one_chart_is_enough_when_all_models_are_about_as_good():
    run = sample_run()
    kept = tuple(step for step in run.steps if step.name not in ("narrow", "shallow"))
    assert len(drawn(run.model_copy(update={"steps": kept, "chance": {}}))) == 1


def test_the_chance_line_is_the_mean_over_the_tasks_that_have_an_accuracy():
    assert drawn(sample_run(tasks=(*TASKS, "perplexity_only")))[-1].chance.label.text.endswith("33.3\u00a0%")
    assert drawn(sample_run(chance={"facts": 0.25}))[-1].chance is None


def test_marks_and_ticks_stay_inside_the_frame():
    for chart in [*drawn(sample_run(), 0), *drawn(sample_run(), 1)]:
        for mark in chart.marks:
            assert charts.LEFT <= mark.x <= charts.RIGHT
            assert charts.TOP <= mark.high <= mark.y <= mark.low <= charts.BOTTOM
        assert len(chart.y_ticks) >= 2 and len(chart.x_ticks) >= 2
        assert all(charts.LEFT <= tick.at <= charts.RIGHT for tick in chart.x_ticks)


def box_of(label):
    width = CHARACTER * len(label.text)
    left = label.x - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
    return (left, label.y - 10, left + width, label.y)


def test_names_do_not_lie_on_one_another():
    for chart in drawn(sample_run()):
        boxes = [box_of(mark.label) for mark in chart.marks if mark.label]
        boxes += [box_of(chart.chance.label)] if chart.chance else []
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_the_name_of_the_line_of_guessing_keeps_away_from_models_that_guess():
    run = sample_run()
    for name, value in (("original", 1 / 3), ("edge", 0.34), ("narrow", 0.335)):
        guess = tuple(
            m.model_copy(update={"value": value, "low": 0.2, "high": 0.5}) if m.name == "mean_accuracy" else m
            for m in run.step(name).measurements
        )
        run = with_step(run, name, measurements=guess)
    for chart in (chart for cost in (0, 1) for chart in drawn(run, cost) if chart.chance):
        left, top, right, bottom = box_of(chart.chance.label)
        names = [box_of(mark.label) for mark in chart.marks if mark.label]
        marks = [(m.x - 6, m.y - 6, m.x + 6, m.y + 6) for m in chart.marks]
        for a in names + marks:
            assert a[2] <= left or right <= a[0] or a[3] <= top or bottom <= a[1]


def test_a_long_name_is_cut():
    (label,) = place({"x" * 50: (100.0, 100.0)}, [(100.0, 100.0)], charts.FRAME).values()
    assert len(label.text) == 22


def test_nothing_is_drawn_of_fewer_than_two_models_or_of_figures_that_are_not_finite():
    run = sample_run()
    assert drawn(without(run)) == []
    assert drawn(run.model_copy(update={"steps": run.steps[:1]})) == []
    nan = tuple(m.model_copy(update={"value": float("nan")}) for m in run.step("edge").measurements)
    assert len(drawn(with_step(run, "edge", measurements=nan))[-1].marks) == len(run.steps) - 1


def test_models_of_one_size_and_quality_are_still_drawn():
    run = sample_run()
    twin = run.step("recover").model_copy(update={"name": "twin"})
    steps = (run.step("recover"), twin)
    assert len(drawn(run.model_copy(update={"steps": steps}))[0].marks) == 2


def test_a_long_curve_is_thinned_but_keeps_its_ends():
    points = sample_run().step("recover").curve
    kept = charts.thinned(points, 10)
    assert len(kept) == 10 and kept[0] == points[0] and kept[-1] == points[-1]
    assert charts.thinned(points, 1000) == list(points)
