"""What a run means, in plain words: which student to take, what it saves, what it costs, who beats it.

The rule by which one student is chosen is said in the report, so that a reader may choose otherwise: among
the leaves, the smallest on disk that passes every gate or, where a pipeline has no gates, that is within two
points of the most accurate leaf.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from compress.records import GateResult, Measurement, RunRecord, StepRecord
from compress.report import doubts, figures, rivals, runtimes, speed, units
from compress.report.finding import Finding, Tone
from compress.report.growth import SHRINKS, grown
from compress.report.guessing import cannot_be_told_apart
from compress.report.looks import did_not_help
from compress.report.rivals import beats_on_size

TOLERANCE = 0.02
"""Without gates: how far below the most accurate leaf the chosen one may be, as a share."""

GATE_UNITS = {"accuracy": "share", "kl_divergence": "nats/token"}
"""What a gate counts, by how its name ends."""


LARGE_VOCABULARY = 1 / 3
"""Share of a model's bytes from which on its vocabulary is worth a word."""


@dataclass(frozen=True)
class Verdict:
    """The top of the report: one headline, the student it is about, the sentences under it."""

    tone: Tone
    headline: str
    best: StepRecord | None
    findings: tuple[Finding, ...]


def judge(run: RunRecord) -> Verdict:
    """Return the verdict on a run, whatever state it ended in."""
    best = best_student(run)
    tone, headline = _headline(run, best)
    findings = [*_state(run), *_launches(run), *_gates(run)]
    if best and not run.rehearsal:
        findings += [*doubts.other_model(best), *runtimes.findings(run, best), *rivals.findings(run, best)]
        findings += [*cannot_be_told_apart(run, best), *speed.doubt(run, best), *_choice(run, best)]
        findings += [finding for step in run.steps for finding in did_not_help(step)]
    findings += [*_sizes(run), *_vocabulary(run), *grown(run), *_warnings(run), *_effort(run)]
    return Verdict(tone, headline, best, tuple(findings))


def best_student(run: RunRecord) -> StepRecord | None:
    """Return the leaf to ship by the rule above; without any measured quality, the smallest leaf."""
    if not run.leaves:
        return None
    measured = {leaf.name: value.value for leaf in run.leaves if (value := figures.accuracy(leaf))}
    top = max(measured.values(), default=0.0)
    if run.gates:
        passing = [leaf for leaf in run.leaves if passes(run, leaf)]
        pool = passing or [leaf for leaf in run.leaves if measured.get(leaf.name) == top]
    else:
        pool = [leaf for leaf in run.leaves if measured.get(leaf.name, -1.0) >= top - TOLERANCE]
    return min(pool or run.leaves, key=lambda leaf: leaf.disk_bytes)


def passes(run: RunRecord, step: StepRecord) -> bool:
    """Return whether a step failed no gate."""
    return all(gate.passed for gate in run.gates if gate.step == step.name)


def trade(run: RunRecord, step: StepRecord) -> str:
    """Return what a step gains and gives up: ``is 7.1× smaller, and loses 2.1 points of accuracy``.

    A step in a runtime of its own is compared with the original made into such a file; what a runtime brings alone is
    no gain of the step's.
    """
    rival = figures.rival_in_runtime(run, step)
    cost = _quality_words(figures.accuracy_change(step))
    if rival is not None:
        return f"is {runtimes.gains(run, step, rival)}, {cost}"
    faster = None if figures.is_elsewhere(run, step) else speed.claim(run, step)
    gains = " and ".join([*_size_words(run, step), *([faster] if faster else [])])
    return f"is {gains}, {cost}" if gains else f"was compressed, {cost}"


def _headline(run: RunRecord, best: StepRecord | None) -> tuple[Tone, str]:
    what = "The rehearsal" if run.rehearsal else "The run"
    if run.status == "failed":
        return "bad", f"{what} failed before it was finished"
    if run.status == "interrupted":
        return "warn", f"{what} was interrupted before it was finished"
    if run.status == "running":
        return "warn", f"{what} has not finished yet"
    if run.rehearsal:
        return "plain", "The rehearsal went through: every step of this pipeline runs"
    if best is None:
        return "plain", "Nothing was compressed: this run made no student"
    if not passes(run, best):
        return "bad", f"No student passed the quality gates; {best.name} came closest"
    beaten_by = [rival.name for rival in figures.baselines(run) if beats_on_size(rival, best)]
    if beaten_by:
        return "bad", f"The baseline {beaten_by[0]} beats the best student, {best.name}, at its own size"
    tone: Tone = "warn" if doubts.strays(best) else "plain"
    return tone, f"{best.name} {trade(run, best)}"


def _state(run: RunRecord) -> Iterator[Finding]:
    if run.error:
        yield Finding("bad", f"It stopped with: {run.error}")
    if run.status in ("failed", "interrupted"):
        yield Finding("warn", "What was finished is kept: the same command goes on from there.")


def _launches(run: RunRecord) -> Iterator[Finding]:
    """What a rehearsal shows of `launch`, and what it cannot: other cards and machines are not there."""
    launched = [step for step in run.steps if run.rehearsal and step.settings.get("launch")]
    for step in launched:
        tried = step.facts.get("processes")
        if tried is None:
            text = f"The launch of {step.name} was not rehearsed: it was in the store, made by one process."
        else:
            number = "one process" if tried == 1 else f"{tried} processes"
            text = f"The launch of {step.name} was rehearsed with {number} on this machine; more, and the way to other "
            text += "machines, were not tried."
        yield Finding("warn" if tried is None else "plain", text)


