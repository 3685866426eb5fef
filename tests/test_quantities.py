import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from compress.quantities import Count, format_count, format_file_size, format_memory, parse_count


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


@pytest.mark.parametrize(
    ("num_bytes", "memory", "file"),
    [(0, "0 B", "0 B"), (999, "999 B", "999 B"), (1000, "0.977 KiB", "1.00 kB"), (3 << 20, "3.00 MiB", "3.15 MB"),
     (85_520_809_984, "79.6 GiB", "85.5 GB"), (round(9.999 * 2**30), "10.0 GiB", "10.7 GB"),
     (10**15, "909 TiB", "1000 TB")],
)  # fmt: skip
def test_memory_is_told_in_powers_of_1024_and_files_in_powers_of_1000(num_bytes, memory, file):
    assert (format_memory(num_bytes), format_file_size(num_bytes)) == (memory, file)


def test_bytes_are_written_out_in_one_place():
    """Elsewhere a figure with its unit would be of another kind: 1e9 bytes called GB beside GiB."""
    package = Path(__file__).parents[1] / "compress"
    unit = re.compile(r"\} ?[kKMGT]i?B\b")
    written = {str(f.relative_to(package)) for f in package.rglob("*.py") if unit.search(f.read_text())}
    assert written <= {"quantities.py", *ALLOWED}


ALLOWED = {"engine/account.py", "pipeline/source.py", "prune/target.py"}
"""An account's columns, the limit of a file, and a budget: echoed in the unit that budgets are written in."""
