"""Packing that is killed, stopped or found damaged ends in the bytes it would have ended in."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import pytest

from compress.data import pack, packing
from compress.data.encode import Encoder
from compress.data.packing import SAVED
from compress.data.row_writer import RowWriter
from compress.data.sources import demo, hf, jsonl, parquet
from compress.data.sources import documents_after as after
from tests.data.chats import MESSAGES, PLAIN
from tests.fakes import FakeContext, Stopped

GOLDEN = {"demo": "a66b12bfc9059dee", "chats": "6f267e6d5077d59d", "mixture": "f7908d9d2718effe"}
"""Digests of what was packed before packing could be resumed: the module's version did not change."""


class Killed(BaseException):
    """Stands for a process that is gone."""


@pytest.fixture
def jobs(byte_tokenizer, demo_tokenizer, tmp_path):
    """A tokenizer and settings for each of the golden digests."""
    lines = [
        {"said": list(MESSAGES)}
        if n % 3 == 0
        else {"said": "" if n % 7 == 0 else f"text number {n} " * (n % 13)}
        for n in range(1200)
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "chat.jinja").write_text(PLAIN)
    said = {"paths": [str(tmp_path / "c.jsonl")], "field": "said"}
    parts = [{"source": "jsonl", "weight": 2.0, **said}, {"source": "demo", "weight": 0.7}]
    template = {"chat_template": str(tmp_path / "chat.jinja")}
    mixed = {"parts": parts, "on_end": "repeat"}
    chats = {"source": "jsonl", "settings": said, "sequence_length": 32, **template}
    mixture = {"source": "mixture", "settings": mixed, "sequence_length": 48, "samples": 6000, **template}
    return {
        "demo": (demo_tokenizer, {"source": "demo", "sequence_length": 64, "samples": 700}),
        "chats": (byte_tokenizer, chats),
        "mixture": (byte_tokenizer, mixture),
    }


def digest(folder):
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def begun(tmp_path, number, **about):
    """A context with an empty folder, as after a kill, over the same partial work."""
    return FakeContext(tmp_path / f"try-{number}", partial=tmp_path / "partial", seed=3, **about)