def _warnings(run: RunRecord) -> Iterator[Finding]:
    given = sum(len(step.warnings) for step in run.steps)
    if given:
        yield Finding("warn", f"{given} {'warning' if given == 1 else 'warnings'}, listed below.")


def _gates(run: RunRecord) -> Iterator[Finding]:
    for gate in run.gates:
        verb = "passes" if gate.passed else "fails"
        text = f"{gate.step} {verb} the gate {gate_words(gate)}{why_failed(gate)}."
        yield Finding("good" if gate.passed else "bad", text)


def why_failed(gate: GateResult) -> str:
    """Return what a gate that did not pass lacks: nothing where the limit itself is broken."""
    if gate.passed or gate.finding != "not enough items":
        return ""
    how_many = f"; about {gate.enough_items:,} items would do" if gate.enough_items else ""
    if gate.judged_at_once > 1:
        how_many += f" ({gate.judged_at_once} limits are judged at once)"
    return (
        f": {gate.n:,} items are not enough to prove it{how_many}"
        if gate.n
        else ": too little was measured to prove it"
    )


def gate_words(gate: GateResult) -> str:
    """Return a gate with its limit and what was measured: ``min_accuracy (79.1 %, at least 75.0 % …)``."""
    bound = gate.bound or ("at least" if gate.gate.startswith("min") else "at most")
    measured = units.NOT_MEASURED if gate.measured is None else _gate_value(gate, gate.measured)
    return f"{gate.gate} ({measured}, {bound} {_gate_value(gate, gate.limit)} allowed)"


def _gate_value(result: GateResult, value: float) -> str:
    """A gate is a bare number in the pipeline file; its name says what it counts, or its result in which unit."""
    gate = result.gate
    if result.bound and result.unit != "points":
        return units.quantity(value, result.unit)
    if gate.endswith("_drop") or result.unit == "points":
        return f"{units.significant(100 * value)} points"
    unit = next((unit for ending, unit in GATE_UNITS.items() if gate.endswith(ending)), "")
    return units.quantity(value, unit)


def _choice(run: RunRecord, best: StepRecord) -> Iterator[Finding]:
    if len(run.leaves) < 2:
        return
    if not any(figures.accuracy(leaf) for leaf in run.leaves):
        rule = "the smallest on disk; quality was not measured"
    elif not run.gates:
        rule = f"the smallest on disk within {units.points(TOLERANCE)} of the most accurate"
    elif passes(run, best):
        rule = "the smallest on disk that passes the gates"
    else:
        rule = "the most accurate, as none passes the gates"
    yield Finding("plain", f"{best.name} was chosen among {len(run.leaves)} candidates as {rule}.")


def _sizes(run: RunRecord) -> Iterator[Finding]:
    wrong = [step.name for step in run.steps if step.predicted != step.realized and not step.is_about]
    if wrong:
        yield Finding("warn", f"The size predicted by the plan was not the size made: {', '.join(wrong)}.")


def _vocabulary(run: RunRecord) -> Iterator[Finding]:
    """Say where much of the original is its vocabulary, and no step shrank that, nor would one still to come."""
    original = figures.original(run) if run.status in ("done", "gates failed") else None
    num_bytes = original.facts.get("vocabulary_bytes") if original else None
    if original is None or not isinstance(num_bytes, int) or any(step.use == SHRINKS for step in run.steps):
        return
    share = num_bytes / max(1, original.realized.weight_bytes)
    if share > LARGE_VOCABULARY and len(run.steps) > 1:
        text = f"{units.share(share)} of the original's bytes are its vocabulary, which no step shrinks"
        yield Finding("plain", f"{text}: {SHRINKS} drops the tokens that a corpus hardly uses.")


def _effort(run: RunRecord) -> Iterator[Finding]:
    """The steps' own time is what making them takes: a run whose steps are in the store takes no time."""
    seconds = sum(step.seconds for step in run.steps)
    if not seconds:
        return
    cost = ""
    if run.usd_per_hour:
        paid = sum(step.device_seconds or step.seconds for step in run.steps)
        spent = units.dollars(paid / 3600 * run.usd_per_hour)
        each = (
            "hour of each card" if any(step.device_seconds > step.seconds for step in run.steps) else "hour"
        )
        cost = f", {spent} at {units.dollars(run.usd_per_hour)} per {each}"
    stored = sum(step.cached for step in run.steps)
    kept = f"; {stored} of {len(run.steps)} were in the store already" if stored else ""
    yield Finding("plain", f"The steps take {units.duration(seconds)}{cost}, measuring apart{kept}.")


def _size_words(run: RunRecord, step: StepRecord) -> Iterator[str]:
    times = figures.times_smaller(run, step)
    if times is not None:
        yield units.compared(times, "smaller", "larger", "the same size")


def _quality_words(change: Measurement | None) -> str:
    if change is None:
        return "but what it lost in quality was not measured"
    if change.low is not None and change.high is not None and change.low <= 0 <= change.high:
        # That a change was not seen is no proof that there is none: what is proved is how large it can be.
        lost = units.points(max(0.0, -change.low))
        return f"at most {lost} less accurate (95 %; measured {units.signed_points(change.value)})"
    return f"and {'loses' if change.value < 0 else 'gains'} {units.points(change.value)} of accuracy"
