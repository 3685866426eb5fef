"""What the plan shows could be had for less: steps see all of their kind at once, and say so in a line."""

from collections.abc import Container, Iterator

from compress import plugins
from compress.pipeline.plan import Node, Plan
from compress.pipeline.vocabulary import size_remark, vocabulary_remark
from compress.plugins import Planned


def advice(plan: Plan, done: Container[str]) -> list[str]:
    """Return what planning noticed, what modules of steps not yet done have to say, and of a large vocabulary left so.

    `done` holds the keys of the steps that are done.
    """
    kinds: dict[str, list[Planned]] = {}
    for node in plan.models:
        if node.given is None and node.key not in done:
            kinds.setdefault(node.use, []).append(_planned(node, plan))
    modules = {use: plugins.internal(use) for use in kinds}
    said = [
        line
        for use, module in modules.items()
        if hasattr(module, "advise")
        for line in module.advise(kinds[use])
    ]
    return [*plan.remarks, *said, *([*_of_vocabulary(plan), *_of_sizes(plan)] if kinds else [])]


def _of_vocabulary(plan: Plan) -> list[str]:
    specs = [node.spec for node in plan.models if node.role == "original" and node.spec is not None]
    return [line for spec in specs for line in vocabulary_remark(spec, {node.use for node in plan.models})]


def _of_sizes(plan: Plan) -> Iterator[str]:
    """Yield a line for each quantized or exported model that is not smaller for it, or is mostly vocabulary."""
    uses = {node.use for node in plan.models}
    for node in plan.models:
        parent = plan.model_before(node)
        if node.kind == "hf" or node.rival_of or node.spec is None or parent is None:
            continue
        before = plan[parent].spec
        if before and (line := size_remark(node.name, node.spec, parent, before, uses)):
            yield line


def _planned(node: Node, plan: Plan) -> Planned:
    given = {field: plan[name] for field, name in node.inputs.items()}
    data = {field: node for field, node in given.items() if node.kind == "tokens"}
    return Planned(
        name=node.name,
        config=node.config,
        work=node.work,
        inputs={field: each.key for field, each in given.items()},
        specs={field: each.spec for field, each in given.items() if each.spec is not None},
        num_tokens={field: tokens for field, each in data.items() if (tokens := each.num_tokens) is not None},
        reads_alike=frozenset(
            field
            for field, each in given.items()
            if each.is_model and all(_vocabulary(each, plan) == _vocabulary(d, plan) for d in data.values())
        ),
        parent=plan[node.parent].key if node.parent else None,
        measured_on=frozenset(field for field, each in data.items() if _is_measured_on(each, plan)),
    )


def _is_measured_on(data: Node, plan: Plan) -> bool:
    """Whether a measurement reads it, or the same entry of ``data:`` in other tokens (``data/heldout/small``)."""
    read = {
        node.inputs["text"] for node in plan.nodes if node.role == "measurement" and "text" in node.inputs
    }
    return any(data.key == plan[name].key or data.name.startswith(f"{name}/") for name in read)


def _vocabulary(node: Node, plan: Plan) -> str | None:
    """Return the step that last rewrote the tokenizer on the way to a model or to data, if any did."""
    return next((each.name for each in _line(node, plan) if _rewrites(each)), None)


def _rewrites(node: Node) -> bool:
    return node.given is None and bool(getattr(plugins.internal(node.use), "REWRITES_TOKENIZER", False))


def _line(node: Node, plan: Plan) -> Iterator[Node]:
    yield node
    if node.parent is not None:
        yield from _line(plan[node.parent], plan)
