"""The kernel for documents, on a card.

Shapes: B rows, T positions, H heads, D size of a head.
"""

import pytest
import torch

from compress.data.batch import Batch
from compress.models.determinism import deterministic
from compress.train import attention
from compress.train.attention import as_mask, packed_attention

pytestmark = pytest.mark.gpu

LENGTHS = [[700, 24, 300], [1000, 24]]


def inputs(dtype=torch.bfloat16, heads=(8, 2), size=128):
    generator = torch.Generator().manual_seed(0)
    positions_BT = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    batch = Batch(torch.zeros(2, 1024, dtype=torch.int64), positions_BT)
    states = [torch.randn(2, 1024, n, size, generator=generator) for n in (heads[0], heads[1], heads[1])]
    slopes = torch.randn(2, 1024, heads[0], size, generator=generator)
    return batch, [s.bfloat16().to(dtype).transpose(1, 2) for s in states], slopes.bfloat16().to(dtype)


def computed(device, window=None, dtype=torch.bfloat16, **shapes):
    """The output and the gradients of query, key and value."""
    batch, states, slopes = inputs(dtype, **shapes)
    states = [state.detach().to(device).requires_grad_() for state in states]
    mask = as_mask(batch.to(device).documents)
    layer = torch.nn.Module()
    layer.num_key_value_groups = states[0].shape[1] // states[1].shape[1]
    output, _ = packed_attention(layer, *states, mask, sliding_window=window)
    with deterministic(warn_only=False):
        output.backward(slopes.to(device))
    return [output.detach(), *(state.grad for state in states)]


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("heads", [(8, 2), (8, 8), (24, 6)])
@pytest.mark.parametrize("size", [64, 80, 128, 256])
def test_it_computes_what_each_document_gives_alone(window, heads, size, monkeypatch):
    used, kernel = [], attention.KERNEL

    def noting(*args, **kwargs):
        used.append(True)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(attention, "KERNEL", noting)
    monkeypatch.setattr(attention, "_has_flash", lambda _: True)
    ours = computed("cuda", window, heads=heads, size=size)
    assert used
    for our, their in zip(ours, computed("cpu", window, torch.float32, heads=heads, size=size), strict=True):
        torch.testing.assert_close(our.cpu().float(), their, rtol=0, atol=0.02 * float(their.abs().max()))


def test_its_gradients_are_the_same_bits_every_time():
    first = computed("cuda")
    for _ in range(4):
        for again, before in zip(computed("cuda"), first, strict=True):
            assert torch.equal(again, before)


def test_without_it_a_mask_computes_the_same():
    for our, their in zip(
        computed("cuda", 100, torch.float32), computed("cpu", 100, torch.float32), strict=True
    ):
        torch.testing.assert_close(our.cpu(), their, rtol=0, atol=1e-4 * float(their.abs().max()))
