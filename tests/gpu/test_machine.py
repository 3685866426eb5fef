"""What the planner believes of the card is what the card is."""

import pytest
import torch

from compress.environment import device_class
from compress.machine import this_machine
from compress.models.device import default_device

pytestmark = pytest.mark.gpu


def test_the_driver_and_torch_see_the_same_cards():
    machine = this_machine()
    assert machine.num_cards == torch.cuda.device_count()
    assert torch.cuda.get_device_name() in device_class()
    assert default_device().startswith("cuda")


def test_the_cards_memory_is_what_torch_can_have():
    card = this_machine().card
    assert card is not None
    total = torch.cuda.mem_get_info()[1]
    # The driver keeps a little for itself.
    assert 0.97 * card.memory_bytes <= total <= card.memory_bytes
