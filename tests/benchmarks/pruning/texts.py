"""What the teachers read: text found on every machine that has this environment, cut into disjoint splits.

A split is chosen by the hash of a document's name, so no document is in two, and a machine with a package more or
less keeps the others where they were. Nothing is downloaded.
"""

import ast
import hashlib
import io
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from compress.data import world

Split = Literal["train", "calibration", "recovery", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)
SHARES = {"heldout": 0.08, "calibration": 0.08, "recovery": 0.14, "train": 0.70}
"""Of the documents of a text."""

STDLIB = Path(sysconfig.get_paths()["stdlib"])
PACKAGES = Path(sysconfig.get_paths()["purelib"])
SCIENCE = ("numpy", "scipy", "sklearn", "pandas", "networkx", "sympy", "nltk", "torch")
MAX_CHARACTERS = 24_000
"""Of a document: a few huge files must not be a text of their own."""

WORLD_SEED = 20_000
"""Far from the demo's own seeds."""
WORLD_DOCUMENTS = {"train": 60_000, "calibration": 3_000, "recovery": 6_000, "heldout": 400}


def documents(text: str, split: Split) -> Iterator[tuple[str, str]]:
    """Yield name and content of every document of a split, in an order that mixes packages."""
    if text == "world":
        yield from _world(split)
        return
    for name, path in sorted(_files(text), key=lambda item: _unit(f"order {item[0]}")):
        if split_of(name) == split and (content := READERS[text](path)):
            yield name, content[:MAX_CHARACTERS]


def split_of(name: str) -> Split:
    """Return which split a document belongs to."""
    position = _unit(f"split {name}")
    for split, share in SHARES.items():
        if position < share:
            return split  # type: ignore[return-value]
        position -= share
    return "train"


def _unit(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _files(text: str) -> Iterator[tuple[str, Path]]:
    """Yield a stable name and the path of every file of a text."""
    for root, pattern in ROOTS[text]:
        for path in root.glob(pattern):
            name = str(path.relative_to(root))
            if path.is_file() and not _is_skipped(text, name):
                yield f"{root.name}/{name}" if root != PACKAGES else name, path


def _is_skipped(text: str, name: str) -> bool:
    # Thousands of ATen/ops headers say one thing with another name in it.
    return "/tests/" in name or "site-packages" in name or (text == "headers" and "ATen/ops/" in name)


def _code(path: Path) -> str:
    """Return a Python file without its docstrings, comments and blank lines; nothing if it is a stub."""
    source = path.read_text(encoding="utf-8", errors="replace")
    try:
        tree = ast.parse(source)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError):
        return ""
    lines = source.splitlines()
    dropped = {line for node in _docstrings(tree) for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    starts = dict(token.start for token in tokens if token.type == tokenize.COMMENT)
    kept = [
        line[: starts.get(number, len(line))].rstrip()
        for number, line in enumerate(lines, start=1)
        if number not in dropped
    ]
    code = "\n".join(line for line in kept if line)
    return code if len(code) > 400 else ""


def _prose(path: Path) -> str:
    """Return the docstrings of a Python file, or a file of text as it is."""
    source = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".py":
        return source if len(source) > 400 else ""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
    prose = "\n\n".join(doc for doc in found if doc)
    return prose if len(prose) > 400 else ""


def _headers(path: Path) -> str:
    source = path.read_text(encoding="utf-8", errors="replace")
    return source if len(source) > 400 else ""


def _docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(node.body) > 1:
                yield first.value


def _world(split: Split) -> Iterator[tuple[str, str]]:
    # The generator has three splits; a seed of its own makes the fourth.
    source, seed = ("train", WORLD_SEED + 1) if split == "recovery" else (split, WORLD_SEED)
    for number, text in enumerate(islice(world.documents(source, seed), WORLD_DOCUMENTS[split])):
        yield f"{split}/{number}", text


ROOTS: dict[str, list[tuple[Path, str]]] = {
    "code": [(PACKAGES, "transformers/models/**/*.py"), (STDLIB, "**/*.py")],
    "prose": [
        *((PACKAGES, f"{package}/**/*.py") for package in SCIENCE),
        (STDLIB, "*.py"),
        *((PACKAGES, f"{package}-*.dist-info/**/*[A-Z]") for package in SCIENCE),
    ],
    "headers": [(PACKAGES, "torch/include/**/*.h"), (PACKAGES, "torch/include/**/*.hpp")],
}
READERS: dict[str, Callable[[Path], str]] = {"code": _code, "prose": _prose, "headers": _headers}
