"""What tokens cost, from how fast they come: arithmetic on latency measurements.

``$ per 1M tokens = $/h · 10⁶ / (3600 · tokens/s · utilisation)``, input and output apart.
"""

from collections.abc import Sequence

from compress.records import LAUNCH_BOUND, Measurement

PRICED = {
    "tokens_per_second": "usd_per_million_output_tokens",
    "prefill_tokens_per_second": "usd_per_million_input_tokens",
}
"""Which speed prices which tokens."""


def costs(latency: Sequence[Measurement], usd_per_hour: float, utilisation: float = 1.0) -> list[Measurement]:
    """Return the price of a million tokens at every measured speed, beside the price at the speeds beside it.

    `utilisation` is the share of each paid hour in which the machine is busy. A speed that is the processor's says so
    in its note, and its price too.
    """
    return [
        Measurement(
            name=PRICED[speed.name],
            value=usd_per_million_tokens(speed.value, usd_per_hour, utilisation),
            unit="USD",
            higher_is_better=False,
            labels=speed.labels,
            n=speed.n,
            beside={
                model: usd_per_million_tokens(value, usd_per_hour, utilisation)
                for model, value in speed.beside.items()
            },
            note=f"at {usd_per_hour:g} USD/h, {utilisation:.0%} utilised{_doubt(speed)}",
        )
        for speed in latency
        if speed.name in PRICED
    ]


def _doubt(speed: Measurement) -> str:
    doubtful = LAUNCH_BOUND in (speed.note or "")
    return f"; {LAUNCH_BOUND}: the price of a GPU that waits for the processor" if doubtful else ""


def usd_per_million_tokens(tokens_per_second: float, usd_per_hour: float, utilisation: float = 1.0) -> float:
    """Return what a million tokens cost on a machine of that price and speed."""
    return usd_per_hour * 1e6 / (3600 * tokens_per_second * utilisation)


def payback_million_tokens(compressing_usd: float, usd_before: float, usd_after: float) -> float | None:
    """Return how many million tokens it takes to save what compressing cost; `None` when nothing is saved."""
    saved = usd_before - usd_after
    return compressing_usd / saved if saved > 0 else None