@pytest.fixture
def saves_always(monkeypatch):
    monkeypatch.setattr(packing, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(pack, "REPORT_EVERY", 50)


@pytest.mark.parametrize("name", GOLDEN)
def test_what_is_packed_is_what_always_was(name, jobs, tmp_path):
    tokenizer, settings = jobs[name]
    context = begun(tmp_path, 0)
    pack.run(tokenizer, pack.Config(**settings), context)
    assert digest(context.folder) == GOLDEN[name]
    assert not (context.partial / SAVED).exists()  # what takes no time is not saved on the way


@pytest.mark.parametrize("name", GOLDEN)
def test_killed_again_and_again_it_ends_in_the_same_bytes(name, jobs, tmp_path, monkeypatch, saves_always):
    tokenizer, settings = jobs[name]
    write = RowWriter.write
    for number, lives_for in enumerate([30, 130, 51, 100, 10_000]):
        counts = {"written": 0}

        def mortal(self, document, counts=counts, lives_for=lives_for):
            if counts["written"] == lives_for:
                raise Killed
            counts["written"] += 1
            write(self, document)

        monkeypatch.setattr(RowWriter, "write", mortal)
        context = begun(tmp_path, number)
        if lives_for < 10_000:
            with pytest.raises(Killed):
                pack.run(tokenizer, pack.Config(**settings), context)
    assert counts["written"] == 0
    outcome = pack.run(tokenizer, pack.Config(**settings), context)
    assert digest(context.folder) == GOLDEN[name]
    # 0 of 30, 100 of 130, 50 of 51 and 100 of 100 were saved, and are not written again.
    assert counts["written"] == outcome.facts["documents"] - 250
    assert not context.warnings


@pytest.mark.parametrize("name", GOLDEN)
def test_stopped_it_saves_and_goes_on(name, jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "REPORT_EVERY", 50)
    tokenizer, settings = jobs[name]
    with pytest.raises(Stopped):
        pack.run(tokenizer, pack.Config(**settings), begun(tmp_path, 0, stopping=True))
    assert json.loads((tmp_path / "partial" / SAVED).read_text())["written"]["num_documents"] == 50
    context = begun(tmp_path, 1)
    pack.run(tokenizer, pack.Config(**settings), context)
    assert digest(context.folder) == GOLDEN[name]


def test_killed_while_its_result_is_committed_it_reads_nothing_again(
    jobs, tmp_path, monkeypatch, saves_always
):
    tokenizer, settings = jobs["chats"]
    pack.run(tokenizer, pack.Config(**settings), begun(tmp_path, 0))
    monkeypatch.setattr(Encoder, "encode", lambda *_: pytest.fail("it was all there"))
    context = begun(tmp_path, 1)
    pack.run(tokenizer, pack.Config(**settings), context)
    assert digest(context.folder) == GOLDEN["chats"]


@pytest.mark.parametrize("harm", ["shorter", "other bytes", "missing"])
@pytest.mark.parametrize("file", ["tokens.bin", "starts.bin", "learned.bin"])
def test_damaged_work_is_done_anew_and_said_to_be(file, harm, jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "REPORT_EVERY", 50)
    tokenizer, settings = jobs["demo"]
    with pytest.raises(Stopped):
        pack.run(tokenizer, pack.Config(**settings), begun(tmp_path, 0, stopping=True))
    path = tmp_path / "partial" / file
    content = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes(content[:-1] + (b"" if harm == "shorter" else bytes([content[-1] ^ 1])))
    context = begun(tmp_path, 1)
    pack.run(tokenizer, pack.Config(**settings), context)
    assert digest(context.folder) == GOLDEN["demo"]
    assert context.warnings == ["what was packed before is damaged: it is packed anew"]


def test_where_files_cannot_have_two_names_they_are_copied(jobs, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no such thing on this file system")

    monkeypatch.setattr(os, "link", refuse)
    tokenizer, settings = jobs["demo"]
    context = begun(tmp_path, 0)
    pack.run(tokenizer, pack.Config(**settings), context)
    assert digest(context.folder) == GOLDEN["demo"]


def test_progress_tells_how_fast_tokens_come(jobs, tmp_path, saves_always):
    tokenizer, settings = jobs["demo"]
    context = begun(tmp_path, 0)
    pack.run(tokenizer, pack.Config(**settings), context)
    assert len(context.reports) > 5
    assert all(figures["tokens_per_second"] > 0 for _, _, _, figures in context.reports)


ENDLESS = """
import sys
from pathlib import Path
from compress.data import pack, packing
from compress.records import Artifact
from tests.fakes import FakeContext
packing.SAVE_SECONDS, pack.REPORT_EVERY = 0.0, 20
tokenizer, folder, partial, samples = sys.argv[1:]
parent = Artifact(key="t", kind="tokenizer", path=Path(tokenizer))
config = pack.Config(source="demo", sequence_length=64, samples=int(samples))
pack.run(parent, config, FakeContext(Path(folder), partial=Path(partial), seed=3))
"""


@pytest.mark.slow
def test_a_real_kill_loses_only_what_came_after_the_last_save(demo_tokenizer, tmp_path):
    saved = tmp_path / "partial" / SAVED
    command = [sys.executable, "-c", ENDLESS, demo_tokenizer.path, tmp_path / "out", tmp_path / "partial"]
    with subprocess.Popen([*command, "100000000"]) as process:
        while not saved.exists():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    num = json.loads(saved.read_text())["written"]["num_tokens"]
    samples = num // 64 + 100
    # A larger wish for the same source only goes on from what is there: its rows begin alike.
    for partial in ("partial", "fresh"):
        subprocess.run(
            [*command[:-2], tmp_path / partial / "out", tmp_path / partial, str(samples)], check=True
        )
    assert digest(tmp_path / "partial" / "out") == digest(tmp_path / "fresh" / "out")


TEXTS = [f"document {number}" for number in range(25)]


@pytest.fixture
def written(tmp_path):
    """Sources of `TEXTS`, by name: a module and its settings."""
    import pyarrow
    from pyarrow.parquet import write_table

    halves = TEXTS[:11], TEXTS[11:]
    for number, half in enumerate(halves):
        lines = "\n".join(f"{json.dumps({'text': text})}\n" for text in half)  # a blank one after each
        (tmp_path / f"{number}.jsonl").write_text(lines)
        write_table(pyarrow.table({"text": half}), tmp_path / f"{number}.parquet", row_group_size=4)
    return {
        name: (module, module.Config(paths=[str(tmp_path / f"{number}.{name}") for number in (0, 1)]))
        for name, module in (("jsonl", jsonl), ("parquet", parquet))
    }


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
@pytest.mark.parametrize("num", [0, 1, 4, 5, 8, 10, 11, 12, 15, 24, 25, 30])
def test_a_source_skips_so_many(name, num, written):
    assert list(after(*written[name], 0, num)) == TEXTS[num:]


def test_a_source_that_cannot_skip_is_read():
    config = demo.Config()
    assert list(islice(after(demo, config, 5, 7), 3)) == list(islice(demo.documents(config, 5), 10))[7:]


def test_skipped_lines_are_not_parsed_and_later_ones_are_told_by_their_number(written, monkeypatch):
    module, config = written["jsonl"]
    seen, parse = [], jsonl._document
    monkeypatch.setattr(jsonl, "_document", lambda *given: (seen.append(given[2]), parse(*given))[1])
    list(after(module, config, 0, 23))
    assert seen == [f"{config.paths[1]}:25", f"{config.paths[1]}:27"]


def test_skipped_row_groups_are_not_read(written, monkeypatch):
    module, config = written["parquet"]
    seen, read = [], parquet._column
    monkeypatch.setattr(parquet, "_column", lambda *given: (seen.append(given[2]), read(*given))[1])
    assert list(after(module, config, 0, 17)) == TEXTS[17:]
    assert seen == [[], [1, 2, 3]]


def test_a_dataset_of_the_hub_skips_itself_and_counts_on(monkeypatch):
    class Dataset(list):
        column_names = ("text",)

        def shuffle(self, seed):
            return Dataset(reversed(self))

        def skip(self, num):
            return Dataset(self[num:])

    monkeypatch.setattr(hf, "_open", lambda _: Dataset({"text": text} for text in [3, *TEXTS]))
    config = SimpleNamespace(id="a/b", field="text", shuffle=True, streaming=False)
    drawn = hf.documents_after(config, 0, 23)
    assert [next(drawn), next(drawn)] == [TEXTS[1], TEXTS[0]]
    with pytest.raises(Exception, match="row 26 drawn"):
        next(drawn)
