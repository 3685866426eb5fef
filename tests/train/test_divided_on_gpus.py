"""What is divided between GPUs and copied to the host: tensors without memory show where parts and meshes would be."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.testing._internal.distributed.fake_pg import FakeStore

from compress.train import sharded, watch
from compress.train.background import HostCopies, _as_divided
from compress.train.settings import TrainingSettings
from tests.fakes import FakeContext
from tests.train.inputs import InMemory, countable_ids


@contextmanager
def divided_between_two_gpus():
    """A matrix of 8 rows, half of them on this process's GPU. Nothing is computed."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = DeviceMesh("cpu", [0, 1])
        mesh._device_type = "cuda"
        with FakeTensorMode(allow_non_fake_inputs=True):
            meta = TensorMeta(torch.Size([8, 3]), (3, 1), torch.float32)
            spec = DTensorSpec(mesh, (Shard(0),), tensor_meta=meta)
            yield DTensor(torch.empty(4, 3, device="cuda"), spec, requires_grad=False)
    finally:
        dist.destroy_process_group()


def check(copy, like):
    """It is on the host, divided as before, and of the same whole."""
    assert isinstance(copy, DTensor) and copy.to_local().device.type == "cpu"
    assert copy.to_local().shape == like.to_local().shape and copy.shape == like.shape
    assert copy.device_mesh.device_type == "cuda" and copy.placements == like.placements


def test_the_best_weights_are_kept_on_the_host_in_parts(tmp_path):
    settings = TrainingSettings(tokens=64, held_out="held_out", stop_after=1)
    watching = watch.Watch(InMemory(countable_ids(num=1)), settings, FakeContext(tmp_path / "result"))
    with divided_between_two_gpus() as weight:
        watching.note(0, {"loss": 1.0}, {}, {"weight": weight})
        check(watching.best_weights["weight"], weight)


def test_best_weights_are_read_into_parts_on_the_host():
    class Training:
        class student:  # noqa: N801
            named_parameters = staticmethod(lambda: iter(()))

        optimizer = None

        def weights(self):
            return {"weight": weight}

    with divided_between_two_gpus() as weight:
        room = sharded._room(Training(), {"has_best": True, "has_moments": False})
        check(room["best"]["weight"], weight)


def test_a_copy_to_write_beside_training_is_divided_as_what_it_was_made_from():
    with divided_between_two_gpus() as weight:
        check(_as_divided(torch.empty(4, 3), weight), weight)
        copies = HostCopies("cuda")
        assert copies._copies(weight) and not copies._copies(torch.zeros(2))
        assert copies._num_bytes(weight) == 64, "48 bytes of this process's part, pinned"


@pytest.fixture(autouse=True)
def no_team():
    assert not dist.is_initialized()
