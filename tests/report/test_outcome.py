import pytest

from compress.report.outcome import LONGEST, found, settings
from compress.report.page import render
from tests.report.sample_run import plain, sample_run, with_step
from tests.report.test_page import Page
from tests.report.training_facts import watched_step


def told(**facts) -> dict[str, str]:
    """What the page says of a step with these facts."""
    step = sample_run().step("edge").model_copy(update={"facts": facts})
    return {name: plain(text.text) for name, text in found(step)}


def test_settings_and_outcome_of_one_name_stand_under_headings_of_their_own():
    run = with_step(sample_run(), "edge", settings={"precision": "auto"}, facts={"precision": "bf16"})
    text = Page(render(run)).text
    asked = text.index("precision", text.index("Settings", text.index("export.onnx")))
    assert text.index("auto", asked) < text.index("What came of it", asked) < text.index("bf16", asked)


def test_settings_are_printed_as_they_are_written():
    step = (
        sample_run().step("edge").model_copy(update={"settings": {"a": {"b": 1e-05, "c": None}, "d": [1, 2]}})
    )
    assert [(name, text.text) for name, text in settings(step)] == [
        ("a.b", "1e-05"), ("a.c", "not set"), ("d", "[1, 2]")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 1.2626947117602731, "1.26 nats"),
        ("tokens_per_second", 8844.397331184306, "8.84 k tok/s"),
        ("peak_device_memory_bytes", 5_368_709_120, "5.00 GiB"),
        ("same_top_token_rate", 0.9649122953414917, "96.5 %"),
        ("max_logit_difference", 0.20880508422851562, "0.209"),
        ("cache_loss_difference", -6.288127273795146e-05, "-6.29\u00b710\u207b\u2075"),
        ("optimizer_steps", 1123, "1 123"),
        ("checkpoint_activations", False, "no"),
        ("target", None, "none"),
        ("removed_layers", [2, 3], "2, 3"),
        ("scores", [0.41234567, 0.2], "0.412, 0.2"),
        ("device", "cpu", "cpu"),
        ("loss", float("nan"), "NaN"),
        ("story", "x" * 1000, "x" * LONGEST + "\u2026 (1000 characters)"),
    ],
)
def test_a_fact_is_written_as_it_is_read(name, value, text):
    assert told(**{name: value}) == {name.replace("_", " "): text}


def test_a_rounded_fact_keeps_its_exact_value():
    step = sample_run().step("edge").model_copy(update={"facts": {"loss": 1.2626947117602731}})
    assert found(step)[0][1].values == (1.2626947117602731,)


def test_a_fact_of_several_values_has_a_line_for_each_in_its_unit():
    assert told(latency_ms={"context": 32, "predicted": 0.66231}) == {
        "latency ms: context": "32",
        "latency ms: predicted": "0.662 ms",
    }


def test_what_was_seen_before_training_is_told_in_words_and_units():
    lines = {name: plain(text.text) for name, text in found(watched_step())}
    assert lines["before training: Held-out loss"] == "1.90 nats"
    assert lines["before training: KL to the teacher"] == "1.20 nats"
    assert lines["before training: world_sums"] == "25.0 %"
    assert not any("{" in line for line in lines.values())


def test_learned_tokens_are_told_as_a_share_where_the_tokens_are_known():
    assert told(tokens=9_600, learned_tokens=280)["learned tokens"] == "280 (2.9 % of the tokens)"
    assert told(learned_tokens=280)["learned tokens"] == "280"


def test_a_result_that_is_not_exact_to_the_bit_says_why_on_one_line():
    why = "memory ran out: 4 sequences at once"
    assert told(bit_exact=False, bit_exact_ended_by=why) == {"exact to the bit": f"no: {why}"}
    assert told(bit_exact=True) == {"exact to the bit": "yes"}
