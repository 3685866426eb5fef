"""What a plan pays for and does not use: the other cards of a machine that one step needs all of."""

from collections.abc import Sequence

from compress.engine.events import duration
from compress.engine.rates import Rates
from compress.pipeline.plan import Node

WORTH_SAYING = 0.02
"""The least share of what the busy cards cost."""


def idle_remark(to_do: Sequence[Node], rates: Rates, usd_per_hour: float | None) -> list[str]:
    """Return a line where most of a team's cards wait while the rest of the plan is done on fewer; else nothing.

    The cost beside each step is that of the cards it works on.
    """
    team = max(to_do, key=lambda node: node.work.devices, default=None)
    if team is None or team.work.devices == 1:
        return []
    rest = [(node, rates.seconds(node) or 0.0) for node in to_do if node.work.devices < team.work.devices]
    idle = sum(seconds * (team.work.devices - node.work.devices) for node, seconds in rest)
    used = sum((rates.seconds(node) or 0.0) * node.work.devices for node in to_do)
    if idle < WORTH_SAYING * used:
        return []
    cost = "" if usd_per_hour is None else f", ${idle / 3600 * usd_per_hour:.2f}"
    seconds = sum(seconds for _, seconds in rest)
    return [
        f"'{team.name}' works on {team.work.devices} devices; all else takes {duration(seconds)} on fewer, while the "
        f"others, if they are rented throughout, stand idle ({duration(idle)} of one{cost}, not counted above). "
        "`--until` does what comes before on a smaller machine that shares the store"
    ]
