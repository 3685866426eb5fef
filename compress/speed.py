"""How long work takes on a machine, from datasheets and what is known of such machines; nothing here is measured.

A sum of what bounds each part of it: products by the peak of the device, everything between them (norms, activations,
casts, the optimizer) by its memory. For cards `SHARE_OF_PEAK` and `models.effort.TRAFFIC`, what is moved between
products, are fitted to published trainings with fp32 weights in bf16 autocast: MosaicML's MPT of 1 to 13 billion
parameters on A100 and H100 (mosaicml/llm-foundry, scripts/train/benchmarking/README.md) and torchtitan's Llama 3.1 8B
on H100 (pytorch/torchtitan, benchmarks/llama3_h100_202412_torchtitan.md). That is 35 to 45 % of an H100's peak, and 50
to 60 % of an A100's, whose memory is faster in proportion.
`tests/engine/test_published.py` holds them beside what comes of it, none more than 30 % apart.

Torch-free: plans are made with it.
"""

from compress.cores import usable_cores
from compress.machine import Card, Machine, planned_machine, this_machine
from compress.records import Record, Work

SHARE_OF_PEAK = 0.8
"""What large bf16 products reach of a card's peak."""
EXACT_SHARE = 1 / 20
"""Products in fp32 without TF32, as a share of the bf16 peak: 1/16 of it on A100, 1/15 on H100, at 4/5 of that."""
SHARE_OF_BANDWIDTH = 0.8

SECONDS_PER_CALL = 2e-5
"""An operation of an eager transformers model on a card, as long as Python takes for it: 32 layers of 40 operations are
the 25 ms a token that are usual there."""
CARD_START = 8.0
"""Seconds until a process has a CUDA context, its libraries, and the first kernels of each kind."""

CORE_FLOPS_PER_SECOND = 6e10
"""Of fp32 products on one core with AVX-512: measured on an EPYC with both of two cores busy."""
CORE_BYTES_PER_SECOND = 1e10
"""Elementwise work of a core, part of it in its caches."""
PROCESSOR_BYTES_PER_SECOND = 1e11
"""At most, however many cores."""
PROCESSOR_SECONDS_PER_CALL = 2e-5
PROCESSOR_START = 1.0
"""Seconds of imports that workers do not share."""
LOGITS_AT_ONCE = 2**25
"""On a processor, of one model: 128 MiB in fp32. Half of it would make a head of 262,144 ids a quarter slower: its
weights are read once each time."""
RENTED_CORES = 16
"""Cores beside a card, on a machine that is not this one."""

DISK_BYTES_PER_SECOND = 1e9
"""A local NVMe drive, files not in memory yet."""
NETWORK_BYTES_PER_SECOND = 1e8
"""A download from a hub: about a gigabit a second."""


class Speed(Record):
    """What a device does in a second."""

    flops: float
    exact_flops: float
    bytes: float
    seconds_per_call: float
    starts_ahead: bool
    """Whether operations are started while others still run, as on a card: only the slower of the two counts."""
    start_seconds: float


def speed(machine: Machine, on_processor: bool = False) -> Speed:
    """Return how fast a machine is: its card, or where it has none, or none is asked for, its processor."""
    return (
        _processor_speed(_cores_of(machine))
        if machine.card is None or on_processor
        else _card_speed(machine.card)
    )


def start_seconds(work: Work, machine: Machine) -> float:
    """Return how long a process takes to begin such work."""
    return speed(machine, work.on_processor).start_seconds


def seconds_of(work: Work, machine: Machine | None = None) -> float:
    """Return how long work takes once begun; on the machine that is planned for, where none is given."""
    machine = machine or planned_machine()
    fast = speed(machine, work.on_processor)
    computing = work.flops / fast.flops + work.exact_flops / fast.exact_flops + work.bytes_moved / fast.bytes
    starting = work.num_calls * fast.seconds_per_call
    device = max(computing, starting) if fast.starts_ahead else computing + starting
    disk = (work.disk_bytes_read + work.disk_bytes) / DISK_BYTES_PER_SECOND
    return device / work.devices + disk + work.serial_seconds


def is_nothing(work: Work) -> bool:
    """Whether an estimate says nothing about time."""
    return seconds_of(work, Machine()) == 0


def _card_speed(card: Card) -> Speed:
    return Speed(
        flops=SHARE_OF_PEAK * card.bf16_flops_per_second,
        exact_flops=EXACT_SHARE * card.bf16_flops_per_second,
        bytes=SHARE_OF_BANDWIDTH * card.memory_bytes_per_second,
        seconds_per_call=SECONDS_PER_CALL,
        starts_ahead=True,
        start_seconds=CARD_START,
    )


def _processor_speed(cores: int) -> Speed:
    return Speed(
        flops=cores * CORE_FLOPS_PER_SECOND,
        exact_flops=cores * CORE_FLOPS_PER_SECOND,
        bytes=min(cores * CORE_BYTES_PER_SECOND, PROCESSOR_BYTES_PER_SECOND),
        seconds_per_call=PROCESSOR_SECONDS_PER_CALL,
        starts_ahead=False,
        start_seconds=PROCESSOR_START,
    )


def _cores_of(machine: Machine) -> int:
    return usable_cores() if machine.card is None or machine == this_machine() else RENTED_CORES
