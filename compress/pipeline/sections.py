"""The sections of a pipeline file. The string under each field is its documentation, here and in editors."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    SerializeAsAny,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from compress import plugins
from compress.errors import InputError, nearest
from compress.pipeline.source import Source
from compress.plugins import StepConfig
from compress.quantities import Count

Section = StepConfig
"""Sections follow the rules of settings: immutable, documented per field, no unknown keys."""

DEMO_TASKS = ("world_facts", "world_agreement", "world_sums", "world_recall", "world_text")
"""The tasks that come with the built-in demo world."""

ORIGINAL = "original"
"""The name of the model a pipeline starts from."""

DEMO_DATA: dict[str, dict[str, Any]] = {
    "calibration": {"source": "demo", "split": "calibration", "sequence_length": 128, "samples": 128},
    "recovery": {"source": "demo", "split": "train", "sequence_length": 128, "tokens": "4M"},
    "heldout": {"source": "demo", "split": "heldout", "sequence_length": 128, "samples": 128},
}
"""What ``data:`` is when it is left out."""

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}

Positive = Annotated[int, Field(ge=1)]


def _stored_dtype(value: object) -> object:
    if value in DTYPES.values():
        return value
    if not isinstance(value, str) or value not in DTYPES:
        raise ValueError(f"expected one of {', '.join(DTYPES)}")
    return DTYPES[value]


Dtype = Annotated[
    Literal["F32", "BF16", "F16"], BeforeValidator(_stored_dtype), WithJsonSchema({"enum": list(DTYPES)})
]


class ModelSource(Section):
    """Where a model comes from: the text `demo`, or exactly one of `path`, `id` and `config`."""

    path: Path | None = None
    """A local Hugging Face folder: config.json, safetensors files, tokenizer files."""
    id: Annotated[str, Field(min_length=1)] | None = None
    """A repository on the Hugging Face hub, such as `Qwen/Qwen3-8B`."""
    revision: str = "main"
    """Branch, tag or commit of `id`."""
    config: Path | dict[str, Any] | None = None
    """A config.json, or its content written here: the model starts from random weights."""
    dtype: Dtype = "F32"
    """In which numbers the random weights of `config` are stored."""
    tokenizer: Literal["demo", "bytes"] | Path | None = None
    """A folder with tokenizer files, `demo`, or `bytes` (one token a byte; the model needs a vocabulary of at
    least 259). Left out: the model's own."""
    family: str | None = None
    """The model_type, such as `llama`: lets `--test` run where the hub cannot be asked."""
    shape: Path | dict[str, Any] | None = None
    """The config.json of `id`, or its content written here: what `compress plan` goes by where the hub cannot be asked.
    Nothing else reads it. Models that many people start from are known without."""

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, data: Any) -> Any:
        if data == "demo":
            return {}
        if isinstance(data, str):
            raise ValueError(
                f"expected demo, or a mapping: {{path: {data}}} for a folder, {{id: {data}}} for the hub"
            )
        if isinstance(data, dict):
            return _checked_source(data)
        return data

    @field_validator("family")
    @classmethod
    def _known_family(cls, family: str | None) -> str | None:
        known = plugins.available("models.families")
        if family is not None and family not in known:
            raise ValueError(
                f"no family is called '{family}'{nearest(family, known)} Allowed: {', '.join(known)}"
            )
        return family

    @property
    def kind(self) -> Literal["demo", "path", "id", "config"]:
        """Which of the four ways it is."""
        if self.path is not None:
            return "path"
        if self.id is not None:
            return "id"
        return "demo" if self.config is None else "config"

    def read_config(self) -> dict[str, Any]:
        """Return the content of `config`. Raises `InputError` for a file that holds none."""
        return _read_config(self.config or {})

    def read_shape(self) -> dict[str, Any] | None:
        """Return the content of `shape`; `None` where there is none. Raises `InputError` for a file that holds none."""
        return None if self.shape is None else _read_config(self.shape)


def _read_config(config: Path | dict[str, Any]) -> dict[str, Any]:
    if not isinstance(config, Path):
        return dict(config)
    file = config / "config.json" if config.is_dir() else config
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a JSON object")
    return content


