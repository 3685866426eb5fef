"""The driver's library asked through ctypes: a library of ours in its place, built here."""

import os
import shutil
import subprocess
import sys

import pytest

from compress import nvml
from compress.nvml import NvmlError, Seen, seen_by_nvml

SOURCE = r"""
#include <stdlib.h>
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
static int number(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}
static int started = 0;
int nvmlInit_v2(void) { started = number("FAKE_INIT", 0) == 0; return number("FAKE_INIT", 0); }
int nvmlShutdown(void) { started = 0; return 0; }
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "Some Error"; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!started) return 1;
    *count = number("FAKE_COUNT", 2);
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    if ((int)index == number("FAKE_LOST", -1)) return 15;
    *handle = (void *)(size_t)(index + 1);
    return 0;
}
static int is_part(void *handle) { return (size_t)handle > 100; }
int nvmlDeviceGetName(void *handle, char *name, unsigned length) {
    strncpy(name, is_part(handle) ? "NVIDIA H100 80GB HBM3 MIG 3g.40gb" : "NVIDIA H100 80GB HBM3", length);
    return 0;
}
int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length) {
    strncpy(uuid, is_part(handle) ? "MIG-0a" : (size_t)handle == 1 ? "GPU-0a" : "GPU-0b", length);
    if (is_part(handle)) uuid[5] = 'a' + (size_t)handle - 101;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    memory->total = is_part(handle) ? 42949672960ULL : 85520809984ULL;
    return number("FAKE_MEMORY", 0);
}
#ifndef OLD
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    *current = *pending = (size_t)handle == 1 && number("FAKE_MIG", 0);
    return number("FAKE_MIG", 0) ? 0 : 3;
}
int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **part) {
    if (index >= 2) return 6;
    *part = (void *)(size_t)(101 + index);
    return 0;
}
#endif
"""

# The library that is stood in for is written in C: without a compiler there is none to load.
COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(SOURCE)
    for name, flags in (("new", ()), ("old", ("-DOLD",))):
        command = [COMPILER, "-shared", "-fPIC", *flags, "-o", folder / f"{name}.so", folder / "nvml.c"]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture
def library(libraries, monkeypatch):
    monkeypatch.setattr(nvml, "LIBRARIES", (str(libraries / "new.so"),))
    return monkeypatch


CARD = Seen("NVIDIA H100 80GB HBM3", 85520809984, "GPU-0a")


def test_every_card_has_name_memory_and_uuid(library):
    assert seen_by_nvml() == (CARD, CARD._replace(uuid="GPU-0b"))


def test_no_card_is_no_error(library):
    library.setenv("FAKE_COUNT", "0")
    assert seen_by_nvml() == ()


def test_a_card_that_was_lost_is_left_out(library):
    library.setenv("FAKE_LOST", "0")
    assert [card.uuid for card in seen_by_nvml()] == ["GPU-0b"]


def test_a_card_whose_memory_is_not_told_has_none(library):
    library.setenv("FAKE_MEMORY", "3")
    assert seen_by_nvml()[0] == CARD._replace(memory_bytes=None)


def test_a_driver_that_is_not_loaded_is_told_in_its_words(library):
    library.setenv("FAKE_INIT", "9")
    with pytest.raises(NvmlError, match=r"NVML does not start: Driver Not Loaded \(error 9\)"):
        seen_by_nvml()


def test_parts_of_a_card_stand_in_its_place(library):
    library.setenv("FAKE_MIG", "1")
    part = Seen("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 40 << 30, "MIG-0a", is_part=True)
    assert seen_by_nvml() == (part, part._replace(uuid="MIG-0b"), CARD._replace(uuid="GPU-0b"))


def test_a_driver_from_before_parts_tells_its_cards(library, libraries):
    library.setattr(nvml, "LIBRARIES", (str(libraries / "old.so"),))
    assert [card.uuid for card in seen_by_nvml()] == ["GPU-0a", "GPU-0b"]


def test_the_second_place_is_looked_at_where_the_first_has_none(library, libraries):
    library.setattr(nvml, "LIBRARIES", ("/nowhere/libnvidia-ml.so.1", str(libraries / "new.so")))
    assert len(seen_by_nvml()) == 2


def test_no_library_is_told(monkeypatch):
    monkeypatch.setattr(nvml, "LIBRARIES", ("/nowhere/libnvidia-ml.so.1",))
    with pytest.raises(NvmlError, match=r"NVML is not there \(/nowhere/libnvidia-ml"):
        seen_by_nvml()


def test_planning_finds_the_cards_by_the_library_that_the_loader_finds_and_imports_no_torch(
    libraries, tmp_path
):
    (tmp_path / "libnvidia-ml.so.1").symlink_to(libraries / "new.so")
    code = (
        "import sys; from compress.accelerators import listing; print(listing().source, len(listing().cards)); "
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert told.stdout == "NVML 2\n"
