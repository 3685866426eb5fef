import pytest

from compress.report import units
from tests.report.sample_run import plain


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999_499, "999 k"),
        (999_600, "1.00 M"),
        (1_512_000, "1.51 M"),
        (8.03e9, "8.03 B"),
    ],
)
def test_counts_carry_three_digits_and_roll_over_to_the_next_prefix(value, text):
    assert plain(units.count(value)) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.8414, "share", "84.1 %"),
        (-0.021, "points", "-2.1 points"),
        (-0.0001, "points", "0.0 points"),
        (6_020_000, "bytes", "5.74 MiB"),
        (6_020_000, "bytes on disk", "6.02 MB"),
        (17, "bytes", "17 B"),
        (0.4444, "ms", "0.444 ms"),
        (1234.5, "ms", "1234 ms"),
        (2250, "tokens/s", "2.25 k tok/s"),
        (0.0494, "USD", "$0.0494"),
        (3.5, "USD", "$3.50"),
        (0.0830, "nats/token", "0.0830 nats/token"),
        (9.999, "", "10.0"),
        (float("nan"), "share", "not finite"),
        (float("inf"), "nats/token", "not finite nats/token"),
    ],
)
def test_every_quantity_is_written_in_its_unit(value, unit, text):
    assert plain(units.quantity(value, unit)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "420 ms"), (12.34, "12.3 s"), (240, "4 min"), (250.2, "4 min 10 s"), (11520, "3 h 12 min")],
)
def test_a_duration_is_written_in_the_units_one_would_say(seconds, text):
    assert plain(units.duration(seconds)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.239, "0.24x"), (1.04, "1.04x"), (7.06, "7.1x"), (31.2, "31x")]
)
def test_a_ratio_keeps_the_digits_that_matter(value, text):
    assert plain(units.ratio(value)) == text


def test_an_interval_says_its_unit_once_and_nothing_without_ends():
    assert plain(units.interval(0.823, 0.859, "share")) == "82.3 to 85.9 %"
    assert plain(units.interval(900, 1100, "bytes")) == "900 B to 1.07 KiB"
    assert units.interval(None, 0.9, "share") == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (0.002, "0.002"), (2e-05, "2·10⁻⁵"), (-1.5e-12, "-1.5·10⁻¹²"), (1500.0, "1500")],
)
def test_a_number_on_an_axis_is_short_however_small_it_is(value, text):
    assert plain(units.axis(value)) == text
