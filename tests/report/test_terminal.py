from compress.report import compare, summary, units
from compress.report.text import visible
from tests.report.sample_run import plain, sample_run, with_step, without


def test_the_summary_tells_verdict_size_quality_and_speed():
    text = plain(summary(sample_run()))
    assert text.splitlines()[0] == "edge is 8.9x smaller, and loses 3.1 points of accuracy"
    for line in (
        "best student  edge (export.onnx)",
        "size          1.29 MB, 1.42 M parameters; original 11.4 MB, 2.84 M parameters",
        "quality       83.8 % mean accuracy; original 86.9 % mean accuracy",
        "change        -3.1 points (95 %: -4.0 to -2.2 points)",
        "speed         0.444 ms per output token, 5.2x the original's speed (95 %: 5.0x to 5.4x)",
    ):
        assert line in text.splitlines()


def test_the_summary_of_a_rehearsal_gives_no_figures_of_a_student():
    text = summary(sample_run(rehearsal=True))
    assert "random tiny model" in text and "best student" not in text


def test_the_summary_says_what_was_not_measured():
    text = summary(without(sample_run()))
    assert "quality       not measured" in text and "speed         not measured" in text


def test_equal_runs_do_not_differ():
    name = sample_run().id
    assert compare(sample_run(), sample_run()) == f"{name} and {name} do not differ."


def test_the_comparison_shows_settings_sizes_and_measurements_that_differ_and_no_others():
    a = sample_run()
    b = with_step(
        a, "int4", settings={"bits": 3, "group_size": 32, "keep": ["lm_head"]}, disk_bytes=1_000_000
    )
    changed = tuple(
        m.model_copy(update={"value": 0.7}) if m.name == "mean_accuracy" else m
        for m in a.step("int4").measurements
    )
    b = with_step(b, "int4", measurements=changed).model_copy(update={"id": "other"})
    rows = [line.split() for line in plain(compare(a, b)).splitlines() if line]
    assert rows == [
        ["Settings", "quickstart-20250301-101500", "other"],
        ["int4.bits", "4", "3"],
        ["Sizes", "quickstart-20250301-101500", "other"],
        ["int4", "on", "disk", "1.25", "MB", "1.00", "MB"],
        ["Measurements", "quickstart-20250301-101500", "other"],
        ["int4", "mean_accuracy", "83.7", "%", "70.0", "%", "-13.7", "points"],
    ]


def test_a_step_or_measurement_only_one_run_has_is_shown_as_absent_or_not_measured():
    a = sample_run()
    b = without(a.model_copy(update={"steps": a.steps[:-1]}), "perplexity")
    text = compare(a, b)
    assert "original_int4.use" in text and "absent" in text and units.NOT_MEASURED in text


def test_nothing_in_the_record_can_drive_the_terminal():
    run = with_step(sample_run(error="\x1b[2J\u202e"), "edge", settings={"a": "\x1b]0;x\x07"})
    assert "\x1b" not in summary(run) + compare(sample_run(), run)


def test_ordinary_writing_of_any_language_stays_as_it_is():
    text = "naïve 日本語 עברית क्\u200dष\n\tend"
    assert visible(text) == text
    assert visible("a\u202eb\u200b\ufeff\r\x00") == "a⟨U+202E⟩b⟨U+200B⟩⟨U+FEFF⟩⟨U+000D⟩⟨U+0000⟩"
