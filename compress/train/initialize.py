"""A model with random weights: what `train` starts from, and the from-scratch baseline of a pruned shape."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from compress.errors import InputError
from compress.models.layout import layout, spec_from_config
from compress.models.spec import check_tokenizer, read_spec
from compress.plugins import Context, StepConfig
from compress.records import Artifact, ModelSpec, Outcome, Work

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

VERSION = 1
ACCEPTS = ("tokenizer", "hf")
PRODUCES = "hf"

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Config(StepConfig):
    """Which architecture to fill with random weights."""

    config: dict[str, Any] | None = None
    """A Hugging Face configuration; ``None`` takes the parent's, so the parent must be a model."""
    dtype: Literal["F32", "F16", "BF16", "F64"] = "F32"
    """What the weights are stored in."""


def predict(spec: ModelSpec | None, config: Config) -> ModelSpec:
    """Return the model of that configuration. Raises `InputError` for an unknown architecture."""
    return spec_from_config(_architecture(spec, config), config.dtype)


def estimate(spec: ModelSpec | None, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return the work of drawing and writing every weight once."""
    result = predict(spec, config)
    return Work(
        bytes_moved=10.0 * result.weight_bytes,
        serial_seconds=0.2,
        on_processor=True,
        peak_memory_bytes=2 * result.weight_bytes,
        disk_bytes=result.weight_bytes,
    )


def rehearse(config: Config) -> Config:
    """Return the same settings: the rehearsal's configurations are tiny already."""
    return config


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write a model drawn from the seed the way transformers initializes it, with the parent's tokenizer.

    The tokenizer's special ids go into the configuration where it names none. Raises `InputError` when the
    tokenizer does not fit the vocabulary or transformers refuses the configuration.
    """
    from compress.models.checkpoint import save_model

    architecture = _architecture(parent.spec, config)
    check_tokenizer(parent.path, layout(architecture).vocab)
    if config.config is not None:
        architecture = _special_ids(parent.path) | architecture
    save_model(_draw(architecture, config.dtype, context.seed), context.folder, like=parent.path)
    return Outcome(spec=read_spec(context.folder))


def _architecture(spec: ModelSpec | None, config: Config) -> dict[str, Any]:
    if config.config is not None:
        return config.config
    if spec is None:
        raise InputError(
            "a model with random weights needs a `config`: its parent is no model to take it from"
        )
    return spec.config


def _special_ids(folder: "Path") -> dict[str, int]:
    from compress.models.checkpoint import load_tokenizer

    tokenizer = load_tokenizer(folder)
    ids = {name: getattr(tokenizer, name) for name in SPECIAL_IDS}
    return {name: value for name, value in ids.items() if value is not None}


def _draw(architecture: dict[str, Any], dtype: str, seed: int) -> "PreTrainedModel":
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from compress.models.checkpoint import DTYPES, auto_class, quiet

    settings = {name: value for name, value in architecture.items() if name not in ("dtype", "torch_dtype")}
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        try:
            # `for_model` takes the type apart from the settings.
            configuration = AutoConfig.for_model(**settings)
            model: PreTrainedModel = auto_class(settings).from_config(configuration, dtype=DTYPES[dtype])
        except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"transformers refuses this model configuration: {error}") from error
    return model
