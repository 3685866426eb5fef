"""What flows through the program: immutable, torch-free, JSON-serializable.

A step turns one `Artifact` into another; a measurement turns an artifact into `Measurement`s; the engine
gathers both into `StepRecord`s, and these into the one `RunRecord` that the report is a pure function of.
"""

from math import prod
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

JsonValue = Any

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes an element takes, by the dtype names of the safetensors format."""


class Record(BaseModel):
    """An immutable value with no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class TensorSpec(Record):
    """Shape and dtype (safetensors name, such as ``BF16``) of one stored tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * DTYPE_BYTES[self.dtype]


class ModelSpec(Record):
    """What a model is, known without its weights: its configuration and every tensor it stores.

    `num_parameters` counts the logical weights (tied ones once); a packed integer tensor stores several in
    one element, so it is not the sum over `tensors`.
    """

    config: dict[str, JsonValue]
    tensors: dict[str, TensorSpec]
    num_parameters: int

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def weight_bytes(self) -> int:
        """Bytes of tensor payload, without headers, configuration or tokenizer."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())

    @property
    def size(self) -> "Size":
        return Size(num_parameters=self.num_parameters, weight_bytes=self.weight_bytes)


class Size(Record):
    """The two figures a model is bought by."""

    num_parameters: int
    weight_bytes: int


class Artifact(Record):
    """One committed result: a folder that never changes, named by the hash of all that made it.

    kind: ``hf`` (float safetensors folder), ``packed`` (integers and scales, compressed-tensors layout),
    ``bitsandbytes``, ``onnx``, ``tokenizer``, ``tokens``, ``tasks``, ``measurements``.
    """

    key: str
    kind: str
    path: Path
    spec: ModelSpec | None = None
    facts: dict[str, JsonValue] = Field(default_factory=dict)


class Outcome(Record):
    """What a step hands back beside the files it wrote: the realized model and facts worth a line."""

    spec: ModelSpec | None = None
    facts: dict[str, JsonValue] = Field(default_factory=dict)


class MemoryItem(Record):
    """One line of an account of memory."""

    name: str
    num_bytes: int


class NamedCard(Record):
    """A card that settings name beside the one that the work is on."""

    setting: str
    """As it stands in the pipeline, ``teacher_device: cuda:1``."""
    number: int
    memory: tuple[MemoryItem, ...] = ()
    """What it holds at most."""


class Work(Record):
    """An estimate of what a step takes, made before it runs: amounts, of which `compress.speed` makes seconds."""

    flops: float = 0.0
    """Of large matrix products in the format the device is fast in: bf16 on a card."""
    exact_flops: float = 0.0
    """Of large matrix products in fp32 or wider."""
    bytes_moved: float = 0.0
    """Read and written in the device's memory beside that: the weights at each step of generation, those rounded."""
    num_calls: float = 0.0
    """Operations that Python starts one by one: what small models and single tokens are bound by."""
    disk_bytes_read: float = 0.0
    serial_seconds: float = 0.0
    """What takes as long on every machine: imports, the network."""
    on_processor: bool = False
    """Whether the processor does it even where there is a card."""
    peak_memory_bytes: int = 0
    """Of the process that works; of each device where `devices` are several."""
    disk_bytes: int = 0
    devices: int = 1
    """How many share the work evenly: cards, or without them machines. What is read and written, and what is
    serial, they do not share."""
    memory: tuple[MemoryItem, ...] = ()
    """What `peak_memory_bytes` is the sum of, where that was accounted for."""
    is_peak_of_one: bool = False
    """Whether, of several devices, only the first reaches that peak."""
    named_card: NamedCard | None = None
    host_memory_bytes: int = 0
    """What a machine with cards holds beside them; 0 where that is not known, or there are no cards."""
    remedies: tuple[str, ...] = ()
    """What would take less memory, and how much less, what costs least first."""

    def plus(self, other: "Work") -> "Work":
        """Return this work with another done after it: amounts add up, the larger peak of memory stays."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in _AMOUNTS}
        peak = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return self.model_copy(update={**sums, "peak_memory_bytes": peak})

    def times(self, number: float) -> "Work":
        """Return this work done so many times over; its memory and what stays on disk are the same."""
        amounts = {name: number * getattr(self, name) for name in _AMOUNTS if name != "disk_bytes"}
        return self.model_copy(update=amounts)


_AMOUNTS = (
    "flops", "exact_flops", "bytes_moved", "num_calls", "disk_bytes_read", "serial_seconds", "disk_bytes"
)  # fmt: skip


LAUNCH_BOUND = "launch-bound"
"""Stands in the note of a speed that is the processor's: it launched a GPU's work too slowly."""


class Measurement(Record):
    """One figure with its unit, sample size and 95 % interval.

    `labels` tell figures of one name apart: ``{"task": "world_facts"}``,
    ``{"batch_size": 1, "prompt_tokens": 128}``. `beside` holds the same figure for another model taken in
    the same process and alternation (``{"original": 12.1}``), so that the ratio survives a noisy machine.
    """

    name: str
    value: float
    unit: str
    higher_is_better: bool
    labels: dict[str, str | int] = Field(default_factory=dict)
    n: int | None = None
    low: float | None = None
    high: float | None = None
    degrees: int | None = None
    """Degrees of freedom of Student's interval; None: it is a normal one, or exact."""
    beside: dict[str, float] = Field(default_factory=dict)
    note: str | None = None
    """What a reader must know of it. `LAUNCH_BOUND` is said in it."""
    chance: float | None = None
    """What guessing scores, of an accuracy, where the items offer options to pick from: the mean of 1/options."""
    runtime: str | None = None
    """What computed, of a figure that depends on it: ``onnxruntime 1.23.0, cpu``."""


