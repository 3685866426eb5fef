"""From the points' results to rows, intervals and targets.

Seeds and held-out documents are both samples, so an interval resamples both: the 2.5 % and 97.5 % quantiles of the mean
over bootstrap draws. Two methods are compared on the same seeds and documents.

Recovery with one recipe for all can also harm: a model that lost almost nothing is thrown back by the learning rate
that a broken one needs. So a third figure stands beside the two: what is *kept*, the better of both as every second
held-out document says, scored on the others; the same rule for every method.

Shapes: S seeds, D documents (half as many for what is kept).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .points import Plan, Point, teacher_loss
from .teachers import TEACHERS

DRAWS = 4000
PHASES = ("before", "after")
COMPARED = ("before", "after", "kept")
SAID = {"before": "before recovery", "after": "after recovery", "kept": "better of both"}
LESS_EXCESS = 0.10
Array = np.ndarray[Any, np.dtype[np.float64]]
Results = dict[Point, dict[str, Any]]
Row = dict[str, Any]


def interval(values_SD: Array) -> tuple[float, float, float]:
    """Return the mean and its 95 % bootstrap interval over seeds and documents."""
    r = np.random.default_rng(0)
    num_seeds, num_documents = values_SD.shape
    seeds = r.integers(num_seeds, size=(DRAWS, num_seeds))
    documents = r.integers(num_documents, size=(DRAWS, num_documents))
    means = np.array([values_SD[s][:, d].mean() for s, d in zip(seeds, documents, strict=True)])
    low, high = np.quantile(means, (0.025, 0.975))
    return float(values_SD.mean()), float(low), float(high)


def raw_rows(found: Results, plan: Plan) -> Iterator[Row]:
    """Yield every figure of every point, in nats a token over `n` documents."""
    for point, result in found.items():
        named = {"teacher": point.teacher, "method": point.method, "budget": point.budget, "seed": point.seed}
        if "reason" in result:
            yield {**named, "reason": result["reason"]}
            continue
        teacher = float(np.mean(teacher_loss(point.teacher, plan)))
        for phase in PHASES:
            loss, kl = (float(np.mean(result[phase][figure])) for figure in ("loss", "kl"))
            yield {
                **named,
                "phase": phase,
                "loss": round(loss, 5),
                "excess_loss": round(loss - teacher, 5),
                "kl": round(kl, 5),
                "unit": "nats/token",
                "n": plan.documents,
                "parameters": result["parameters"],
                "pruning_seconds": round(result["pruning_seconds"], 1),
                "shape": result["facts"].get("shape") or result["facts"],
            }


def excess(
    found: Results,
    teacher: str,
    method: str,
    budget: float,
    phase: str,
    plan: Plan,
    seeds: set[int] | None = None,
) -> Array | None:
    """Return the excess loss over the teacher ``[S, D]``, or nothing where the method made no model."""
    chosen = [
        result
        for point, result in sorted(found.items())
        if (point.teacher, point.method, point.budget) == (teacher, method, budget)
        and "before" in result
        and (seeds is None or point.seed in seeds)
    ]
    if not chosen:
        return None
    whole_D = np.array(teacher_loss(teacher, plan))
    if phase == "kept":
        return np.array([_kept(result) for result in chosen]) - whole_D[1::2]
    return np.array([result[phase]["loss"] for result in chosen]) - whole_D


def _kept(result: Row) -> Array:
    """Return the losses on every second document of the better model, as the other documents say."""
    before_D, after_D = (np.array(result[phase]["loss"]) for phase in PHASES)
    return (before_D if before_D[::2].mean() <= after_D[::2].mean() else after_D)[1::2]


def _seeds(found: Results, teacher: str, method: str, budget: float) -> set[int]:
    return {p.seed for p in found if (p.teacher, p.method, p.budget) == (teacher, method, budget)}


def targets(found: Results, budgets: Iterable[float], names: Iterable[str], plan: Plan) -> list[Row]:
    """Compare ours with Minitron at every point, before and after, and over all points."""
    made: list[Row] = []
    for phase in COMPARED:
        saved: dict[bool, list[float]] = {False: [], True: []}
        for name in names:
            for budget in budgets:
                both = _seeds(found, name, "ours", budget) & _seeds(found, name, "minitron", budget)
                mine, theirs = (
                    excess(found, name, m, budget, phase, plan, both) for m in ("ours", "minitron")
                )
                if mine is None or theirs is None:
                    continue
                made.append(_target(f"{name}, {budget:.0%}", phase, interval(mine - theirs), mine.size))
                saved[TEACHERS[name].held_out].append(1 - float(mine.mean() / theirs.mean()))
        made += [_average(shares, held_out, phase) for held_out, shares in saved.items() if shares]
    return made


def _target(where: str, phase: str, difference: tuple[float, float, float], n: int) -> Row:
    mean, low, high = difference
    before = phase == "before"
    return {
        "name": f"{where}: ours against Minitron, {SAID[phase]}",
        "goal": "95 % paired interval below 0" if before else "mean difference at most 0",
        "measured": f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] nats/token, n={n} seeds x documents",
        "met": high < 0 if before else mean <= 0,
    }


def _average(shares: list[float], held_out: bool, phase: str) -> Row:
    mean = sum(shares) / len(shares)
    return {
        "name": f"{'held-out' if held_out else 'development'} teachers: less excess loss, {SAID[phase]}",
        "goal": f"at least {LESS_EXCESS:.0%} on average",
        "measured": f"{mean:+.1%}, n={len(shares)} points",
        "met": mean >= LESS_EXCESS,
    }


def table(found: Results, budgets: Iterable[float], names: Iterable[str], plan: Plan) -> Iterator[str]:
    """Yield the lines of the printed table: excess loss with its interval, and KL."""
    head = f"{'teacher':8} {'kept':>5} {'method':14} {'params':>7}"
    yield f"{head}   {'excess loss before':27} {'KL':>6}   {'after recovery':27} {'KL':>6}   better of both"
    methods = list(dict.fromkeys(point.method for point in found))
    for name in names:
        for budget in budgets:
            for method in methods:
                chosen = [
                    r for p, r in found.items() if (p.teacher, p.method, p.budget) == (name, method, budget)
                ]
                if chosen:
                    yield f"{name:8} {budget:5.0%} {method:14} {_cells(found, name, method, budget, chosen, plan)}"


def _cells(found: Results, name: str, method: str, budget: float, chosen: list[Row], plan: Plan) -> str:
    if "reason" in chosen[0]:
        return f"      -   {chosen[0]['reason']}"
    cells = [f"{np.mean([r['parameters'] for r in chosen]) / 1e6:6.2f}M"]
    for phase in PHASES:
        values_SD = excess(found, name, method, budget, phase, plan)
        assert values_SD is not None
        mean, low, high = interval(values_SD)
        cells.append(
            f"{mean:7.4f} [{low:7.4f}, {high:7.4f}]  {np.mean([r[phase]['kl'] for r in chosen]):6.3f}"
        )
    kept_SD = excess(found, name, method, budget, "kept", plan)
    assert kept_SD is not None
    return "   ".join([*cells, "{:7.4f} [{:7.4f}, {:7.4f}]".format(*interval(kept_SD))])