def _checked_source(data: dict[str, Any]) -> dict[str, Any]:
    given = [key for key in ("path", "id", "config") if data.get(key) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ValueError(f"expected the text demo, or exactly one of path, id and config; found {found}")
    for key, needs in (("revision", "id"), ("shape", "id"), ("dtype", "config")):
        if key in data and given != [needs]:
            raise ValueError(f"'{key}' belongs to '{needs}' and says nothing about '{given[0]}'")
    return data


class DataShape(Section):
    """What every data source has, whatever it reads."""

    source: str
    """Where the text comes from: a file of compress/data/sources, such as `demo`, `text`, `jsonl`, `parquet`, `hf` or
    `mixture`."""
    sequence_length: int = Field(ge=2)
    """Tokens in a row; texts are joined and cut into rows without padding."""
    samples: Positive | None = None
    """Rows to take at most."""
    tokens: Count | None = None
    """Tokens to take at most, such as 20M."""
    chat_template: Path | None = None
    """A file with the chat template (Jinja) that conversations are written with. Left out: the tokenizer's own. One
    that marks the answers with `{% generation %}` says what is learned; with any other it is each assistant's turn."""


class DataSource(DataShape):
    """Text that a step trains on, calibrates with or is measured on."""

    settings: SerializeAsAny[StepConfig]
    """The source's own settings. In the file they stand beside the others."""


Measurement = Literal["quality", "divergence", "latency", "memory"]
"""What can be measured of a model: a file of compress/measure."""


class Evaluate(Section):
    """What is measured about quality after every step."""

    tasks: tuple[str, ...] = DEMO_TASKS
    """lm-eval tasks by name. Left out: those of the built-in demo world."""
    samples: Positive | None = None
    """Items of each task to use, the same ones every time; left out: all."""
    few_shot: int | None = Field(default=None, ge=0)
    """Solved examples shown before each item; left out: each task's own number."""
    chat_template: bool = False
    """Ask as a chat, by the tokenizer's template, each solved example in turns of its own: for models that were tuned
    to talk. `false`, as lm-eval has it: the plain text of the task."""
    text: str = "heldout"
    """The name under `data:` on which divergence from the original and perplexity are measured."""
    task_folder: Path | None = None
    """A folder with task files (lm-eval YAML) of your own. They are code: use only files you trust."""
    prompts: tuple[str, ...] = ()
    """Beginnings that every model continues, shown side by side in the report."""
    batch_size: Positive = 32
    """Items scored at once. The same for every model, because it changes results in the last digits."""

    @property
    def uses_demo_tasks(self) -> bool:
        """Whether the demo world's task files have to be made."""
        return any(task in DEMO_TASKS for task in self.tasks)


class Profile(Section):
    """How latency and memory are measured: every combination of `batch_sizes` and `prompt_tokens`."""

    batch_sizes: tuple[Positive, ...] = Field(default=(1,), min_length=1)
    """Requests answered at once."""
    prompt_tokens: tuple[Positive, ...] = Field(default=(64,), min_length=1)
    """Tokens read before the first one is written."""
    new_tokens: int = Field(default=32, ge=2)
    """Tokens written for each request."""
    repeats: Positive = 5
    """Timed runs of each combination, alternating with the original's."""


class Cost(Section):
    """What the hardware costs, to turn time, and tokens per second, into dollars."""

    usd_per_hour: float = Field(gt=0)
    """Price of one card for an hour, or of the machine where there is none. A step on several cards (`launch`) costs so
    much for each; everything else runs on one."""
    utilisation: float = Field(default=1.0, gt=0, le=1)
    """Share of the hour it is busy."""


class Limit(Section):
    """A limit on one figure: exactly one of `at_most`, `at_least` and `margin`."""

    of: str
    """The figure: `accuracy`, `perplexity`, `bits_per_byte`, `kl_divergence`, `time_per_output_token`, `disk_bytes`,
    `parameters`, `peak_memory`, or, with `task`, any metric that a task declares. It is judged of every task and
    profile it is measured of."""
    task: str | None = None
    """Of which task of `evaluate: tasks`; left out: of each that has the figure."""
    at_most: float | None = None
    """The largest value, in the figure's own unit."""
    at_least: float | None = None
    """The smallest value."""
    margin: float | Annotated[str, Field(pattern=r"^-?\d+(\.\d+)?\s*%$")] | None = None
    """How much worse than the original's it may be: in its unit (0.03 of an accuracy is three points), or as a share of
    the original's, such as `5%`. `-20%` demands that it is better by as much."""

    @model_validator(mode="after")
    def _one_limit(self) -> "Limit":
        given = [name for name in ("at_most", "at_least", "margin") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"expected exactly one of at_most, at_least and margin; found {found}")
        return self

    @property
    def is_relative(self) -> bool:
        """Whether the margin is a share of the original's figure."""
        return isinstance(self.margin, str)

    @property
    def worse_by(self) -> float | None:
        """The margin as a number: a share of the original's figure, or in its unit."""
        if isinstance(self.margin, str):
            return float(self.margin.rstrip("% ")) / 100
        return self.margin


class Gates(Section):
    """Limits every candidate must keep; beyond one, `run` exits with code 4 and still writes the report."""

    max_quality_drop: float | None = Field(default=None, ge=0, le=1)
    """Largest drop of mean accuracy below the original's: 0.03 is three percentage points."""
    min_accuracy: float | None = Field(default=None, ge=0, le=1)
    """Smallest mean accuracy over the tasks."""
    max_kl_divergence: float | None = Field(default=None, ge=0)
    """Largest mean divergence from the original, in nats a token."""
    limits: tuple[Limit, ...] = ()
    """Limits on any other figure that is measured. All limits of all candidates are judged together (Holm)."""


MEASUREMENTS: tuple[Measurement, ...] = ("quality", "divergence", "latency", "memory")


class StepShape(Section):
    """What every step has, whatever it does."""

    measure: tuple[Measurement, ...] = MEASUREMENTS
    """What is measured of its result: any of `quality`, `divergence`, `latency` and `memory`; its size on disk is known
    in any case. Left out: all. An ONNX export answers on a processor, where `quality` of a large model takes hours."""


class StepEntry(StepShape):
    """One step: what it is called, what it does, and what it starts from."""

    name: str
    """What the step and its result are called in this file, on the command line and in the report."""
    use: str
    """What to do: the name of a step, such as `prune.width` or `distill`."""
    parent: str
    """The earlier step whose result it starts from, or `original`. Left out: the step before."""
    config: SerializeAsAny[StepConfig]
    """The step's own settings. In the file they stand beside the others."""
    where: str = Field(default="", exclude=True)
    """Place in the file, for messages."""


class ChainShape(StepShape):
    """A baseline of several steps: only what the last of them makes is measured and shown."""

    steps: tuple[dict[str, Any], ...] = Field(min_length=1)
    """What is done one after the other, each step on the result of the one before; none has a name of its own."""


class Baseline(Section):
    """A rival, measured and drawn like a student: another checkpoint, or steps applied to the original."""

    name: str
    """What the rival is called."""
    source: ModelSource | None = None
    """The checkpoint, when it is one."""
    steps: tuple[StepEntry, ...] = ()
    """Otherwise what it is made by, in order; the last one has the rival's name."""


class Header(Section):
    """The sections that read the same in the file and in the program."""

    version: Literal[1]
    """Version of the file format."""
    name: str
    """What the pipeline is called; the report is named after it."""
    model: ModelSource
    """The model to compress, `original` in the rest of the file: `demo`, or one of `path`, `id`, `config`."""
    evaluate: Evaluate = Evaluate()
    """What is measured about quality after every step."""
    profile: Profile = Profile()
    """How latency and memory are measured."""
    cost: Cost | None = None
    """What a card, or the machine, costs."""
    gates: Gates | None = None
    """Limits every candidate must keep."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of everything random. The same file and seed give the same result."""
    same_runtime_baselines: bool = True
    """Whether the original, quantized and exported by the very steps that make a candidate's file, is measured too, so
    that no runtime's speed is taken for the candidate's. Nothing is added where a baseline is just that."""


class Document(Header):
    """The pipeline file as it is written; what plugins define is looked at entry by entry."""

    data: dict[str, dict[str, Any]] = DEMO_DATA
    """Named texts. Left out: `calibration`, `recovery` and `heldout` from the built-in demo world."""
    baselines: tuple[dict[str, Any], ...] = ()
    """Rivals that are measured and drawn like students."""
    steps: tuple[dict[str, Any], ...] = Field(min_length=1)
    """What is done to the model, in order; each step starts from the one before unless `from` says else."""


class Pipeline(Header):
    """A validated pipeline file: every name in it exists, every setting is of its plugin's type."""

    data: dict[str, DataSource]
    baselines: tuple[Baseline, ...] = ()
    steps: tuple[StepEntry, ...]
    path: Path | None = None
    """Where it was read from."""
    text: str = ""
    """The YAML as it was read, before ``--set``."""
    _source: Source | None = PrivateAttr(default=None)

    def where(self, *path: str | int) -> str:
        """Return ``file:line:column`` of a key (``"steps", 2, "from"``) for a message about it."""
        return self._source.where(path) if self._source else self.name
