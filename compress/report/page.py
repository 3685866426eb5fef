"""The HTML file: what each section says is decided in its own module; here they are put on one page.

The page fetches nothing and runs nothing: its policy allows one style sheet, by its hash. Every value a
template prints goes through `visible` and then through escaping, with no exception but our own style sheet.
"""

import base64
import hashlib
import os
import shlex
from functools import cache, partial
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.records import RunRecord, StepRecord
from compress.report import appendix, charts, figures, outcome, searches, tables, units
from compress.report.key_figures import key_figures
from compress.report.looks import not_to_the_bit
from compress.report.text import visible
from compress.report.trainings import training
from compress.report.verdict import judge

if TYPE_CHECKING:
    from jinja2 import Environment


def render(run: RunRecord) -> str:
    """Return the report of a run as one HTML document that stands alone."""
    verdict = judge(run)
    best = verdict.best
    costs = charts.costs(run)
    page = _templates().get_template("report.html.jinja")
    return page.render(
        run=run,
        verdict=verdict,
        key_figures=[] if run.rehearsal or best is None else list(key_figures(run, best)),
        charts=[(charts.scatters(run, cost, best), appendix.chart_twin(run, cost, best)) for cost in costs],
        results=tables.results(run, best),
        effort=tables.effort(run, best),
        tasks=tables.tasks(run, best),
        speed=tables.speed(run, best),
        trainings=[(drawn, appendix.curve_twin(step)) for step in run.steps if (drawn := training(step))],
        searches=[drawn_search(step, found) for step in run.steps if (found := searches.search_of(step))],
        samples=samples(run),
        roots=[step for step in run.steps if figures.parent(run, step) is None],
        children=partial(children, run),
        details=details,
        warnings=[(step.name, warning) for step in run.steps for warning in step.warnings],
        exports=[(step, export_command(run, step)) for step in run.leaves],
        inexact=[finding for step in run.steps for finding in not_to_the_bit(step)],
        environment=appendix.environment(run),
        artifacts=appendix.artifacts(run),
        work=appendix.work(run),
        everything=appendix.everything(run),
    )


def write_report(run: RunRecord, path: Path) -> Path:
    """Write the report to `path`, whole or not at all, and return `path`. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staged.write_text(render(run), encoding="utf-8")
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    return path


def samples(run: RunRecord) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Return each prompt with its rows: a step's name, what it writes like the original, and its own rest."""
    by_prompt: dict[str, dict[str, str]] = {}
    for step in run.steps:
        for one in step.generations:
            by_prompt.setdefault(one.prompt, {})[step.name] = one.text
    reference = figures.original(run)
    leader = reference.name if reference else ""
    return [
        (prompt, [(name, *_split(text, texts.get(leader), name == leader)) for name, text in texts.items()])
        for prompt, texts in by_prompt.items()
    ]


def children(run: RunRecord, step: StepRecord) -> list[StepRecord]:
    """Return the steps built on this one."""
    return [other for other in run.steps if other.parent == step.name]


def drawn_search(step: StepRecord, found: searches.Search) -> tuple[Any, ...]:
    """Return a search's step, and its two charts each with a table twin."""
    return (
        step,
        searches.candidates(step, found),
        searches.candidates_twin(step, found),
        searches.probes(step, found),
        searches.probes_twin(step, found),
    )


def details(step: StepRecord) -> list[tuple[str, list[outcome.Line]]]:
    """Return a step's settings and what came of it, each under its heading."""
    parts = [("Settings", outcome.settings(step)), ("What came of it", outcome.found(step))]
    return [(heading, lines) for heading, lines in parts if lines]


def export_command(run: RunRecord, step: StepRecord) -> str:
    """Return the command that copies a student out of the store."""
    return f"compress export {shlex.quote(f'{run.id}:{step.name}')} {shlex.quote(step.name)}"


def _split(text: str, model: str | None, is_model: bool) -> tuple[str, str]:
    """Split a text at the start of the word where it leaves the original's."""
    if model is None or is_model:
        return "", text
    if text == model:
        return text, ""
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, model, strict=False)))
    start = text.rfind(" ", 0, alike) + 1
    return text[:start], text[start:]


@cache
def _templates() -> "Environment":
    from jinja2 import FunctionLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from markupsafe import Markup

    folder = files("compress.report")

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    style = (folder / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.filters["bytes"] = units.file_size
    environment.globals |= {"style": Markup(style), "style_hash": digest}
    return environment
