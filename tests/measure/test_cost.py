import pytest

from compress.measure.cost import costs, payback_million_tokens, usd_per_million_tokens
from compress.records import Measurement


def test_a_million_tokens_at_a_thousand_a_second_take_as_many_seconds():
    assert usd_per_million_tokens(1000, usd_per_hour=3.6) == pytest.approx(1.0)
    assert usd_per_million_tokens(1000, usd_per_hour=3.6, utilisation=0.5) == pytest.approx(2.0)


def test_every_speed_gets_a_price_beside_the_originals():
    labels = {"batch_size": 1, "prompt_tokens": 64}
    common = {"unit": "tokens/s", "higher_is_better": True, "labels": labels, "n": 5}
    speeds = [
        Measurement(name="tokens_per_second", value=200.0, beside={"original": 100.0}, **common),
        Measurement(name="prefill_tokens_per_second", value=2000.0, **common),
        Measurement(name="time_to_first_token", value=5.0, **common),
    ]
    output, prompt = costs(speeds, usd_per_hour=3.6)
    assert output.name == "usd_per_million_output_tokens"
    assert (output.value, output.beside["original"]) == pytest.approx((5.0, 10.0))
    assert output.labels == labels and not output.higher_is_better and output.unit == "USD"
    assert prompt.name == "usd_per_million_input_tokens"
    assert prompt.value == pytest.approx(0.5)


def test_compressing_pays_for_itself_or_never():
    assert payback_million_tokens(10.0, usd_before=3.0, usd_after=1.0) == 5.0
    assert payback_million_tokens(10.0, usd_before=1.0, usd_after=1.0) is None
