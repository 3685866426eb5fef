"""When it pays to ask the teacher once instead of every time."""

from collections.abc import Iterator, Sequence
from typing import Any

from compress.distill.cache_teacher import BYTES_PER_TOKEN, OF_TRAINING
from compress.plugins import Planned

WORTH_SAYING = 0.1
"""The least share of the work that is saved."""


def cache_advice(steps: Sequence[Planned]) -> list[str]:
    """Return a line for every teacher that would be asked the same several times, and could be asked once."""
    groups: dict[Any, list[Planned]] = {}
    for step in steps:
        if _could_be_cached(step):
            same = [str(getattr(step.config, name)) for name in OF_TRAINING if name != "data"]
            groups.setdefault((step.inputs["teacher"], step.inputs["data"], *same), []).append(step)
    return [line for group in groups.values() for line in _line(group)]


def _could_be_cached(step: Planned) -> bool:
    config: Any = step.config
    return (
        config.cache_teacher is None
        and config.divergence == "forward_kl"
        and config.hidden_weight == 0
        and config.label_weight < 1
        and "teacher" in step.reads_alike
        and "teacher" in step.specs
    )


def _line(group: Sequence[Planned]) -> Iterator[str]:
    config: Any = group[0].config
    reads = len(group) * int(config.tokens)
    once = min(int(config.tokens), group[0].num_tokens.get("data", reads))
    saved = 2.0 * group[0].specs["teacher"].num_parameters * (reads - once)
    share = saved / sum(step.work.flops for step in group)
    if share >= WORTH_SAYING:
        names = " and ".join(f"'{step.name}'" for step in group)
        yield (
            f"`cache_teacher: true` would save about {share:.0%} of the work of {names}: they ask the teacher about "
            f"the same text {reads / once:.1f} times (it takes about {BYTES_PER_TOKEN * once / 1e9:.1f} GB of disk)"
        )
