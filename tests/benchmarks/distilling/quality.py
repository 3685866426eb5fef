"""A point of the quality benchmark: one way to recover one pruned teacher on so many tokens, and what it reaches.

Every point's result is a file named by what decides it, this package's code included, so a stopped run goes on.

Shapes: N targets, V vocabulary, K of them kept, D documents.
"""

import hashlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import own_code
import torch
from pruning import teachers
from pruning.scoring import ROWS_PER_DOCUMENT, figures, predictions
from pruning.steps import FolderContext, run_step
from pruning.teachers import TEACHERS
from torch import Tensor

from compress import plugins
from compress.data.tokens import PackedTokens
from compress.distill.cache_teacher import OF_TRAINING
from compress.distill.objective import Distillation, Recipe
from compress.distill.teacher import load_teacher, shared_ids
from compress.models.checkpoint import load_model
from compress.models.spec import read_spec
from compress.records import Artifact
from compress.train.distribution import Distribution
from compress.train.student import train_student

VERSION = 1
"""Raised when a rival's result changes: every point is then taken again."""
OWN_CODE = ("prune", "models", "data", "train", "distill")
KEPT, CUT_SEED, TOP_K = "50%", 0, 32
DOCUMENTS = 32
"""Held-out documents a point is judged by; the sweep has as many others, from the end."""
FIRST = {"report": 0, "sweep": teachers.HELDOUT_DOCUMENTS - DOCUMENTS}


@dataclass(frozen=True, order=True)
class Point:
    """What is measured, and on which held-out documents: those of the `report` or of the `sweep`."""

    seed: int
    tokens: int
    teacher: str
    method: str
    learning_rate: float
    judged: str = "report"

    @property
    def file(self) -> Path:
        """Return where its result is, or will be."""
        decides = {**asdict(self), "teachers": teachers.VERSION, "version": VERSION, "code": own_version()}
        decides |= {"kept": KEPT, "cut_seed": CUT_SEED, "top_k": TOP_K, "documents": DOCUMENTS}
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        name = f"{self.method.replace(' ', '-')}-{self.tokens}-{self.seed}-{key}.json"
        return TEACHERS[self.teacher].folder / "recovery-points" / name

    @property
    def result(self) -> dict[str, Any] | None:
        """Return its result, if it is there."""
        return json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings all methods train with."""
        batch = {"tokens": self.tokens, "batch_tokens": 1024, "micro_batch": 8}
        return {**batch, "learning_rate": self.learning_rate, "checkpoint_seconds": 3600.0}


@lru_cache(maxsize=1)
def own_version() -> str:
    """Return a digest of the code that prunes and recovers."""
    return own_code.digest(OWN_CODE)


def measure(point: Point) -> dict[str, Any]:
    """Recover, score, write and return the result."""
    start = pruned(point.teacher)
    with tempfile.TemporaryDirectory() as scratch:
        if point.method == "from scratch":
            start = Path(scratch) / "random"
            run_step("train.initialize", pruned(point.teacher), start, {}, seed=point.seed)
        out, began = Path(scratch) / "out", time.monotonic()
        _recover(point, start, out, Path(scratch))
        seconds = time.monotonic() - began
        result = {**score(out, point.teacher, point.judged), "seconds": seconds}
    return _write(point.file, result)


def pruned(name: str) -> Path:
    """Return the teacher cut by `prune` with its defaults, made once for all methods, seeds and budgets."""
    teacher = TEACHERS[name]
    folder = teacher.folder / f"pruned-{KEPT.rstrip('%')}-{own_version()}"
    if not folder.is_dir():
        made = folder.with_name(f"{folder.name}.new")
        inputs = {"calibration": teacher.tokens("calibration")}
        run_step("prune", teacher.model, made, {"target": {"params": KEPT}}, seed=CUT_SEED, inputs=inputs)
        made.rename(folder)
    return folder


def score(folder: Path, name: str, judged: str) -> dict[str, list[float]]:
    """Return loss and KL to the teacher of every held-out document ``[D]``, and the teacher's own loss."""
    first, last = (count * ROWS_PER_DOCUMENT for count in (FIRST[judged], FIRST[judged] + DOCUMENTS))
    rows_NT = PackedTokens.open(TEACHERS[name].tokens("heldout")).rows(first, last)
    log_NTV, teacher_D = _of_teacher(name, judged, rows_NT)
    found = figures(load_model(folder), log_NTV, rows_NT)
    return {"loss": found.loss, "kl": found.kl, "teacher_loss": teacher_D}


