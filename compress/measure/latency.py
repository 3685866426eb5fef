"""How fast a model answers (an encoder: reads), beside the original in the same minutes of the same process.

They take turns, A B A B, under a machine-wide lock and with a fixed number of threads: absolute times belong
to this machine on this day, the ratio survives. The original runs on the device of the model's own runtime: an ONNX
export, made for processors, has it on the processor beside it. On a GPU tokens are decoded by CUDA graphs where a step
can be recorded; notes say so, or why not, and which figures show a processor that launches too slowly.
`context.inputs`: ``original`` (absent, or the artifact itself: alone) and, where there is one, ``rival``: the original
made into a file of the same kind for the same runtime, so that what the runtime brings is told apart.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial, reduce
from itertools import product
from typing import TYPE_CHECKING

from pydantic import Field

from compress.errors import InputError
from compress.machine import planned_machine
from compress.measure.statistics import ratio_interval
from compress.models.effort import as_stored, opening, writing
from compress.models.task import writes
from compress.plugins import Context, Measured, StepConfig
from compress.records import LAUNCH_BOUND, Artifact, Measurement, ModelSpec, Work

if TYPE_CHECKING:
    from compress.backends.interface import Backend, OpenOptions
    from compress.meters.launching import Launching
    from compress.meters.timing import Lend, Sample, Shape

VERSION = 4

SAMPLES = "samples.json"
START_SECONDS = 1.0
"""To import the runtimes."""

REST_SECONDS = 0.05
"""Before each turn, until the threads of the model before have come to rest."""

RATIOS = {"original": "time_per_output_token_ratio", "rival": "time_per_output_token_to_rival"}
"""What a time is compared with, and what the ratio is called."""

FEWEST_ROUNDS = 3
"""Two rounds agree by accident often enough that their interval says little."""


class Config(StepConfig):
    """The profile: every batch size with every prompt length."""

    batch_sizes: tuple[int, ...] = (1,)
    """Sequences generated together."""
    prompt_tokens: tuple[int, ...] = (128,)
    """Tokens read before the first is written."""
    new_tokens: int = Field(default=32, ge=2)
    """Tokens written, whatever they are: end-of-sequence is ignored."""
    repeats: int = Field(default=5, ge=1)
    """Timed rounds, in each of which every model takes its turn."""
    warm_up: int = Field(default=1, ge=0)
    """Untimed rounds after opening."""
    num_threads: int | None = Field(default=None, ge=1)
    """CPU threads of the runtimes; torch's own choice when not given."""


def estimate(measured: Measured, config: Config) -> Work:
    """Return about what all rounds of all models take, warm-up included."""
    models = [measured.spec, *measured.specs.values()]
    new_tokens = config.new_tokens if writes(measured.spec.config) else 1
    # The original is timed where the model's own runtime is: beside an ONNX export on the processor.
    on_processor = measured.kind == "onnx" or planned_machine().card is None
    rounds = [_rounds(spec, config, new_tokens, recorded=not on_processor) for spec in models]
    timed = reduce(Work.plus, rounds, Work(serial_seconds=START_SECONDS))
    return timed.model_copy(update={"on_processor": on_processor})


def _rounds(spec: ModelSpec, config: Config, new_tokens: int, recorded: bool) -> Work:
    """Return what a model's turns take. On a card a token's operations are recorded, and then started as one."""
    turns = Work(serial_seconds=REST_SECONDS).plus(
        writing(spec, min(config.batch_sizes), min(config.prompt_tokens), min(2, new_tokens), recorded)
    )
    work = turns.times(config.repeats)
    for batch, prompt in product(config.batch_sizes, config.prompt_tokens):
        answer = writing(spec, batch, prompt, new_tokens, recorded)
        work = work.plus(answer.times(config.repeats + config.warm_up))
    return opening(spec).plus(work if recorded else as_stored(work, spec))


