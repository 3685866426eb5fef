"""A plan as a person reads it: a line a model, cached or why not, exact sizes, estimates."""

from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from compress.engine.account import account, needed_bytes, which_of
from compress.engine.events import duration
from compress.engine.idle import idle_remark
from compress.engine.rates import Rates
from compress.engine.room import card_remarks, disk_bytes, shortages
from compress.engine.runs import last_ingredients
from compress.engine.store import Store
from compress.machine import Machine, describe, is_elsewhere, planned_machine
from compress.pipeline.advice import advice
from compress.pipeline.plan import Node, Plan, why_not_cached
from compress.quantities import format_file_size, format_memory

HEADER = ("step", "use", "from", "parameters", "weights", "memory", "time", "cost", "state")


class Effort(NamedTuple):
    """What a model, or what is prepared for it, still takes."""

    seconds: float | None
    """``None`` when nothing is known about it."""
    device_seconds: float
    """What is paid for: the seconds on each card (or machine) that works."""


def plan_table(plan: Plan, name: str, store: Store, usd_per_hour: float | None = None) -> str:
    """Return the plan as text.

    Parameters and bytes are exact, except (``~``) for shapes decided by measuring and what is built on them. Memory
    and time are estimates: for modules this machine has run before, from what they took; a ``~`` marks them, ``?``
    what nothing is known about yet. Time includes the measurements. Where a step is launched on several cards, memory
    is that of each, and the cost that of all. What is prepared for a step has an indented line
    of its own above it. Above stands which machine is planned for; below, each account of memory that adds up, what
    would keep the plan from being run, and what could be had for less. Planned for another machine than this
    (`machine.planning_for`), all is to run: what is in this store is not there.
    """
    elsewhere, machine = is_elsewhere(), planned_machine()
    to_do = _to_do(plan, store)
    missing = {node.name for node in to_do}
    rates = Rates(store.root)
    earlier = last_ingredients(name, store.root)
    rows = []
    efforts = []
    for node in plan.models:
        for prepared in plan.prepared_for(node.name):
            effort = _effort(prepared, plan, missing, rates)
            efforts.append(effort)
            state = _state(prepared, plan, store, missing, earlier)
            rows.append(_prepared_row(prepared, state, effort, usd_per_hour))
        state = _state(node, plan, store, missing, earlier)
        efforts.append(_effort(node, plan, missing, rates))
        rows.append(_row(node, state, efforts[-1], usd_per_hour))
    total = sum(effort.seconds or 0.0 for effort in efforts)
    paid = sum(effort.device_seconds for effort in efforts)
    footer = f"about {duration(total)} of work" + _cost(paid, usd_per_hour, ", about ")
    done = {node.key for node in plan.nodes if not elsewhere and node.key in store}
    return "\n".join(
        [
            *_premises(plan, machine),
            *align([HEADER, *rows]),
            *(line for node in to_do for line in account(node, machine)),
            *_elsewhere(to_do),
            *(f"`compress run` would refuse: {lacking}" for lacking in refusals(plan, store)),
            *idle_remark(to_do, rates, usd_per_hour),
            *advice(plan, done),
            footer if missing else "everything is in the store",
        ]
    )


def seconds_by_node(plan: Plan, rates: Rates) -> dict[str, float]:
    """Return how long models, what is prepared for them, and their measurements take where none is there yet.

    All together that is what `plan_table` says of a plan of which nothing is done.
    """
    shown = [
        each
        for model in plan.models
        for each in (*plan.prepared_for(model.name), model, *plan.measurements_of(model.name))
        if each.given is None
    ]
    return {node.name: rates.seconds(node) or 0.0 for node in shown}


def _premises(plan: Plan, machine: Machine) -> Iterator[str]:
    """Yield the machine that is planned for, and what was not looked up."""
    if is_elsewhere():
        yield f"planned for {describe(machine)}: nothing is there yet, and its disk is not known"
    else:
        yield f"planned for this machine: {describe(machine)}"
    if plan.assumed:
        yield "planned offline: nothing was looked up on the hub, which `compress run` asks and then decides by"
        yield from (f"  {each}" for each in plan.assumed)


def refusals(plan: Plan, store: Store) -> tuple[str, ...]:
    """Return all that a run of the plan would refuse for on the planned machine, in words; nothing where it fits."""
    return tuple(shortages(_to_do(plan, store), store.root))


def _to_do(plan: Plan, store: Store) -> tuple[Node, ...]:
    """Return what is not there yet: on another machine than this nothing is."""
    elsewhere = is_elsewhere()
    return plan.missing(lambda n: n.given is not None or (not elsewhere and n.key in store))


def _elsewhere(to_do: Sequence[Node]) -> Iterator[str]:
    """Yield what is to be seen to on another machine than this."""
    if is_elsewhere():
        if num_bytes := disk_bytes(to_do):
            yield f"it will write about {format_file_size(num_bytes)} to disk"
        yield from card_remarks(to_do)


def align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines with columns of equal width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _state(
    node: Node, plan: Plan, store: Store, missing: Container[str], earlier: dict[str, dict[str, object]]
) -> str:
    if node.given:
        return "a folder on disk"
    if is_elsewhere() or (plan.assumed and node.key not in store):
        return "to run" if node.name in missing else "not needed: what is made from it is there"
    if node.key not in store and node.name not in missing:
        return "not needed: what is made from it is there"
    if node.key not in store:
        return f"to run ({why_not_cached(node, earlier)})"
    unknown = [m.name.rpartition("/")[2] for m in plan.measurements_of(node.name) if m.name in missing]
    return f"cached, to measure: {', '.join(unknown)}" if unknown else "cached"


def _effort(node: Node, plan: Plan, missing: Container[str], rates: Rates) -> Effort:
    """Return what the node and its measurements still take."""
    to_do = [n for n in (node, *plan.measurements_of(node.name)) if n.name in missing]
    known = [rates.seconds(n) for n in to_do]
    seconds = None if None in known and not any(known) else sum(s or 0.0 for s in known)
    return Effort(seconds, sum((s or 0.0) * n.work.devices for s, n in zip(known, to_do, strict=True)))


def _row(node: Node, state: str, effort: Effort, usd_per_hour: float | None) -> tuple[str, ...]:
    assert node.spec is not None
    about = "~" if node.is_about else ""
    sizes = (f"{about}{node.spec.num_parameters:,}", f"{about}{node.spec.weight_bytes:,} B")
    return (node.name, node.use, node.parent or "", *sizes, *_costs(node, effort, usd_per_hour), state)


def _prepared_row(node: Node, state: str, effort: Effort, usd_per_hour: float | None) -> tuple[str, ...]:
    name = node.name.removeprefix(f"{node.parent}/")
    return (f"  {name}", node.use, node.parent or "", "", "", *_costs(node, effort, usd_per_hour), state)


def _costs(node: Node, effort: Effort, usd_per_hour: float | None) -> tuple[str, str, str]:
    """Return a node's memory, time and money."""
    machine = planned_machine()
    memory, seconds = needed_bytes(node, machine), effort.seconds
    device = "card" if machine.card else "machine"
    each = f" on {which_of(node, device)}" if node.work.devices > 1 else ""
    return (
        f"~{format_memory(memory)}{each}" if memory else "?",
        "" if seconds == 0 else f"~{duration(seconds)}" if seconds else "?",
        _cost(effort.device_seconds, usd_per_hour, "~"),
    )


def _cost(device_seconds: float, usd_per_hour: float | None, before: str) -> str:
    if usd_per_hour is None or not device_seconds:
        return ""
    return f"{before}${device_seconds / 3600 * usd_per_hour:.2f}"
