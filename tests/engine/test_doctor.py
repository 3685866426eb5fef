"""What doctor says of cards: who told of them, what torch makes of them, what is compiled for them."""

import pytest

from compress import accelerators
from compress.accelerators import Listing
from compress.engine import doctor
from compress.nvml import Seen

H100 = Seen("NVIDIA H100 80GB HBM3", 85520809984, "GPU-1")


@pytest.fixture
def examine(monkeypatch):
    """Return what doctor finds for a machine with these cards and this torch."""

    def examine(*cards, cuda=True, sees=None, source="NVML", trouble="", setting=None):
        found = Listing(cards, source, trouble)
        for module in (doctor, accelerators):
            monkeypatch.setattr(module, "torch_has_cuda", lambda: cuda)
            monkeypatch.setattr(module, "listing", lambda: found)
        monkeypatch.setattr("torch.cuda.is_available", lambda: bool(sees))
        monkeypatch.setattr("torch.cuda.device_count", lambda: sees or 0)
        if setting is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
        return {each.what: each for each in doctor._accelerator(found)}

    return examine


def test_without_cards_nothing_is_missing(examine):
    found = examine()
    assert list(found) == ["accelerator"] and found["accelerator"].well


def test_a_card_that_works_is_told_with_its_memory(examine):
    found = examine(H100, sees=1)
    assert found["accelerator"].well and "79.6 GiB" in found["accelerator"].found and found["NVML"].well


def test_a_torch_without_cuda_is_to_be_mended_and_no_index_is_invented(examine):
    told = examine(H100, cuda=False)["accelerator"]
    assert not told.well and "is built without CUDA" in told.found and H100.name in told.found
    assert "pytorch.org/get-started" in told.remedy and "whl/cu" not in told.remedy


def test_cards_that_torch_cannot_use_are_told(examine):
    told = examine(H100, H100._replace(uuid="GPU-2"), sees=1)["accelerator"]
    assert not told.well and "can use 1" in told.found and "driver" in told.remedy
    assert not examine(H100, sees=0)["accelerator"].well


def test_cards_that_the_user_hides_are_no_fault(examine):
    told = examine(H100, setting="")["accelerator"]
    assert told.well and "hidden by CUDA_VISIBLE_DEVICES=''" in told.found


def test_cards_known_without_nvml_are_told_with_the_reason(examine):
    told = examine(Seen("NVIDIA card"), sees=1, source="/dev", trouble="NVML is not there (no file)")["NVML"]
    assert not told.well and "NVML is not there (no file); cards are known from /dev" in told.found


def test_what_triton_compiles_with_is_looked_for(examine, monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda name, scheme: str(tmp_path))
    found = examine(H100, sees=1)
    assert not found["C compiler"].well and "apt-get install gcc" in found["C compiler"].remedy
    assert not found["Python.h"].well and "-dev" in found["Python.h"].remedy
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "clang" else None)
    found = examine(H100, sees=1)
    assert (
        found["C compiler"].found == "/usr/bin/clang" and found["C compiler"].well and found["Python.h"].well
    )


def test_a_compiler_that_was_named_counts(examine, monkeypatch):
    monkeypatch.setenv("CC", "/opt/cc")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert examine(H100, sees=1)["C compiler"].well
