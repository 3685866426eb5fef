"""What a file may say of `launch`, and what of it a rehearsal tries."""

import pytest
from pydantic import ValidationError

from compress.accelerators import Listing
from compress.nvml import Seen
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
    seen = tuple(Seen("NVIDIA H100 80GB HBM3", uuid=f"GPU-{index}") for index in range(number))
    monkeypatch.setattr("compress.accelerators.listing", lambda: Listing(seen, "NVML"))
    monkeypatch.setattr("compress.accelerators.torch_has_cuda", lambda: True)
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


def test_cards_that_the_installed_torch_cannot_use_do_not_count(monkeypatch):
    cards(monkeypatch, 1)
    monkeypatch.setattr("compress.accelerators.torch_has_cuda", lambda: False)
    assert rehearsed_launch(Launch(processes=8)) == Launch(processes=2)


def test_a_rehearsal_keeps_the_launch_of_a_step_and_adds_none(monkeypatch):
    cards(monkeypatch, 0)
    launched = step.Config(tokens=4096, launch=Launch(processes=8))
    assert rehearsed(launched).launch == Launch(processes=2)
    assert rehearsed(launched.model_copy(update={"launch": None})).launch is None
