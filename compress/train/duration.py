"""How long training takes: its amounts of work by kind, from settings, shapes and what is known of the data.

Torch-free. What of it fits in memory is `compress.train.cost`'s.
"""

from collections.abc import Mapping

from compress.data.task_lengths import evaluation_length
from compress.machine import Card, planned_machine
from compress.models.effort import SPAN, bytes_per_token, calls_per_pass, flops_per_token, opening, reading
from compress.models.layout import layout
from compress.plugins import Text
from compress.records import ModelSpec, Work
from compress.speed import DISK_BYTES_PER_SECOND, seconds_of
from compress.train.cost import num_trained, recomputes, small_micro_batch
from compress.train.launch import Launch
from compress.train.memory_account import Teaching
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings

UNKNOWN_TEXT = Text(row_tokens=4096, rows=None)
CARD_MICRO_TOKENS = 8192
"""Tokens at once on a card where `micro_batch` is left out: what fits is found by trying."""
PROCESSOR_MICRO_TOKENS = 2048
BACKWARD_CALLS = 2.0
"""Operations of a backward pass, by those of a forward pass."""
UPDATE_BYTES = 40
"""Read and written of a trained weight in an optimizer step: itself, gradient and moments, once more to clip."""
PASS_BYTES = 30
"""Read and written of a weight for each micro-batch: cast to bf16 for each pass, and its gradient added up."""
PASSES_OVER_LOGITS = 8
DISTILLING = 1.35
"""How much longer two models take than each alone. The one distillation of such sizes whose hours are published takes
1.7 times what trainings would (`tests/engine/test_published.py`); its models are split otherwise than here, so this is
about halfway."""
NODE_BYTES_PER_SECOND = 5e10
"""Between machines, for each card: 400 Gb/s."""
UNHIDDEN = 0.1
"""The share of communication that waits for nothing to compute."""
SECONDS_PER_CHECKPOINT = 0.2
CHECKPOINT_BYTES = 12
"""Of each trained weight: itself and two moments, in fp32."""
WORK_PER_WRITE = 20
"""See `compress.train.checkpoint`."""
START_SECONDS = 2.0


def timed(
    work: Work,
    spec: ModelSpec,
    settings: TrainingSettings,
    teacher: ModelSpec | None,
    texts: Mapping[str, Text],
) -> Work:
    """Return an estimate with all that takes time: steps, looks at held-out text and tasks, checkpoints.

    The memory, disk and devices of `work` stay. `teacher` is ``None`` where no teacher is asked.
    """
    text = texts.get("data", UNKNOWN_TEXT)
    done = steps(spec, settings, teacher, text, work.devices)
    done = done.plus(looks(spec, settings, teacher, texts.get("held_out", UNKNOWN_TEXT)).times(work.devices))
    for model in (spec, teacher):
        done = done.plus(opening(model)) if model else done
    if settings.precision == "fp32":
        done = done.model_copy(update={"flops": 0.0, "exact_flops": done.exact_flops + done.flops})
    # Rows that are fewer than the processes of a team leave the others without work: as if there were more of it.
    idle = work.devices / min(work.devices, Schedule.of(settings, text.row_tokens).batch_sequences)
    done = work.model_copy(update={"flops": 0.0}).plus(done.times(max(1.0, idle)))
    serial = START_SECONDS + _waiting(spec, settings, teacher, text, work.devices)
    serial += _checkpoints(seconds_of(done), num_trained(spec, settings), settings)
    return done.plus(Work(serial_seconds=serial))


def steps(
    spec: ModelSpec, settings: TrainingSettings, teacher: ModelSpec | None, text: Text, devices: int
) -> Work:
    """Return the work of all optimizer steps, of all devices together."""
    span = text.row_tokens / 2 if settings.attend_across_documents else min(SPAN, text.row_tokens / 2)
    passes, again = (
        _num_passes(settings, text, devices),
        _is_recomputed(spec, settings, teacher, text),
    )
    weights_learn = settings.lora is None
    # Forward, then the gradients of activations and, unless they are frozen, of weights.
    flops = (3.0 if weights_learn else 2.0) * flops_per_token(spec, span)
    calls = (1.0 + BACKWARD_CALLS + again) * calls_per_pass(spec)
    moved = PASS_BYTES * spec.num_parameters
    traffic = (3.0 + again) * bytes_per_token(spec) + _loss_bytes(spec)
    if again:
        flops += flops_per_token(spec, span) - 2.0 * _head_parameters(spec)
    if teacher is not None:
        # Of its output layer only the rows of ids that the student has are multiplied.
        unasked = max(0, _vocabulary(teacher) - _vocabulary(spec)) * int(layout(teacher.config).hidden)
        flops += flops_per_token(teacher, span) - 2.0 * unasked
        traffic += bytes_per_token(teacher) + min(_loss_bytes(teacher), _loss_bytes(spec))
        calls += calls_per_pass(teacher)
        moved += teacher.weight_bytes
        flops, traffic = flops * DISTILLING, traffic * DISTILLING
    updates = Schedule.of(settings, text.row_tokens).num_steps
    return Work(
        flops=settings.tokens * flops,
        num_calls=passes * calls,
        bytes_moved=settings.tokens * traffic
        + float(passes) * moved
        + updates * UPDATE_BYTES * num_trained(spec, settings),
    )


