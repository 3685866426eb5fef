"""What a file may say of `launch`, and what of it a rehearsal tries."""

import pytest
from pydantic import ValidationError

from compress.train import step
from compress.train.launch import Launch, rehearsed_launch
from compress.train.settings import rehearsed


@pytest.mark.parametrize(
    "written",
    ["foo", "foo:", ":29400", "foo:bar", "foo:0", "foo:70000", "tcp://foo:29400", "::1:29400", "a b:1"],
)
def test_a_meeting_place_without_host_and_port_is_refused(written):
    with pytest.raises(ValidationError, match=f"such as first-machine:29400, found '{written}'"):
        Launch(nodes=2, rendezvous=written)


@pytest.mark.parametrize("written", ["first-machine:29400", "10.0.0.7:1", "[::1]:29400", "a.b.c:65535"])
def test_host_and_port_are_a_meeting_place(written):
    assert Launch(nodes=2, rendezvous=written).rendezvous == written


def test_several_machines_without_a_meeting_place_are_refused():
    with pytest.raises(ValueError, match="several 'nodes' need a 'rendezvous'"):
        Launch(nodes=2)


def cards(monkeypatch, number, visible=None):
    monkeypatch.setattr(
        "compress.train.launch.device_class", lambda: ", ".join(["NVIDIA H100"] * number) or "cpu"
    )
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)


@pytest.mark.parametrize(
    ("number", "visible", "tried"), [(0, None, 2), (1, None, 1), (8, None, 2), (8, "3", 1)]
)
def test_a_rehearsal_launches_two_processes_here_or_as_many_as_there_are_cards(
    number, visible, tried, monkeypatch
):
    cards(monkeypatch, number, visible)
    launch = Launch(processes=8, nodes=2, rendezvous="first-machine:29400")
    assert rehearsed_launch(launch) == Launch(processes=tried)


def test_a_card_known_by_its_device_file_only_is_counted(monkeypatch, tmp_path):
    cards(monkeypatch, 0)
    monkeypatch.setattr("compress.train.launch.DEVICES", tmp_path)
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert rehearsed_launch(Launch(processes=8)) == Launch(processes=1)


def test_a_rehearsal_keeps_the_launch_of_a_step_and_adds_none(monkeypatch):
    cards(monkeypatch, 0)
    launched = step.Config(tokens=4096, launch=Launch(processes=8))
    assert rehearsed(launched).launch == Launch(processes=2)
    assert rehearsed(launched.model_copy(update={"launch": None})).launch is None
