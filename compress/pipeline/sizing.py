"""How much text, how long rows and how many items: what a machine does to a model in a stated time.

All follows from the estimates that plans are made with (`compress.speed`), for the machine that is planned for: this
one, or that of ``compress init --device``.
"""

import os
from typing import Any

from compress import plugins
from compress.machine import Machine, planned_machine, this_machine
from compress.pipeline.cuts import SMALL_PARAMETERS
from compress.plugins import Measured, PlannedInputs, Text
from compress.records import ModelSpec, Record
from compress.speed import seconds_of

RECOVERY_SECONDS = {"cpu": 15 * 60, "gpu": 4 * 3600}
"""What training may take: a coffee on a laptop, half a day of a card."""
CALIBRATION_SECONDS = 60
HELD_OUT_SECONDS = 30
ITEMS_SECONDS = 30
"""Of forward passes of the original: over calibration text, held-out text, and the items of all tasks."""
TIMING_SECONDS = 20
"""Of a model's rounds beside the original's: where they take longer, fewer tokens are written."""
FEWEST_WRITTEN = 8

LEAST_TOKENS = 100_000
"""Below this nothing is recovered, so a slower machine takes longer."""
ENOUGH_AT_LEAST = 2_000_000
ENOUGH_A_PARAMETER = 0.5
"""Tokens of what Minitron calls lightweight retraining: 1.8B for students of 4B (Muralidharan et al. 2024,
arXiv:2407.14679). Its final models see fifty times as many."""
CALIBRATION_TOKENS = (16_384, 1_048_576)
LAYER_TOKENS = {"cpu": 4_096, "gpu": 131_072}
"""On which layers are tried: each of them is left out once for every layer that goes."""
HELD_OUT_TOKENS = (4_096, 131_072)
ITEMS = {"cpu": (20, 200), "gpu": (200, 500)}
TOKENS_OF_AN_ITEM = 500
"""Of one item of each of five tasks: four choices of 25 tokens, read with their question."""
VOCABULARY_TOKENS = 5_000_000
"""Text in which tokens are counted before they are dropped: packing it takes a minute."""
PROBE = 2**20
BATCH = 2_048


class Scale(Record):
    """The figures of a pipeline that follow from model and machine."""

    machine: str
    length: int
    """Tokens in a row."""
    tokens: int
    """To train on."""
    enough: int
    """To train on where there is time."""
    learning_rate: str
    calibration: int
    heldout: int
    """Rows."""
    layer_tokens: int
    """To choose layers by, at most."""
    items: int
    """Of each task."""
    batch_sizes: tuple[int, ...]
    prompt: int
    new: int


def scale(original: ModelSpec, student: ModelSpec, can_learn: bool) -> Scale:
    """Return the figures for the machine that is planned for.

    can_learn: whether the original can teach the student. No row is longer than the model reads.
    """
    machine, is_small = planned_machine(), original.num_parameters < SMALL_PARAMETERS
    on_card = machine.card is not None
    length = min(_longest(original), 128 if is_small else 2048 if on_card else 256)
    read = PROBE / seconds_of(plugins.internal("models.effort").reading(original, PROBE, BATCH, length / 2))
    enough = max(ENOUGH_AT_LEAST, ENOUGH_A_PARAMETER * student.num_parameters)
    prompt = min(length // 2, 512 if on_card and not is_small else 64)
    affordable = _learned(original, student, length, RECOVERY_SECONDS[machine.kind]) if can_learn else 0.0
    return Scale(
        machine=_words(machine),
        length=length,
        tokens=_round(min(enough, max(LEAST_TOKENS, affordable)), digits=2),
        enough=_round(enough, digits=2),
        learning_rate="1e-3" if is_small else "1e-4",
        calibration=max(2, _within(CALIBRATION_TOKENS, CALIBRATION_SECONDS * read) // length),
        heldout=max(2, _within(HELD_OUT_TOKENS, HELD_OUT_SECONDS * read) // length),
        layer_tokens=LAYER_TOKENS[machine.kind],
        items=_round(_within(ITEMS[machine.kind], ITEMS_SECONDS * read / TOKENS_OF_AN_ITEM), digits=1),
        batch_sizes=(1, 8) if on_card and not is_small else (1,),
        prompt=prompt,
        new=_written(original, prompt, max(2, min(length // 4, 128 if on_card and not is_small else 32))),
    )


def _learned(original: ModelSpec, student: ModelSpec, length: int, seconds: float) -> float:
    """Return about how many tokens can be distilled in a time, opening and checkpoints included."""
    distill: Any = plugins.step("distill")
    inputs = PlannedInputs({"teacher": original}, {"data": Text(length, None)})
    tokens = float(PROBE)
    for _ in range(3):  # what takes no longer for more tokens weighs less each time
        asked = max(LEAST_TOKENS, int(tokens))
        tokens = seconds * asked / seconds_of(distill.estimate(student, distill.Config(tokens=asked), inputs))
    return tokens


def _written(original: ModelSpec, prompt: int, most: int) -> int:
    """Return how many tokens are written when models are timed: half as many until that does not take too long."""
    latency: Any = plugins.internal("measure.latency")
    pair = Measured("hf", original, {"original": original}, {})
    new = most
    while new >= 2 * FEWEST_WRITTEN:
        config = latency.Config(prompt_tokens=(prompt,), new_tokens=new)
        if seconds_of(latency.estimate(pair, config)) <= TIMING_SECONDS:
            break
        new //= 2
    return new


def _longest(spec: ModelSpec) -> int:
    config = spec.config
    family = plugins.internal("models.layout").layout(config).family
    reserved = int(config.get("pad_token_id", 1)) + 1 if getattr(family, "SKIPS_POSITIONS", False) else 0
    return int(config.get("max_position_embeddings") or config.get("n_positions") or 2048) - reserved


def _within(limits: tuple[int, int], number: float) -> int:
    """Return the largest power of two that is no more than a number, inside the limits."""
    return max(limits[0], min(limits[1], 1 << max(0, int(number).bit_length() - 1)))


def _round(number: float, digits: int) -> int:
    return int(float(f"{number:.{digits}g}"))


def _words(machine: Machine) -> str:
    if machine.card is not None:
        here = "this machine's" if machine == this_machine() else "a"
        return f"{here} card {machine.card.name}"
    cores = os.cpu_count() or 1
    return f"this machine: {cores} processor {'core' if cores == 1 else 'cores'}"
