"""What was probably meant, and what certainly was not."""

import pytest

from compress.errors import nearest

KEYS = ("name", "use", "from", "tokens", "teacher", "learning_rate", "stop_after", "held_out")


@pytest.mark.parametrize("written", ["seed", "model", "lr", "when", "epochs"])
def test_a_name_far_from_all_is_not_called_a_misspelling(written):
    assert nearest(written, KEYS) == "."


@pytest.mark.parametrize(
    ("written", "meant"), [("form", "from"), ("token", "tokens"), ("heldout", "held_out"), ("nam", "name")]
)
def test_a_misspelling_is_told_what_was_meant(written, meant):
    assert nearest(written, KEYS) == f"; did you mean '{meant}'?"
