"""A point of the real model's benchmark: one axis, share, seed and method, pruned, and perhaps recovered, and scored.

Every result is a file named by what decides it, written as soon as it is there: a stopped run goes on where it was, and
after a change of our own code only our points are taken again.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import own_code

from compress.models.spec import read_spec

from .cutting import Shape
from .heldout import Heldout, heldout_rows, load
from .real_methods import METHODS, RIVAL, VERSION, num_inside
from .steps import run_step

OWN_CODE = ("prune", "models")
"""The folders of `compress` whose change takes our points anew."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is the same for every point."""

    heldout_rows: int = 24
    row_length: int = 256
    calibration_rows: int = 64
    batch_tokens: int = 1024
    learning_rate: float = 1e-4
    calibrated_on: str = "calibration"
    recovered_on: str = "recovery"
    vocabulary: int | None = None


@dataclass(frozen=True, order=True)
class Point:
    """What is measured. tokens: how many the pruned model is distilled on, 0 for none."""

    tokens: int
    seed: int
    axis: str
    share: float
    method: str

    def __str__(self) -> str:
        recovered = f", {self.tokens:,} tokens" if self.tokens else ""
        return f"{self.axis} {self.share:.0%} seed {self.seed} {self.method}{recovered}"


class Bench:
    """A model, its texts, and the results there are."""

    def __init__(self, model: Path, heldout: Path, work: Path, plan: Plan) -> None:
        self.model, self.work, self.plan = model, work, plan
        self._text = heldout

    def results(self) -> dict[Point, Result]:
        """Return the results of this plan, this model and this code."""
        found: dict[Point, Result] = {}
        for file in self._points.glob("*.json"):
            result = json.loads(file.read_text(encoding="utf-8"))
            point = Point(**result["point"])
            if self.file(point) == file:
                found[point] = result
        return dict(sorted(found.items()))

    def file(self, point: Point) -> Path:
        """Return where a point's result is, or will be."""
        name = f"{point.axis}-{point.share:g}-{point.seed}-{point.method}"
        return self._points / f"{name}{f'-{point.tokens}' if point.tokens else ''}-{self._key(point)}.json"

    def measure(self, point: Point) -> Result:
        """Prune, score, and where it is wanted recover and score again; write and return the result."""
        work = self.work / self.file(point).stem
        pruned, facts = self._pruned(point, work / "pruned")
        started = time.monotonic()
        phases = {"before": asdict(self._heldout.excess(load(pruned)))}
        facts["scoring_seconds"] = time.monotonic() - started
        if point.tokens:
            facts["recovery_seconds"] = self._recover(point, pruned, work / "recovered")
            phases["after"] = asdict(self._heldout.excess(load(work / "recovered")))
        result = {"point": asdict(point), **facts, **phases}
        _write(self.file(point), result)
        shutil.rmtree(work)
        return result

    def calibration(self, seed: int) -> Path:
        return self.work / f"calibration-{seed}"

    @property
    def recovery(self) -> Path:
        return self.work / self.plan.recovered_on

    def _pruned(self, point: Point, folder: Path) -> tuple[Path, Result]:
        """Return the pruned model and facts about it; a stopped recovery finds them again."""
        said = folder.parent / "pruned.json"
        if not said.is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            method = METHODS[point.method]
            facts = method(
                self.model, self.calibration(point.seed), point.axis, point.share, point.seed, folder
            )
            seconds = time.monotonic() - started
            _write(said, {**self._sizes(folder), "pruning_seconds": seconds, "facts": facts})
        return folder, json.loads(said.read_text(encoding="utf-8"))

    def _sizes(self, folder: Path) -> Result:
        config, before = read_spec(folder).config, read_spec(self.model).config
        shape, full = Shape.of(config), Shape.of(before)
        return {
            "parameters": shape.num_parameters(config),
            "share_of_parameters": shape.num_parameters(config) / full.num_parameters(before),
            "share_inside": num_inside(shape, config) / num_inside(full, before),
            "shape": vars(shape),
        }

    def _recover(self, point: Point, pruned: Path, recovered: Path) -> float:
        """Distil the pruned model from the original; return the seconds, of this run where there were several."""
        settings = {
            "tokens": point.tokens,
            "batch_tokens": self.plan.batch_tokens,
            "learning_rate": self.plan.learning_rate,
            "checkpoint_seconds": 300.0,
        }
        inputs, started = {"teacher": self.model, "data": self.recovery}, time.monotonic()
        run_step("distill", pruned, recovered, settings, seed=point.seed, inputs=inputs, say=str(point))
        return time.monotonic() - started

    @cached_property
    def _heldout(self) -> Heldout:
        plan = self.plan
        rows_NT = heldout_rows(self._text, self.model, plan.heldout_rows, plan.row_length)
        key = _key([*self._given, plan.heldout_rows, plan.row_length])
        return Heldout(load(self.model), rows_NT, self.work / f"original-{key}.pt")

    @cached_property
    def _given(self) -> list[str]:
        """Return digests of the model's configuration and sizes, and of the held-out text."""
        weights = [(file.name, file.stat().st_size) for file in sorted(self.model.glob("*.safetensors"))]
        return [_digest(self.model / "config.json"), json.dumps(weights), _digest(self._text)]

    @property
    def _points(self) -> Path:
        return self.work / "points"

    def _key(self, point: Point) -> str:
        version = VERSION if point.method == RIVAL else own_version()
        read = [_digest(self.calibration(point.seed) / "tokens.bin")]
        if point.tokens:
            read.append(_digest(self.recovery / "tokens.bin"))
        return _key([asdict(point), asdict(self.plan), self._given, read, version])


@lru_cache(maxsize=1)
def own_version() -> str:
    """Return a digest of the code our method consists of."""
    return own_code.digest(OWN_CODE)


def rows(found: dict[Point, Result], plan: Plan) -> Iterator[dict[str, Any]]:
    """Yield every figure of every point, in nats a token over the held-out rows."""
    for point, result in found.items():
        for phase in ("before", "after"):
            if phase not in result:
                continue
            loss, kl = (result[phase][name] for name in ("loss", "kl"))
            yield {
                **asdict(point),
                "phase": phase,
                "excess_loss": round(sum(loss) / len(loss), 5),
                "kl": round(sum(kl) / len(kl), 5),
                "unit": "nats/token",
                "n": len(loss),
                "row_length": plan.row_length,
                **{name: result[name] for name in ("parameters", "share_of_parameters", "share_inside")},
                **{name: round(s, 1) for name, s in result.items() if name.endswith("_seconds")},
                "shape": result["shape"],
                "excess_loss_by_row": [round(value, 4) for value in loss],
            }


def _key(decides: list[Any]) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


@lru_cache(maxsize=64)
def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _write(path: Path, result: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")
    temporary.replace(path)
