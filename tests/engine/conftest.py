"""Tiny step modules of a pretended other distribution, so that workers (other processes) can import them."""

import sys
import textwrap

import pytest

STEPS = {
    "fake_write": """
        PRODUCES = "text"
        def run(parent, config, context):
            before = (parent.path / "text").read_text() if parent else ""
            (context.folder / "text").write_text(before + config.text)
            return Outcome(facts={"pid": os.getpid()})
    """,
    "fake_slow": """
        PRODUCES = "text"
        def run(parent, config, context):
            state = context.partial / "count"
            count = int(state.read_text()) if state.exists() else 0
            while count < config.steps:
                count += 1
                time.sleep(0.02)
                context.progress(count, config.steps, "steps")
                if count % 5 == 0:
                    temporary = state.with_suffix(".new")
                    temporary.write_text(str(count))
                    temporary.replace(state)
                if context.stopping:
                    context.stop()
            (context.folder / "text").write_text(f"{config.steps} steps")
            return Outcome()
    """,
    "fake_saving": """
        PRODUCES = "text"
        def run(parent, config, context):
            context.stop_takes(config.steps)
            (context.partial / "began").touch()
            while not context.stopping:
                time.sleep(0.02)
            (context.partial / "saving").touch()
            time.sleep(2)
            (context.partial / "saved").touch()
            context.stop()
    """,
    "fake_bad": """
        PRODUCES = "text"
        def run(parent, config, context):
            (context.folder / "half").write_text("half-written")
            if config.text == "die":
                os.kill(os.getpid(), 9)
            if config.text == "stubborn":
                time.sleep(60)
            if config.text == "full":
                raise OSError(28, "No space left on device")
            if config.text == "lib":
                raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
            raise ValueError(config.text)
    """,
    "fake_team": """
        PRODUCES = "text"
        def run(parent, config, context):
            raise ProcessDied("one of its processes died")
    """,
    "fake_search": """
        PRODUCES = "text"
        def run(parent, config, context):
            if config.saves:
                context.stopping
            (context.partial / "began").write_text(str(os.getpid()))
            found, failed = [], []
            for use, settings in json.loads(config.text):
                try:
                    found.append(context.submit(use, settings, parent))
                except StepFailed as error:
                    if not config.forgives:
                        raise
                    failed.append(str(error))
            (context.folder / "text").write_text(" ".join((a.path / "text").read_text() for a in found))
            spec = ModelSpec(config={}, tensors={}, num_parameters=len(found))
            return Outcome(spec=spec, facts={"failed": failed})
    """,
    "fake_warn": """
        PRODUCES = "text"
        def run(parent, config, context):
            context.warn(config.text)
            time.sleep(0.3)
            (context.folder / "text").write_text(config.text)
            return Outcome(spec=ModelSpec(config={}, tensors={}, num_parameters=7), facts={"curve": [1], "a": 1})
    """,
}
HEAD = """
import json, os, time
from compress.engine.launcher import ProcessDied
from compress.errors import StepFailed
from compress.plugins import StepConfig
from compress.records import ModelSpec, Outcome
VERSION = 1
ACCEPTS = ("text",)
class Config(StepConfig):
    text: str = ""
    steps: int = 0
    saves: bool = False
    forgives: bool = False
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty store, and the fake steps installed."""
    site = tmp_path / "site"
    info = site / "fake-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 0\n")
    names = "\n".join(f"{name} = {name}" for name in STEPS)
    (info / "entry_points.txt").write_text(f"[compress.plugins]\n{names}\n")
    for name, source in STEPS.items():
        (site / f"{name}.py").write_text(HEAD + textwrap.dedent(source))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("COMPRESS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("compress.engine.workers.PRELOAD", ("compress.engine.worker",))
    from compress import plugins

    plugins._entry_points.cache_clear()
    yield tmp_path / "home"
    plugins._entry_points.cache_clear()
    for name in STEPS:
        sys.modules.pop(name, None)
