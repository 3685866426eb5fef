"""A full disk: known by whatever words, told with its place and a remedy."""

import errno
from collections import namedtuple

import pytest

from compress.engine.room import disk_full, disk_is_full

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def raised(inner, outer):
    try:
        try:
            raise inner
        except type(inner):
            raise outer  # noqa: B904  # how `torch.save` loses the reason
    except type(outer) as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (NO_SPACE, True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (raised(NO_SPACE, RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos")), True),
        (raised(KeyError("a"), RuntimeError("unexpected pos")), False),
        (OSError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_a_full_disk_is_known_whatever_library_met_it(error, full):
    assert disk_is_full(error) is full


def test_the_store_is_named_with_its_free_space_and_what_frees_more(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")(3 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    said = disk_full(tmp_path / "home", NO_SPACE)
    assert said.startswith(
        f"no room left on the disk of {tmp_path / 'home'} (COMPRESS_HOME; 3.0 MiB are free now). "
    )
    assert "`compress gc`" in said and "larger disk" in said


def test_another_disk_is_named_by_the_file_and_gc_is_no_remedy(tmp_path):
    error = OSError(
        errno.ENOSPC, "No space left on device", "/proc/model.bin"
    )  # never the temporary folder's disk
    said = disk_full(tmp_path, error)
    assert "/proc/model.bin" in said and "gc" not in said
