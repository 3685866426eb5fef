"""Train on text by the next token's cross-entropy: from scratch, or a pruned model without a teacher."""

from collections.abc import Mapping, Sequence

from compress.plugins import Context, Planned, row_length, texts_of
from compress.records import Artifact, ModelSpec, Outcome, Work
from compress.train.advice import training_advice
from compress.train.cost import training_work
from compress.train.duration import timed
from compress.train.settings import TrainingSettings, rehearsed, trained

VERSION = 4
ACCEPTS = ("hf",)
PRODUCES = "hf"


class Config(TrainingSettings):
    """How to train. The labels are the data's own next tokens."""


def predict(spec: ModelSpec, config: Config) -> ModelSpec:
    """Return the parent's spec. Raises `InputError` for a model that cannot be trained here, or not so."""
    return trained(spec, config)


def chat_template_for(config: Config) -> str | None:
    """Return the setting that needs a chat template, if one does."""
    return "task_chat_template" if config.task_chat_template else None


def estimate(spec: ModelSpec, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return about what the training takes."""
    work = training_work(spec, config, sequence_length=row_length(inputs))
    return timed(work, spec, config, None, texts_of(inputs))


def advise(steps: Sequence[Planned]) -> list[str]:
    """Say what looks wrong."""
    return training_advice(steps)


def rehearse(config: Config) -> Config:
    """Return the settings with a few steps of a few sequences."""
    return rehearsed(config)


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write the trained model, in the parent's dtypes."""
    from compress.train.objective import NextToken
    from compress.train.student import train_student

    return train_student(parent, config, context, NextToken)
