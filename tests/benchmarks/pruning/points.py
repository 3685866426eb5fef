"""A point of the benchmark: one method, teacher, budget and seed, scored before and after the same short recovery.

Every point's result is a file named by what decides it, so a stopped run goes on where it was, and after a change
of our own code only our points are taken again.
"""

import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import own_code
import torch
from torch import Tensor

from compress.models.checkpoint import load_model

from . import teachers
from .rivals import METHODS, OURS, VERSION
from .scoring import Figures, figures, heldout_rows, predictions
from .steps import run_step
from .teachers import TEACHERS
from .torchpruning import CannotPrune

OWN_CODE = ("prune", "models")
"""The folders of `compress` whose change takes our points anew."""


SCORED_ALIKE = {"depth": "minitron"}
"""Methods that read the scores of another, by the first word of their names."""


@dataclass(frozen=True)
class Plan:
    """What is the same for every point."""

    documents: int = 48
    tokens: int = 81_920
    batch_tokens: int = 1024
    learning_rate: float = 1e-3

    @property
    def recovery(self) -> dict[str, Any]:
        """Return the settings of the `distill` step."""
        settings = {"tokens": self.tokens, "batch_tokens": self.batch_tokens, "micro_batch": 8}
        return {**settings, "learning_rate": self.learning_rate, "checkpoint_seconds": 3600.0}


@dataclass(frozen=True, order=True)
class Point:
    """What is measured."""

    teacher: str
    method: str
    budget: float
    seed: int

    def file(self, plan: Plan) -> Path:
        """Return where its result is, or will be."""
        decides = {**asdict(self), **asdict(plan), "teachers": teachers.VERSION}
        decides["method_version"] = own_version() if self.method in OURS else VERSION
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
        folder = TEACHERS[self.teacher].folder / "points"
        return folder / f"{self.method}-{round(100 * self.budget)}-{self.seed}-{key}.json"


@lru_cache(maxsize=1)
def own_version() -> str:
    """Return a digest of the code our method consists of."""
    return own_code.digest(OWN_CODE)


def measure_all(points: Iterable[Point], plan: Plan, workers: int) -> None:
    """Measure the points that have no result yet, on as many processes of one thread each."""
    waiting = sorted((point for point in points if not point.file(plan).is_file()), key=_turn)
    if not waiting:
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        groups = [list(group) for _, group in groupby(waiting, key=lambda point: _turn(point)[:-2])]
        started = [pool.submit(measure_group, group, plan) for group in groups]
        for done in as_completed(started):
            done.result()


def measure_group(points: list[Point], plan: Plan) -> None:
    """Measure points that share scores, one after the other, and say how each went."""
    for point in points:
        result = measure(point, plan)
        said = result.get("reason") or f"excess {_excess(result['before'], point, plan):.4f}"
        if "after" in result:
            said += f", recovered {_excess(result['after'], point, plan):.4f}, {result['seconds']:.0f} s"
        print(
            f"{point.teacher:8} {point.budget:4.0%} {point.method:14} seed {point.seed}  {said}", flush=True
        )


def _turn(point: Point) -> tuple[int, str, str, str, float]:
    """Seed by seed, so that a run that is stopped has compared everything once; methods that share scores together."""
    family = point.method.split("-")[0]
    return point.seed, point.teacher, SCORED_ALIKE.get(family, family), point.method, point.budget


def results(points: Iterable[Point], plan: Plan) -> Iterator[tuple[Point, dict[str, Any]]]:
    """Yield the points that have a result, with it."""
    for point in points:
        if (file := point.file(plan)).is_file():
            yield point, json.loads(file.read_text(encoding="utf-8"))


def measure(point: Point, plan: Plan) -> dict[str, Any]:
    """Prune, score, recover, score; write and return the result."""
    teacher, started = TEACHERS[point.teacher], time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        pruned, recovered = Path(scratch) / "pruned", Path(scratch) / "recovered"
        try:
            facts = METHODS[point.method](teacher.model, point.budget, point.seed, pruned)
        except CannotPrune as error:
            return _write(point, plan, {"reason": str(error)})
        pruning_seconds = time.monotonic() - started
        before = _score(pruned, point.teacher, plan)
        inputs = {"teacher": teacher.model, "data": teacher.tokens("recovery")}
        run_step("distill", pruned, recovered, plan.recovery, seed=point.seed, inputs=inputs)
        after = _score(recovered, point.teacher, plan)
        result = {
            "parameters": load_model(pruned).num_parameters(),
            "facts": facts,
            "before": asdict(before),
            "after": asdict(after),
            "pruning_seconds": pruning_seconds,
            "seconds": time.monotonic() - started,
        }
    return _write(point, plan, result)


@lru_cache(maxsize=1)
def teacher_predictions(name: str, plan: Plan) -> Tensor:
    """Return the teacher's log-probabilities on the held-out rows, fp32."""
    return predictions(load_model(TEACHERS[name].model), _heldout(name, plan))


def teacher_loss(name: str, plan: Plan) -> list[float]:
    """Return the teacher's loss on every held-out document, kept beside it."""
    path = TEACHERS[name].folder / f"loss-{plan.documents}.json"
    if not path.is_file():
        log_NTV = teacher_predictions(name, plan)
        model = load_model(TEACHERS[name].model)
        path.write_text(json.dumps(figures(model, log_NTV, _heldout(name, plan)).loss), encoding="utf-8")
    loss: list[float] = json.loads(path.read_text(encoding="utf-8"))
    return loss


def _score(folder: Path, name: str, plan: Plan) -> Figures:
    return figures(load_model(folder), teacher_predictions(name, plan), _heldout(name, plan))


def _heldout(name: str, plan: Plan) -> Tensor:
    return heldout_rows(TEACHERS[name].tokens("heldout"), plan.documents)


def _excess(scored: dict[str, list[float]], point: Point, plan: Plan) -> float:
    loss, teacher = scored["loss"], teacher_loss(point.teacher, plan)
    return sum(a - b for a, b in zip(loss, teacher, strict=True)) / len(loss)


def _write(point: Point, plan: Plan, result: dict[str, Any]) -> dict[str, Any]:
    path = point.file(plan)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.replace(path)
    return result
