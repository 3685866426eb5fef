"""When it pays to ask a teacher, and when once instead of every time."""

from collections.abc import Iterator, Sequence
from typing import Any

from compress.distill.cache_teacher import BYTES_PER_TOKEN, OF_TRAINING, Config, settle
from compress.plugins import Planned
from compress.quantities import format_file_size

WORTH_SAYING = 0.1
"""The least share of the work that is saved."""


def cache_advice(steps: Sequence[Planned]) -> list[str]:
    """Return a line for every teacher that would be asked the same several times, and could be asked once."""
    groups: dict[Any, list[Planned]] = {}
    for step in steps:
        if _could_be_cached(step):
            groups.setdefault(_asked(step), []).append(step)
    return [line for group in groups.values() for line in _line(group)]


def own_teacher_advice(steps: Sequence[Planned]) -> list[str]:
    """Return a line for every student that starts as its own teacher, and learns nothing else."""
    return [
        f"'{step.name}' starts from its own teacher, '{step.config.teacher}': their distributions are the same, so the "  # type: ignore[attr-defined]
        "loss is 0 and there is nothing to learn. Name another `teacher`, or another model under `from`"
        for step in steps
        if step.inputs["teacher"] == step.parent and step.config.label_weight == 0  # type: ignore[attr-defined]
    ]


def _asked(step: Planned) -> tuple[str, ...]:
    """Return what is the same for all steps that one cache would serve."""
    settled = settle(Config(**{name: getattr(step.config, name) for name in OF_TRAINING}), step.num_tokens)
    return (step.inputs["teacher"], step.inputs["data"], settled.model_dump_json(exclude={"data"}))


def _could_be_cached(step: Planned) -> bool:
    config: Any = step.config
    return (
        config.cache_teacher is None
        and config.divergence in ("forward_kl", {"use": "forward_kl"})
        and config.hidden_weight == 0
        and config.label_weight < 1
        and "teacher" in step.reads_alike
        and "teacher" in step.specs
    )


def _line(group: Sequence[Planned]) -> Iterator[str]:
    reads = [int(step.config.tokens) for step in group]  # type: ignore[attr-defined]
    once = min(max(reads), group[0].num_tokens.get("data", max(reads)))
    saved = 2.0 * group[0].specs["teacher"].num_parameters * (sum(reads) - once)
    share = saved / sum(step.work.flops for step in group)
    if share >= WORTH_SAYING:
        names = " and ".join(f"'{step.name}'" for step in group)
        kept = format_file_size(BYTES_PER_TOKEN * once)
        yield (
            f"`cache_teacher: true` would save about {share:.0%} of the work of {names}: the teacher is asked about "
            f"the same text {sum(reads) / once:.1f} times (kept, its answers take about {kept})"
        )