def looks(spec: ModelSpec, settings: TrainingSettings, teacher: ModelSpec | None, text: Text) -> Work:
    """Return the work of evaluating on the way, before the first step and after the last included."""
    if settings.held_out is None:
        return Work()
    rows = min(settings.held_out_rows, text.rows or settings.held_out_rows)
    batch = max(1, PROCESSOR_MICRO_TOKENS // text.row_tokens) * text.row_tokens
    look = reading(spec, rows * text.row_tokens, batch)
    if teacher is not None:
        look = look.plus(reading(teacher, rows * text.row_tokens, batch))
    if settings.tasks:
        answers = evaluation_length(settings.tasks, settings.task_samples)
        look = look.plus(
            reading(spec, answers.read_tokens, 32 * answers.read_tokens / max(1.0, answers.rows))
        )
    return look.times(round(1 / settings.evaluate_every) + 1)


def _num_passes(settings: TrainingSettings, text: Text, devices: int) -> int:
    """Return how many micro-batches there are, of all devices."""
    schedule = Schedule.of(settings, text.row_tokens)
    room = CARD_MICRO_TOKENS if planned_machine().card else PROCESSOR_MICRO_TOKENS
    rows = settings.micro_batch or max(1, room // text.row_tokens)
    share = max(1, schedule.batch_sequences // devices)
    return schedule.num_steps * devices * -(-share // min(rows, share))


def _is_recomputed(
    spec: ModelSpec, settings: TrainingSettings, teacher: ModelSpec | None, text: Text
) -> bool:
    if planned_machine().card is None:
        return settings.checkpoint_activations is True
    rows = small_micro_batch(settings, text.row_tokens)
    return recomputes(spec, settings, Teaching(teacher) if teacher else None, text.row_tokens, rows)


def _loss_bytes(spec: ModelSpec) -> float:
    """Return what is read and written of a token's logits, in fp32."""
    return 4.0 * PASSES_OVER_LOGITS * _vocabulary(spec)


def _vocabulary(spec: ModelSpec) -> int:
    return int(spec.config.get("vocab_size") or 0)


def _head_parameters(spec: ModelSpec) -> int:
    shape = layout(spec.config)
    return shape.hidden * shape.vocab


def _waiting(
    spec: ModelSpec, settings: TrainingSettings, teacher: ModelSpec | None, text: Text, devices: int
) -> float:
    """Return the seconds a team of cards waits for weights and gradients of others."""
    card = planned_machine().card
    if card is None or devices == 1:
        return 0.0
    gathers = 2 + _is_recomputed(spec, settings, teacher, text)
    each = (2.0 * gathers + 4.0) * spec.num_parameters + (teacher.weight_bytes if teacher else 0)
    sent = _num_passes(settings, text, devices) / devices * each / _link(card, settings.launch or Launch())
    computed = seconds_of(steps(spec, settings, teacher, text, devices)) / devices
    return max(0.0, sent - computed) + UNHIDDEN * min(sent, computed)


def _link(card: Card, launch: Launch) -> float:
    return (
        card.link_bytes_per_second
        if launch.nodes == 1
        else min(card.link_bytes_per_second, NODE_BYTES_PER_SECOND)
    )


def _checkpoints(seconds: float, trained: int, settings: TrainingSettings) -> float:
    """Return the seconds that writing checkpoints takes, in so many of work."""
    each = SECONDS_PER_CHECKPOINT + CHECKPOINT_BYTES * trained / DISK_BYTES_PER_SECOND
    return each * (1 + seconds / max(settings.checkpoint_seconds, WORK_PER_WRITE * each))
