"""A full disk: known by whatever words, told with its place and a remedy."""

import errno
from collections import namedtuple

import pytest

from compress.engine.room import disk_full, disk_is_full, most_workers, shortages
from compress.machine import Machine, machine_named
from compress.pipeline.plan import Node
from compress.records import Work
from compress.train.launch import Launch
from compress.train.step import Config

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
        f"no room left on the disk of {tmp_path / 'home'} (COMPRESS_HOME; 3.15 MB are free now). "
    )
    assert "`compress gc`" in said and "larger disk" in said


def test_another_disk_is_named_by_the_file_and_gc_is_no_remedy(tmp_path):
    error = OSError(
        errno.ENOSPC, "No space left on device", "/proc/model.bin"
    )  # never the temporary folder's disk
    said = disk_full(tmp_path, error)
    assert "/proc/model.bin" in said and "gc" not in said


CARD = machine_named("h100-80gb").card
assert CARD is not None
HERE = Machine(card=CARD.model_copy(update={"name": "NVIDIA H100 80GB HBM3"}), num_cards=1)


def shortage(nodes, root):
    """What is lacking, where it is one thing at most."""
    [said] = [*shortages(nodes, root)] or [None]
    return said


def node(launch=None, **work):
    config = Config(tokens=4096, launch=launch)
    return Node(
        name="taught", use="train", role="student", kind="hf", key="k", config=config, work=Work(**work)
    )


@pytest.fixture
def with_a_card(monkeypatch):
    monkeypatch.setattr("compress.machine.this_machine", lambda: HERE)
    monkeypatch.setattr("compress.engine.room.available_memory_bytes", lambda: 10 * 10**9)


def test_what_a_card_cannot_hold_is_refused_before_anything_runs(with_a_card, tmp_path):
    said = shortage([node(peak_memory_bytes=99 * 10**9)], tmp_path)
    assert said == (
        "step 'taught' needs about 92.2 GiB on the card; NVIDIA H100 80GB HBM3 gives a process "
        "78.9 GiB of its 79.6 GiB."
    )


def test_what_a_card_holds_is_not_asked_of_the_machine(with_a_card, tmp_path):
    assert shortage([node(peak_memory_bytes=80 * 10**9)], tmp_path) is None


def test_what_the_processor_does_beside_a_card_needs_the_machine_s_memory(with_a_card, tmp_path):
    said = shortage([node(peak_memory_bytes=80 * 10**9, on_processor=True)], tmp_path)
    assert said is not None and said.startswith("step 'taught' needs about 74.9 GiB of memory; 9.31 GiB are")


def test_more_processes_than_this_machine_has_cards_are_refused(with_a_card, tmp_path):
    said = shortage([node(Launch(processes=8))], tmp_path)
    assert said == "step 'taught' is launched on 8 cards, of which one is here (`launch.processes`)."
    assert shortage([node(Launch(processes=1))], tmp_path) is None


def test_what_a_machine_holds_beside_its_card_must_be_there_too(with_a_card, tmp_path):
    said = shortage([node(peak_memory_bytes=8 * 10**9, host_memory_bytes=24 * 10**9)], tmp_path)
    assert said is not None and said.startswith("step 'taught' needs about 22.4 GiB of memory; 9.31 GiB are")


def test_all_that_is_lacking_is_told_the_disk_first(with_a_card, tmp_path):
    said = [*shortages([node(peak_memory_bytes=99 * 10**9, disk_bytes=1 << 60)], tmp_path)]
    assert said[0].startswith("the run will write") and said[1].startswith(
        "step 'taught' needs about 92.2 GiB"
    )


@pytest.mark.parametrize(("name", "workers"), [("l4", 16), ("t4", 12), ("h100-80gb", 16)])
def test_a_rehearsal_starts_as_many_workers_at_once_as_the_card_holds(name, workers, monkeypatch):
    monkeypatch.setattr("compress.engine.room.this_machine", lambda: machine_named(name))
    assert most_workers(16) == workers


def test_a_small_card_holds_one_worker_at_least(monkeypatch):
    tiny = Machine(card=CARD.model_copy(update={"memory_bytes": 10**9}), num_cards=1)
    monkeypatch.setattr("compress.engine.room.this_machine", lambda: tiny)
    assert most_workers(16) == 1


def test_without_a_card_every_core_works(monkeypatch):
    monkeypatch.setattr("compress.engine.room.this_machine", Machine)
    assert most_workers(16) == 16
