import numpy as np

from compress.measure import memory
from compress.meters.memory import EmptyProcess, anonymous_bytes, mapped_bytes


def test_memory_grows_from_loading_to_generating(original, context):
    config = memory.Config(batch_sizes=(1, 2), prompt_tokens=(4, 16), new_tokens=4)
    measured = {m.name: m for m in memory.measure(original, config, context())}
    assert measured.keys() == {
        "load_memory",
        "peak_memory",
        "peak_anonymous_memory",
        "peak_memory_growth",
    }
    assert 0 < measured["load_memory"].value <= measured["peak_memory"].value
    assert 0 < measured["peak_anonymous_memory"].value <= measured["peak_memory"].value
    assert all(m.unit == "bytes" and not m.higher_is_better for m in measured.values())
    assert 0 < measured["peak_memory_growth"].value < measured["peak_memory"].value
    assert "batch 2, 16 + 4 tokens" in measured["peak_memory"].note


def test_an_empty_process_has_the_imports_and_nothing_that_was_made_since(tmp_path, monkeypatch):
    (tmp_path / "heavy_import.py").write_text(
        "import numpy\nheld = numpy.ones(48 * 2**20, dtype=numpy.uint8)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    empty, before = EmptyProcess(), anonymous_bytes()
    import heavy_import  # noqa: F401

    made = np.ones(96 * 2**20, dtype=np.uint8)
    grown = anonymous_bytes() - (empty.anonymous_bytes() or 0)
    assert anonymous_bytes() - before > 140 * 2**20
    assert abs(grown - made.nbytes) < 16 * 2**20


def test_an_import_that_kills_leaves_no_figure(tmp_path, monkeypatch):
    (tmp_path / "deadly_import.py").write_text(
        "import os, sys\nif sys.stdout.name == os.devnull: os._exit(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    empty = EmptyProcess()
    import deadly_import  # noqa: F401

    assert empty.anonymous_bytes() is None


def test_mapped_weights_are_counted(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(8 * 2**20))
    assert mapped_bytes(tmp_path) == 0
    mapped = np.memmap(tmp_path / "weights", mode="r")
    assert mapped.sum() == 0
    assert mapped_bytes(tmp_path) == 8 * 2**20
