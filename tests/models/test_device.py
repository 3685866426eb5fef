"""Where work runs is what it was planned and keyed for."""

import pytest

from compress import accelerators
from compress.accelerators import Listing
from compress.errors import InputError
from compress.models.device import default_device
from compress.nvml import Seen


@pytest.fixture
def card(monkeypatch):
    listing = Listing((Seen("NVIDIA L4", 24152899584, "GPU-1"),), "NVML")
    monkeypatch.setattr(accelerators, "listing", lambda: listing)
    monkeypatch.setattr(accelerators, "torch_has_cuda", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


def test_a_card_that_torch_cannot_use_is_no_reason_to_work_on_the_processor_unasked(card):
    with pytest.raises(InputError, match=r"NVIDIA L4 is here .* cannot use it: `compress doctor` says more"):
        default_device()


def test_whoever_hides_the_card_gets_the_processor(card):
    card.setenv("CUDA_VISIBLE_DEVICES", "")
    assert default_device() == "cpu"


def test_a_torch_without_cuda_works_on_the_processor(card):
    card.setattr(accelerators, "torch_has_cuda", lambda: False)
    assert default_device() == "cpu"
