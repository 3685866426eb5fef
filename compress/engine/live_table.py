"""The table a person watches while a run works: one line a model, redrawn in place."""

from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from compress.engine.events import Listener, PlainLines, describe_progress, duration, whose

Event = dict[str, Any]


def for_terminal(stream: TextIO) -> Listener:
    """Return the live table when a person watches, plain lines otherwise."""
    return LiveTable() if stream.isatty() else PlainLines(stream)


class LiveTable:
    """Listens to events; draws what is done, what works and what waits."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._rows: dict[str, str] = {}
        self._uses: dict[str, str] = {}
        self._spent: dict[str, float] = {}
        self._now = ""
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._draw)

    def __call__(self, event: Event) -> None:
        kind, node = event["event"], str(event.get("node", ""))
        about = str(event.get("about", node))
        if kind == "plan":
            self._uses = {row["name"]: row["use"] for row in event["models"]}
            self._rows = dict.fromkeys(self._uses, "waiting")
            self._live.start()
        elif kind == "cached":
            self._rows[about] = "from the store"
        elif kind == "start":
            self._say(about, node, "starting")
        elif kind == "progress":
            self._say(about, node, describe_progress(event))
        elif kind == "child start":
            self._say(about, node, f"{event['child']}: starting")
        elif kind in ("warning", "waiting", "child failed"):
            self._console.print(Text(f"{whose(event)}: {event['message']}", style="yellow"))
        elif kind == "done":
            self._spent[about] = self._spent.get(about, 0.0) + event["seconds"]
            self._set(about, f"done, {duration(self._spent[about])}")
            self._now = ""
        elif kind == "failed":
            self._set(about, "failed")
        elif kind == "finish":
            self._now = ""
            self._live.stop()

    def _set(self, name: str, state: str) -> None:
        """Only models have a row; what is made on the way to them (data, tokenizers) has none."""
        if name in self._rows:
            self._rows[name] = state

    def _say(self, about: str, node: str, what: str) -> None:
        part = node.removeprefix(f"{about}/") if node != about else ""
        line = f"{part + ': ' if part else ''}{what}"
        if about in self._rows:
            self._rows[about] = line
            self._now = ""
        else:
            self._now = f"{node}: {what}"

    def _draw(self) -> Table:
        table = Table(
            box=None,
            padding=(0, 2, 0, 0),
            caption=Text(self._now) if self._now else None,
            caption_justify="left",
        )
        table.add_column("step", style="bold")
        table.add_column("use", style="dim")
        table.add_column("state", min_width=48)
        for name, state in self._rows.items():
            table.add_row(name, self._uses[name], Text(state, style="red" if state == "failed" else ""))
        return table