class Generation(Record):
    """One prompt and what the model wrote after it (greedy). Hostile text: escape it."""

    prompt: str
    text: str


class CurvePoint(Record):
    """One point of a training curve: means since the point before; what was evaluated there, if anything was."""

    tokens: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    held_out: dict[str, float] = Field(default_factory=dict)
    """Figures of text that is not learned from, a token: `loss` in nats, and what the objective tells beside it
    (`kl` to the teacher in nats, `same_top`, the share of tokens both would choose)."""
    tasks: dict[str, float] = Field(default_factory=dict)
    """Accuracy on each watched task."""


ModelRole = Literal["original", "student", "baseline"]
"""The checkpoint everything starts from, what the pipeline's steps make, and what a user might pick instead."""


class ChildRecord(Record):
    """Work done for a step as a result of its own: prepared before it, or submitted by it while it ran."""

    use: str
    settings: dict[str, JsonValue]
    key: str
    seconds: float
    how: Literal["prepared", "submitted"] = "submitted"
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    realized: Size | None = None
    """``None`` when it made no model."""


class StepRecord(Record):
    """One step of one run: what was asked, what it made, what it took, what was measured."""

    name: str
    use: str
    kind: str
    role: ModelRole
    parent: str | None
    key: str
    cached: bool
    settings: dict[str, JsonValue]
    inputs: dict[str, str] = Field(default_factory=dict)
    seconds: float
    device_seconds: float = 0.0
    """What is paid for: `seconds` on each card, or without them each machine, that worked. 0 in older records."""
    peak_memory_bytes: int
    disk_bytes: int
    predicted: Size
    realized: Size
    is_about: bool = False
    """Whether `predicted` is a guess, because a shape on the way here was decided by measuring."""
    rival_of: tuple[str, ...] = ()
    """The students that this baseline is the original of, in their runtime: the same file made of it, uncompressed."""
    estimated_seconds: float | None = None
    estimated_peak_memory_bytes: int | None = None
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    generations: tuple[Generation, ...] = ()
    children: tuple[ChildRecord, ...] = ()
    """Their time is part of `seconds`. What several steps prepare alike stands with the first of them."""


class GateResult(Record):
    """Whether one leaf of the pipeline stayed inside one gate."""

    gate: str
    step: str
    limit: float
    measured: float | None
    """``None`` when the figure was not measured; such a gate has not passed."""
    passed: bool
    """Whether the 95 % interval of what was measured lies inside the limit: it is proved to be kept."""
    finding: Literal["kept", "lost", "not enough items", "not measured", ""] = ""
    """Lost: the interval lies outside. Between them nothing is proved. Empty in older records."""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    enough_items: int | None = None
    """About how many items would prove it, if what was measured is what is true; ``None`` where none would."""
    unit: str = ""
    """Of an entry of `limits`: what limit and figure are in; ``points`` are of a share."""
    bound: Literal["at most", "at least", ""] = ""
    """Of an entry of `limits`: on which side of the limit the figure must be."""
    judged_at_once: int = 1
    """How many limits, of all candidates, had evidence to be weighed: the more, the more each needs (Holm)."""


class RunRecord(Record):
    """The whole run: everything the report says, and nothing it has to compute from weights."""

    version: Literal[1] = 1
    id: str
    name: str
    status: Literal["running", "done", "failed", "interrupted", "gates failed"]
    rehearsal: bool = False
    started: str
    finished: str | None = None
    seconds: float = 0.0
    command: str
    pipeline: str
    seed: int
    environment: dict[str, str]
    usd_per_hour: float | None = None
    utilisation: float = 1.0
    chance: dict[str, float] = Field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    gates: tuple[GateResult, ...] = ()
    error: str | None = None

    def step(self, name: str) -> StepRecord:
        """Return the step of that name. Raises `KeyError`."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    @property
    def leaves(self) -> tuple[StepRecord, ...]:
        """The students nothing was built on: the candidates to ship."""
        parents = {step.parent for step in self.steps}
        return tuple(s for s in self.steps if s.role == "student" and s.name not in parents)
