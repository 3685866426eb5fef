"""What a person on a terminal sees, drawn on a pretended one (a pty)."""

import io
import os
import pty
from pathlib import Path

import pytest

from compress.engine.events import PlainLines, to_file, while_it_is_there
from compress.engine.live_table import LiveTable, for_terminal

EVENTS = (
    {"event": "plan", "models": [{"name": "recover", "use": "distill"}], "num_nodes": 2, "num_cached": 0},
    {"event": "start", "node": "data/text", "about": "data/text", "use": "data.pack"},
    {"event": "done", "node": "data/text", "about": "data/text", "seconds": 1.0},
    {"event": "start", "node": "recover", "about": "recover", "use": "distill"},
    {"event": "progress", "node": "recover", "about": "recover", "done": 5, "total": 10, "unit": "tokens"},
    {"event": "warning", "node": "recover", "about": "recover", "message": "[mind] the brackets"},
    {
        "event": "child start",
        "node": "recover",
        "about": "recover",
        "child": "width-3f2a90c1",
        "use": "prune.width",
    },
    {
        "event": "child failed",
        "node": "recover",
        "about": "recover",
        "child": "width-3f2a90c1",
        "message": "too small",
    },
    {"event": "done", "node": "recover", "about": "recover", "seconds": 3.0},
    {"event": "start", "node": "recover/quality", "about": "recover", "use": "measure.quality"},
    {"event": "failed", "node": "recover/quality", "about": "recover", "message": "it broke"},
    {"event": "finish", "status": "failed", "seconds": 4.0},
)


def test_a_terminal_gets_the_table_and_a_file_gets_lines(tmp_path):
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal, (tmp_path / "log").open("w") as file:
        assert isinstance(for_terminal(terminal), LiveTable)
        assert isinstance(for_terminal(file), PlainLines)
    os.close(master)


def test_the_table_shows_every_event(capsys):
    table = LiveTable()
    for event in EVENTS:
        table(event)
    shown = capsys.readouterr().err
    assert "recover" in shown and "failed" in shown and "[mind] the brackets" in shown
    assert "recover: width-3f2a90c1: too small" in shown


def test_a_childs_progress_begins_with_its_name():
    table = LiveTable()
    table(EVENTS[0])
    table({**EVENTS[4], "child": "width-3f2a90c1"})
    table(EVENTS[-1])
    assert table._rows["recover"] == "width-3f2a90c1: 50 % of 10 tokens"


def test_plain_lines_tell_what_a_child_came_to():
    stream = io.StringIO()
    lines = PlainLines(stream)
    for event in EVENTS:
        lines(event)
    lines({"event": "child done", "node": "recover", "child": "width-3f2a90c1", "seconds": 2.0})
    told = stream.getvalue()
    assert "recover: width-3f2a90c1: failed: too small\n" in told
    assert "recover: width-3f2a90c1: done in 2.0 s\n" in told


def test_a_run_outlives_who_read_its_lines():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        tell = while_it_is_there(PlainLines(stream))
        os.close(reading)
        tell(EVENTS[1])
        tell(EVENTS[5])
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # for what is flushed when it is closed


def test_an_event_that_a_full_disk_refused_is_not_tried_again_when_the_file_is_closed():
    stream = Path("/dev/full").open("a")  # noqa: SIM115  # closing it is what is tested
    with pytest.raises(OSError, match="No space left"):
        to_file(stream)(EVENTS[1])
    stream.close()