def measure(artifact: Artifact, config: Config, context: Context) -> list[Measurement]:
    """Return `time_to_first_token`, `time_per_output_token`, `tokens_per_second` and the prefill's.

    Beside the original also `time_per_output_token_ratio`, this model's by the original's, with its 95 % interval, of
    three or more rounds compared one by one, and beside a rival `time_per_output_token_to_rival`. An encoder has
    `time_per_pass` and `prefill_tokens_per_second`. Values are medians; p90 and threads stand in the note and every
    sample in ``samples.json``. Tokens a second count the whole batch. Raises `InputError` when the profile is longer
    than the model reads.
    """
    import torch

    from compress.backends.interface import OpenOptions
    from compress.backends.opening import device_of
    from compress.meters.timing import alternate, machine_lock, rest

    models = _models(artifact, context)
    runtimes: dict[str, str] = {}
    options = OpenOptions(
        device=device_of(artifact), num_threads=config.num_threads or torch.get_num_threads()
    )

    def on_round(done: int) -> None:
        context.progress(done, config.repeats, "rounds")
        if context.stopping:
            context.stop()

    with machine_lock(), ExitStack() as opened:
        lenders = _lenders(list(models.values()), config, options, opened, runtimes)
        rested: list[bool] = []
        samples = alternate(lenders, shapes(config), config.repeats, on_round, lambda: rested.append(rest()))
        launched = [_launching(*each, options) for each in zip(lenders, samples, strict=True)]
    named = dict(zip(models, samples, strict=True))
    _write_samples(named, context)
    _warn_if_launch_bound(launched, context)
    if not all(rested):
        context.warn(
            "something in this process never came to rest while models were timed: they may be told too slow"
        )
    return [
        m.model_copy(update={"runtime": runtimes[artifact.key]})
        for shape in shapes(config)
        for m in _measurements(shape, named, [by_shape[shape] for by_shape in launched], options)
    ]


def _models(artifact: Artifact, context: Context) -> dict[str, Artifact]:
    """Return what takes turns: ``this``, and beside it ``original`` and ``rival`` where they are other models."""
    models, keys = {"this": artifact}, {artifact.key}
    for name in ("original", "rival"):
        other = context.inputs.get(name)
        if other is not None and other.key not in keys:
            models[name] = other
            keys.add(other.key)
    return models


def shapes(config: Config) -> "list[Shape]":
    """Return what is generated, smallest first."""
    from compress.meters.timing import Shape

    return [
        Shape(b, t, config.new_tokens)
        for b, t in product(sorted(config.batch_sizes), sorted(config.prompt_tokens))
    ]


def _lenders(
    models: Sequence[Artifact],
    config: Config,
    options: "OpenOptions",
    opened: ExitStack,
    runtimes: dict[str, str],
) -> "list[Lend]":
    """Return how each model is had for a turn: open all along where all fit, else opened for every turn.

    What computes is put into `runtimes`, by the model's key, when it is opened.
    """
    from compress.meters.memory import fit_together

    if not fit_together(list(models), options.device):
        return [partial(_warm, model, config, options, runtimes) for model in models]
    backends = [opened.enter_context(_warm(model, config, options, runtimes)) for model in models]
    return [partial(_kept, backend) for backend in backends]


@contextmanager
def _kept(backend: "Backend") -> "Iterator[Backend]":
    yield backend


@contextmanager
def _warm(
    artifact: Artifact, config: Config, options: "OpenOptions", runtimes: dict[str, str]
) -> "Iterator[Backend]":
    from compress.backends.interface import Encoder
    from compress.backends.opening import open_artifact
    from compress.meters.timing import time_answer

    with closing(open_artifact(artifact, options)) as backend:
        runtimes[artifact.key] = backend.runtime
        reads = isinstance(backend, Encoder)
        longest = max(config.prompt_tokens) + (0 if reads else config.new_tokens)
        if longest > backend.num_positions:
            raise InputError(
                f"profile: {'prompt_tokens are' if reads else 'prompt_tokens and new_tokens make'} {longest}, but the "
                f"model reads at most {backend.num_positions} tokens"
            )
        for shape in shapes(config):
            backend.prepare(shape.batch_size, shape.prompt_tokens + shape.new_tokens)
        for _ in range(config.warm_up):
            for shape in shapes(config):
                time_answer(backend, shape)
        yield backend


def _launching(
    lend: "Lend", samples: "dict[Shape, list[Sample]]", options: "OpenOptions"
) -> "dict[Shape, Launching]":
    """Return for every shape what notes say of how a model's work reached its device."""
    from compress.meters.launching import Launching, launching

    if options.device == "cpu":  # a model may have to be opened anew
        return dict.fromkeys(samples, Launching())
    with lend() as backend:
        return {shape: launching(backend, shape, taken) for shape, taken in samples.items()}


