"""What training takes, from the settings and shapes alone, on the machine that it is planned for."""

from collections.abc import Iterator

from compress.machine import planned_machine
from compress.quantities import format_memory
from compress.records import MemoryItem, ModelSpec, NamedCard, Work
from compress.train.launch import Launch
from compress.train.memory_account import (
    CPU_PROCESS,
    ROUNDED_BYTES,
    WEIGHT_BYTES,
    Conditions,
    Teaching,
    account,
    moment_bytes,
    teacher_account,
    teacher_bytes,
    total,
)
from compress.train.schedule import Schedule
from compress.train.settings import Lora, TrainingSettings

PROCESS_BYTES = CPU_PROCESS
USUAL_LENGTH = 2_048
"""Of a row, where the data's is not known."""
SMALL_MICRO_BATCH = 2_048
"""Tokens at once where the settings leave that open: a GPU tries more, and takes them where there is room."""
SPARE = 0.08
"""Of a card's memory: what an account must leave for activations to be kept."""


def training_work(
    spec: ModelSpec,
    settings: TrainingSettings,
    teaching: Teaching | None = None,
    sequence_length: int = USUAL_LENGTH,
) -> Work:
    """Return about what training a model takes, with a teacher beside it or without.

    FLOPs are 2 per parameter and token forward, 4 backward (Kaplan et al. 2020, §2.1). Memory is the least that
    training gets along with: a larger micro-batch is taken where there is room. Launched on cards, it is that of each
    card, and the cards share the work. Without cards it is that of each machine, and only machines share: one process
    has all cores.
    """
    flops = 6.0 * spec.num_parameters * settings.tokens
    if teaching:
        flops += 2.0 * teaching.spec.num_parameters * settings.tokens
    items = least_memory(spec, settings, teaching, sequence_length)
    trained = num_trained(spec, settings)
    checkpoint = WEIGHT_BYTES * trained + moment_bytes(spec, settings, trained)
    return Work(
        flops=flops,
        peak_memory_bytes=total(items),
        disk_bytes=spec.weight_bytes + 2 * checkpoint,  # the next is written before the last is dropped
        devices=team(settings.launch or Launch())[1],
        memory=items,
        named_card=_named_card(settings, teaching, sequence_length),
        host_memory_bytes=0 if _on_processor() else beside_cards(spec, teaching),
        remedies=tuple(remedies(spec, settings, teaching, sequence_length)),
    )


def training_memory(
    spec: ModelSpec,
    settings: TrainingSettings,
    teaching: Teaching | None,
    sequence_length: int,
    micro_batch: int,
    recompute: bool,
) -> tuple[MemoryItem, ...]:
    """Return what each device holds at the peak of a step, for so many rows at once; without cards, each machine."""
    conditions = conditions_of(settings, sequence_length, micro_batch, recompute)
    items = account(spec, settings, num_trained(spec, settings), teaching, conditions)
    sharing = team(settings.launch or Launch())[0]
    return tuple(item.model_copy(update={"num_bytes": sharing * item.num_bytes}) for item in items)


def conditions_of(
    settings: TrainingSettings, sequence_length: int, micro_batch: int, recompute: bool
) -> Conditions:
    """Return what the settings mean on the planned machine."""
    launch = settings.launch or Launch()
    return Conditions(
        sequence_length=sequence_length,
        micro_batch=micro_batch,
        recompute=recompute,
        in_bf16=settings.precision == "bf16" or (settings.precision == "auto" and not _on_processor()),
        on_processor=_on_processor(),
        devices=launch.processes * launch.nodes,
    )


def least_memory(
    spec: ModelSpec, settings: TrainingSettings, teaching: Teaching | None, sequence_length: int
) -> tuple[MemoryItem, ...]:
    """Return the account of a small micro-batch, or that of the settings."""
    micro_batch = small_micro_batch(settings, sequence_length)
    recompute = recomputes(spec, settings, teaching, sequence_length, micro_batch)
    return training_memory(spec, settings, teaching, sequence_length, micro_batch, recompute)


def recomputes(
    spec: ModelSpec,
    settings: TrainingSettings,
    teaching: Teaching | None,
    sequence_length: int,
    micro_batch: int,
) -> bool:
    """Return whether activations are computed again: as asked, or where a card has no room to keep them."""
    if settings.checkpoint_activations != "auto":
        return settings.checkpoint_activations
    items = training_memory(spec, settings, teaching, sequence_length, micro_batch, recompute=False)
    return not leaves_room(items)


def leaves_room(items: tuple[MemoryItem, ...], spare: float = SPARE) -> bool:
    """Return whether an account leaves a share of a planned card's memory free; true where there is no card."""
    card = planned_machine().card
    return card is None or total(items) <= (1 - spare) * card.memory_bytes


