import pytest

from compress.train import step
from compress.train.decline import decline
from tests.train.inputs import context, parent


def curve(*losses):
    return [{"loss": loss} for loss in losses]


@pytest.mark.parametrize(
    "losses",
    [
        (2.5, 7.3, 5.0, 3.0),
        (2.5, 7.3, 5.0, 4.0, 3.0, 2.9, 2.8, 2.7),
        (1.0, 1.1),
    ],
)
def test_a_loss_that_ends_above_its_beginning_is_told(losses):
    assert f"its loss rose from {losses[0]:.3f} to" in decline(curve(*losses), None)


@pytest.mark.parametrize(
    "losses",
    [
        (),
        (7.0,),
        (2.5, 2.4),
        (2.5, 7.3, 5.0, 2.4),
        (2.5, 2.51),  # batches differ
        (2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.9, 2.1),  # not all of the last quarter
    ],
)
def test_nothing_is_said_of_one_that_does_not(losses):
    assert decline(curve(*losses), None) is None


@pytest.mark.parametrize(("last", "told"), [(2.6, True), (2.51, False), (2.4, False)])
def test_held_out_text_decides_where_there_is_some(last, told):
    points = [
        {"loss": 2.0},
        {"loss": 9.0, "held_out": {"loss": 9.0}},
        {"loss": 1.0, "held_out": {"loss": last}},
    ]
    said = decline(points, {"loss": 2.5})
    assert (said is not None) == told
    if told:
        assert "held-out loss rose from 2.500 to 2.600" in said


@pytest.mark.parametrize(("rate", "told"), [(3e-3, False), (3.0, True)])
def test_a_training_that_did_harm_says_so(rate, told, tmp_path):
    given = context(tmp_path / "result")
    config = step.Config(tokens=16 * 4 * 12, batch_tokens=16 * 4, learning_rate=rate, precision="fp32")
    step.run(parent(tmp_path / "parent"), config, given)
    assert any("ended worse than it began" in said for said in given.warnings) == told