def _warn_if_launch_bound(launched: "Sequence[dict[Shape, Launching]]", context: Context) -> None:
    for shape in launched[0]:
        said = [words for each in launched for words in (each[shape].reading, each[shape].writing)]
        if any(LAUNCH_BOUND in words for words in said):
            context.warn(
                f"latency at batch_size {shape.batch_size}, prompt_tokens {shape.prompt_tokens} is {LAUNCH_BOUND}: "
                "the GPU waits for the processor, whatever the model. Neither its speeds nor its prices compare"
            )


def _measurements(
    shape: "Shape",
    samples: "dict[str, dict[Shape, list[Sample]]]",
    launched: "list[Launching]",
    options: "OpenOptions",
) -> list[Measurement]:
    """Return the figures of one shape from every model's samples."""
    from compress.meters.timing import percentile
    from compress.models.device import default_device

    reading = _notes({name: m.reading for name, m in zip(samples, launched, strict=True)})
    writing = _notes({name: m.writing for name, m in zip(samples, launched, strict=True)})
    place = "; all on the processor" if len(samples) > 1 and options.device != default_device() else ""
    labels: dict[str, str | int] = {"batch_size": shape.batch_size, "prompt_tokens": shape.prompt_tokens}
    own = samples["this"][shape]
    writes = own[0].new_tokens > 0
    what = f"{shape.new_tokens} new tokens" if writes else "without the output head"

    def figure(
        name: str, unit: str, better: bool, of: "Callable[[Sample], float]", launching: str
    ) -> Measurement:
        medians = {model: percentile([of(s) for s in taken[shape]], 50) for model, taken in samples.items()}
        # Ninety percent of answers are at least this good.
        bad = percentile([of(s) for s in own], 10 if better else 90)
        return Measurement(
            name=name,
            value=medians.pop("this"),
            unit=unit,
            higher_is_better=better,
            labels=labels,
            n=len(own),
            beside=medians,
            note=f"median; p90 {bad:.4g}; {what}, {options.num_threads} threads{place}{launching}",
        )

    def read_a_second(sample: "Sample") -> float:
        return shape.batch_size * shape.prompt_tokens * 1e3 / sample.first_token_ms

    def written_a_second(sample: "Sample") -> float:
        return shape.batch_size * 1e3 / sample.per_token_ms

    read = figure("prefill_tokens_per_second", "tokens/s", True, read_a_second, reading)
    if not writes:
        return [figure("time_per_pass", "ms", False, lambda s: s.total_ms, reading), read]
    ratios = [
        _ratio(RATIOS[other], own, taken[shape], labels, f"{place}{writing}")
        for other, taken in samples.items()
        if other in RATIOS and len(own) >= FEWEST_ROUNDS
    ]
    return [
        *ratios,
        figure("time_to_first_token", "ms", False, lambda s: s.first_token_ms, reading),
        figure("time_per_output_token", "ms", False, lambda s: s.per_token_ms, writing),
        figure("tokens_per_second", "tokens/s", True, written_a_second, writing),
        read,
    ]


def _notes(said: dict[str, str]) -> str:
    """Return the end of a note: what is said of this model and of the others, once where it is the same."""
    own = said["this"]
    others = {name: other for name, other in said.items() if other not in ("", own)}
    parts = [own, *(f"the {name}: {other}" for name, other in others.items())]
    return "".join(f"; {part}" for part in parts if part)


def _ratio(
    name: str, own: "list[Sample]", other: "list[Sample]", labels: dict[str, str | int], launching: str
) -> Measurement:
    """Return the time per output token as a ratio to another model's, which took its turn in the same rounds."""
    found = ratio_interval([s.per_token_ms for s in own], [s.per_token_ms for s in other])
    return Measurement(
        name=name,
        value=found.value,
        unit="ratio",
        higher_is_better=False,
        labels=labels,
        n=len(own),
        low=found.low,
        high=found.high,
        degrees=len(own) - 1,
        note=f"of the medians; the interval is of rounds compared one by one{launching}",
    )


def _write_samples(samples: "dict[str, dict[Shape, list[Sample]]]", context: Context) -> None:
    raw = [
        {"model": model, "batch_size": shape.batch_size, "prompt_tokens": shape.prompt_tokens}
        | {"first_token_ms": [s.first_token_ms for s in taken], "total_ms": [s.total_ms for s in taken]}
        for model, by_shape in samples.items()
        for shape, taken in by_shape.items()
    ]
    (context.folder / SAMPLES).write_text(json.dumps(raw, indent=1), encoding="utf-8")