def small_micro_batch(settings: TrainingSettings, sequence_length: int) -> int:
    """Return how many rows at once are planned for, at most a batch."""
    batch = Schedule.of(settings, sequence_length).batch_sequences
    return min(settings.micro_batch or max(1, SMALL_MICRO_BATCH // sequence_length), batch)


def account_in_words(
    spec: ModelSpec, settings: TrainingSettings, teaching: Teaching | None, sequence_length: int
) -> str:
    """Return what a sequence at a time takes with recomputed activations, item by item, and what would take less."""
    items = training_memory(
        spec, settings, teaching, sequence_length, 1, settings.checkpoint_activations is not False
    )
    card = planned_machine().card
    there = f" of {format_memory(card.memory_bytes)} there are" if card else ""
    listed = ", ".join(f"{item.name} {format_memory(item.num_bytes)}" for item in items)
    helping = "; ".join(remedies(spec, settings, teaching, sequence_length)) or "none of the settings"
    return f"It takes about {format_memory(total(items))}{there}: {listed}. What would help: {helping}"


def remedies(
    spec: ModelSpec, settings: TrainingSettings, teaching: Teaching | None, sequence_length: int
) -> Iterator[str]:
    """Yield the settings that would take at least a hundredth less memory, and how much less, each by itself."""
    now = total(least_memory(spec, settings, teaching, sequence_length))
    for said, changed, taught in _changes(settings, teaching):
        saved = now - total(least_memory(spec, changed, taught, sequence_length))
        if saved > 0.01 * now:
            yield f"`{said}` (saves {format_memory(saved)})"


def _changes(
    settings: TrainingSettings, teaching: Teaching | None
) -> Iterator[tuple[str, TrainingSettings, Teaching | None]]:
    """Yield what could be set otherwise, what costs least first."""
    launch = settings.launch
    if settings.checkpoint_activations is False:
        yield (
            "checkpoint_activations: true",
            settings.model_copy(update={"checkpoint_activations": True}),
            teaching,
        )
    if settings.micro_batch not in (None, 1):
        yield "micro_batch: 1", settings.model_copy(update={"micro_batch": 1}), teaching
    if settings.optimizer == "adamw":
        smaller = "adamw_8bit" if launch is None else "adamw_bf16"
        yield f"optimizer: {smaller}", settings.model_copy(update={"optimizer": smaller}), teaching
    if teaching is not None and teaching.is_beside(_on_processor()):
        if teaching.precision != "nf4":
            yield "teacher_precision: nf4", settings, _kept(teaching, precision="nf4")
        if launch is None and not _on_processor() and teaching.precision not in ROUNDED_BYTES:
            yield "teacher_device: offload", settings, _kept(teaching, device="offload")
    if launch is not None:
        more = launch.model_copy(update={"processes": 2 * launch.processes})
        yield (
            f"launch: {{processes: {more.processes}}}",
            settings.model_copy(update={"launch": more}),
            teaching,
        )
    elif not _on_processor() and settings.optimizer != "adamw_8bit":
        yield "launch: {processes: 2}", settings.model_copy(update={"launch": Launch(processes=2)}), teaching
    if settings.lora is None:
        yield "lora: {}", settings.model_copy(update={"lora": Lora()}), teaching


def _kept(teaching: Teaching, **changes: str) -> Teaching:
    return Teaching(**{**vars(teaching), **changes})


def beside_cards(spec: ModelSpec, teaching: Teaching | None) -> int:
    """Return what the leader's process holds: both models, as they are opened; a teacher on a processor stays there.

    There it computes in fp32. One that is rounded is opened where it runs.
    """
    opened = 0
    if teaching is not None and teaching.device == "cpu":
        opened = teacher_bytes(teaching, in_bf16=False)
    elif teaching is not None and teaching.precision not in ROUNDED_BYTES:
        opened = teacher_bytes(teaching, in_bf16=True)
    return PROCESS_BYTES + WEIGHT_BYTES * spec.num_parameters + opened


def _named_card(
    settings: TrainingSettings, teaching: Teaching | None, sequence_length: int
) -> NamedCard | None:
    """Return the card that is named for the teacher, where that is another than the student's or there is none."""
    if teaching is None or teaching.card is None or (teaching.card == 0 and not _on_processor()):
        return None
    setting = f"teacher_device: {teaching.device}"
    if _on_processor():
        return NamedCard(setting=setting, number=teaching.card)
    micro_batch = small_micro_batch(settings, sequence_length)
    conditions = conditions_of(settings, sequence_length, micro_batch, recompute=False)
    memory = teacher_account(teaching, conditions)
    return NamedCard(setting=setting, number=teaching.card, memory=memory)


def team(launch: Launch) -> tuple[int, int]:
    """Return how many processes share a device's memory, and how many devices there are: cards, or machines."""
    if _on_processor():
        return launch.processes, launch.nodes
    return 1, launch.processes * launch.nodes


def _on_processor() -> bool:
    return planned_machine().card is None


def num_trained(spec: ModelSpec, settings: TrainingSettings) -> int:
    """Return how many parameters learn: all, or those of adapters, ``rank · (rows + columns)`` of each matrix."""
    if settings.lora is None:
        return spec.num_parameters
    vocabulary, targets = spec.config.get("vocab_size"), settings.lora.targets
    matrices = [
        tensor.shape
        for name, tensor in spec.tensors.items()
        if len(tensor.shape) == 2
        and vocabulary not in tensor.shape
        and (targets == "all-linear" or name.removesuffix(".weight").rpartition(".")[2] in targets)
    ]
    return settings.lora.rank * sum(rows + columns for rows, columns in matrices)