_TEACHERS: dict[tuple[str, str], tuple[Tensor, list[float]]] = {}


def _of_teacher(name: str, judged: str, rows_NT: Tensor) -> tuple[Tensor, list[float]]:
    if (name, judged) not in _TEACHERS:
        model = load_model(TEACHERS[name].model)
        log_NTV = predictions(model, rows_NT)
        _TEACHERS[name, judged] = log_NTV, figures(model, log_NTV, rows_NT).loss
    return _TEACHERS[name, judged]


def _recover(point: Point, start: Path, out: Path, scratch: Path) -> None:
    """Train the model at `start` by the point's method, into `out`."""
    teacher = TEACHERS[point.teacher]
    inputs = {"teacher": teacher.model, "data": teacher.tokens("recovery")}
    match point.method:
        case "ours" | "from scratch":
            run_step("distill", start, out, point.settings, seed=point.seed, inputs=inputs)
        case "ours, cached":
            _from_cache(point, start, out, scratch)
        case "labels":
            data = {"data": inputs["data"]}
            run_step("train", start, out, point.settings, seed=point.seed, inputs=data)
        case "top-k":
            _by_top_k(point, start, out, scratch)
        case other:
            raise AssertionError(other)


def _from_cache(point: Point, start: Path, out: Path, scratch: Path) -> None:
    """Ask the teacher, then train from its answers: what `distill` prepares is made from the teacher."""
    step, teacher = plugins.internal("distill"), TEACHERS[point.teacher]
    config = step.Config(**point.settings, cache_teacher=True)
    asked = {name: getattr(config, name) for name in OF_TRAINING}
    data = {"data": teacher.tokens("recovery")}
    signals = scratch / "signals"
    run_step("distill.cache_teacher", teacher.model, signals, asked, seed=point.seed, inputs=data)
    context = _context(point, out, scratch)
    context.inputs = {**context.inputs, "signals": Artifact(key="s", kind="teacher_signals", path=signals)}
    step.run(_model(start), config, context)


def _by_top_k(point: Point, start: Path, out: Path, scratch: Path) -> None:
    """Train as `distill` does, by the divergence of what is left of the teacher."""
    config, folder = plugins.internal("distill").Config(**point.settings), TEACHERS[point.teacher].model
    teacher = load_teacher(folder, config.precision, config.teacher_precision)
    num_ids, recipe = shared_ids(start, folder).num_ids, Recipe(renormalized_top_k)
    context = _context(point, out, scratch)
    train_student(
        _model(start), config, context, lambda student: Distillation(student, teacher, recipe, num_ids)
    )


def renormalized_top_k(student: Distribution, teacher: Distribution) -> tuple[Tensor, Tensor]:
    """Return ``KL(p' ‖ q)`` ``[N]`` and its gradient ``q − p'`` ``[N, V]``; p' is the teacher's top K, scaled to 1.

    As caches of the likeliest logits are commonly used. The tail's mass goes to the head, so the student that is best
    by it is too sure.
    """
    top_NK, ids_NK = teacher.probs.topk(min(TOP_K, teacher.probs.shape[-1]), dim=-1)
    top_NK = top_NK / top_NK.sum(-1, keepdim=True)
    log_NK = student.logits.gather(-1, ids_NK) - student.log_normalizer[:, None]
    loss_N = (torch.special.xlogy(top_NK, top_NK) - top_NK * log_NK).sum(-1)
    return loss_N, student.probs.scatter_add(-1, ids_NK, -top_NK)


def _context(point: Point, out: Path, scratch: Path) -> FolderContext:
    partial, teacher = scratch / "partial", TEACHERS[point.teacher]
    for folder in (out, partial):
        folder.mkdir(parents=True)
    data = Artifact(key="data", kind="tokens", path=teacher.tokens("recovery"))
    return FolderContext(out, partial, {"teacher": _model(teacher.model), "data": data}, point.seed)


def _model(folder: Path) -> Artifact:
    return Artifact(key=str(folder), kind="hf", path=folder, spec=read_spec(folder))


def _write(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(path)
    return result


def start_figures(name: str) -> dict[str, Any]:
    """Return the figures of the pruned model before any recovery, kept beside it."""
    path = pruned(name) / "figures-report.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return _write(path, score(pruned(name), name, "report"))
