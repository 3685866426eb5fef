"""What a card says beside the original follows from the two models timed in turns."""

import pytest

from compress.engine.export_student import model_card
from tests.report.sample_run import sample_run, with_step


def test_speeds_are_the_paired_ratio_of_the_originals_own():
    run = sample_run()
    slow = tuple(  # the machine was three times as slow while int8, and the original beside it, were timed
        m.model_copy(update={"value": 3 * m.value, "beside": {k: 3 * v for k, v in m.beside.items()}})
        if m.name == "time_per_output_token"
        else m
        for m in run.step("int8").measurements
    )
    run = with_step(run, "int8", measurements=slow)
    (line,) = (
        line
        for line in model_card(run, run.step("int8")).splitlines()
        if line.startswith("| time_per_output_token batch_size=1 ")
    )
    ours, original = (float(cell) for cell in line.split("|")[2:4])
    assert original == pytest.approx(2.31, abs=0.01)
    assert ours / original == pytest.approx(1 / 0.8, rel=0.01)
