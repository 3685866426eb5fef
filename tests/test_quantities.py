import pytest
from pydantic import TypeAdapter, ValidationError

from compress.quantities import Count, format_count, parse_count


@pytest.mark.parametrize(
    ("written", "meant"),
    [("2B", 2_000_000_000), ("1.6M", 1_600_000), ("500k", 500_000), ("4.0b", 4_000_000_000), (640, 640),
     ("1_000", 1000), (1e9, 10**9), ("1T", 10**12), (" 3 k ", 3000)],
)  # fmt: skip
def test_a_count_is_read_as_people_write_it(written, meant):
    assert parse_count(written) == meant


@pytest.mark.parametrize(
    "written", ["", "abc", "1.5", 0, -3, "-2M", True, None, "2X", 0.5, float("nan"), "1.0001k"]
)
def test_what_is_no_count_is_refused_with_an_example(written):
    with pytest.raises(ValidationError, match=r"written like 500000, 500k, 1\.6M or 2B"):
        TypeAdapter(Count).validate_python(written)


@pytest.mark.parametrize(
    ("number", "text"),
    [(640, "640"), (1_600_000, "1.6M"), (2_000_000_000, "2B"), (999_999, "1M"), (1234, "1.23k"),
     (0, "0"), (1, "1"), (999, "999"), (123_456_789, "123M")],
)  # fmt: skip
def test_a_count_is_shown_to_three_digits(number, text):
    assert format_count(number) == text
