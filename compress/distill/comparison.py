"""What is held while learning from a cache is compared with learning from the teacher (`compress.distill.cache_check`).

One process does it, also in a team: the whole student, the gradient of the teacher's loss, the sum of the cache's, and
what one row adds to it. As a row's backward pass makes gradients it frees activations, so the most is held at one of
its ends.
"""

from dataclasses import replace

from compress.records import MemoryItem, ModelSpec
from compress.train.cost import conditions_of, num_trained, team
from compress.train.launch import Launch
from compress.train.memory_account import (
    CPU_PROCESS,
    WEIGHT_BYTES,
    Conditions,
    Teaching,
    at_the_loss,
    in_a_layer,
    process,
    teacher_bytes,
    total,
    waiting,
)
from compress.train.settings import TrainingSettings


def comparison_memory(
    spec: ModelSpec, settings: TrainingSettings, teaching: Teaching, sequence_length: int
) -> tuple[MemoryItem, ...]:
    """Return what the leader's device holds at most, item by item; without cards, its machine."""
    conditions = replace(conditions_of(settings, sequence_length, 1, recompute=False), devices=1)
    learning = num_trained(spec, settings)
    adapters = 0 if settings.lora is None else learning
    held = [
        MemoryItem(
            name="student's weights (fp32)", num_bytes=WEIGHT_BYTES * (spec.num_parameters + adapters)
        ),
        MemoryItem(name="teacher's weights", num_bytes=teacher_bytes(teaching, conditions.in_bf16)),
    ]
    ends = _at_the_loss(spec, settings, learning, conditions), _after_backward(spec, learning, conditions)
    items = [item for item in (*held, *max(ends, key=total)) if item.num_bytes]
    return (*items, *process(items, settings, conditions), *_others(settings, conditions))


def _at_the_loss(
    spec: ModelSpec, settings: TrainingSettings, learning: int, conditions: Conditions
) -> list[MemoryItem]:
    gradients = MemoryItem(name="two gradients (fp32)", num_bytes=2 * WEIGHT_BYTES * learning)
    return [gradients, *waiting(spec, conditions), *at_the_loss(spec, settings, None, conditions)]


def _after_backward(spec: ModelSpec, learning: int, conditions: Conditions) -> list[MemoryItem]:
    gradients = MemoryItem(name="three gradients (fp32)", num_bytes=3 * WEIGHT_BYTES * learning)
    return [gradients, *in_a_layer(spec, conditions)]


def _others(settings: TrainingSettings, conditions: Conditions) -> list[MemoryItem]:
    """Return the processes that wait on the same machine."""
    waiting = team(settings.launch or Launch())[0] - 1
    if not conditions.on_processor or not waiting:
        return []
    return [MemoryItem(name="processes that wait", num_bytes=waiting * CPU_PROCESS)]
