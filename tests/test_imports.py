"""The shape of the house: which room may import which, and that planning imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "compress"

FOUNDATION = {
    "records",
    "errors",
    "plugins",
    "quantities",
    "digests",
    "environment",
    "machine",
    "speed",
    "nvml",
    "accelerators",
    "cards",
    "cores",
    "processes",
}
MAY_IMPORT = {
    "pipeline": FOUNDATION,
    "engine": FOUNDATION | {"pipeline"},
    "models": FOUNDATION,
    "data": FOUNDATION,
    "train": FOUNDATION | {"models", "data", "backends", "meters"},
    "prune": FOUNDATION | {"models", "data", "backends", "meters"},
    "distill": FOUNDATION | {"models", "data", "train"},
    "backends": FOUNDATION | {"models"},
    "meters": FOUNDATION | {"backends", "data"},
    "quantize": FOUNDATION | {"models", "data", "meters"},
    "export": FOUNDATION | {"models", "data", "meters", "quantize", "backends"},
    "measure": FOUNDATION | {"models", "data", "backends", "meters"},
    "report": FOUNDATION,
    "api": FOUNDATION | {"pipeline", "engine", "report"},
    "cli": FOUNDATION | {"api", "engine", "report", "__version__"},
}
"""What is not a folder of the package is a file at its top level. A step never imports another step's module."""


def imports_of(path):
    """Every name a file imports from the package, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("compress."))
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "compress":
                yield from (f"compress.{alias.name}" for alias in node.names)
            elif node.module.startswith("compress."):
                yield node.module


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = MAY_IMPORT.get(room, FOUNDATION | {"api", "cli"})
    rooms = {name.split(".")[1] for name in imports_of(path)}
    assert rooms <= allowed | {room}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_step_imports_another_step(path):
    steps = {
        str(f.relative_to(PACKAGE.parent).with_suffix("")).replace("/", ".")
        for f in FILES
        if "\nPRODUCES" in (source := f.read_text()) and "def run(" in source
        if "\nINTERNAL = True" not in source  # work that steps have done for them: they need its settings
    }
    own = str(path.relative_to(PACKAGE.parent).with_suffix("")).replace("/", ".")
    assert not (set(imports_of(path)) & steps) - {own} or own not in steps


LIGHT = """
import sys, compress.cli, compress.api
from compress import plugins
for name in plugins.step_names():
    plugins.step(name)
for family in plugins.available("models.families"):
    plugins.load("models.families", family)
for measurement in ("quality", "divergence", "latency", "memory"):
    plugins.internal(f"measure.{measurement}")
import compress.pipeline.planner, compress.report
heavy = {"torch", "transformers", "onnxruntime", "datasets", "lm_eval", "scipy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_planning_and_reporting_import_nothing_heavy():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)
