"""What every kind of training can be told; `train` and `distill` add only what is their own."""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from compress.data.task_names import check_tasks
from compress.data.world import DEMO_TASKS, TEXT_TASK
from compress.errors import InputError
from compress.models.task import in_words, writes
from compress.plugins import DataRef, Manner, StepConfig
from compress.quantities import Count
from compress.records import ModelSpec
from compress.train.adapters import Targets, check_adapters
from compress.train.launch import Launch, rehearsed_launch

Beta = Annotated[float, Field(ge=0, lt=1)]

HIGHEST_BETA_OF_BF16 = 0.98
"""Above it, moments in bf16 stand still (`compress.train.moments_bf16`)."""


class Lora(StepConfig):
    """Low-rank adapters (LoRA): the few weights that are trained instead of all."""

    rank: int = Field(default=16, ge=1)
    """Rows of each adapter. 8 to 64; recovery after pruning changes much, so rather more."""
    alpha: float | None = Field(default=None, gt=0)
    """The adapters' product is multiplied by alpha / rank. Left out: twice the rank, so that one learning rate suits
    every rank."""
    targets: Targets = "all-linear"
    """Which layers get one: all linear ones but the output head, or names such as ``q_proj``."""

    @field_validator("targets")
    @classmethod
    def _are_some(cls, targets: Targets) -> Targets:
        if not targets:
            raise ValueError("name at least one layer, or write 'all-linear'")
        return targets


class TrainingSettings(StepConfig):
    """The settings of the one training loop."""

    data: DataRef = "recovery"
    """The pipeline's data to learn from, repeated in a new order when it is shorter than `tokens`."""
    tokens: Count
    """How many tokens to train on: ``2B``, ``1.6M``, ``500k`` or a number. Rounded to the nearest whole batches, and
    at least one."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """The highest learning rate. 1e-4 suits recovery after pruning; tiny models bear 1e-3 and more, and `lora` about
    ten times what all weights do."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """The share of the steps in which the learning rate rises to its highest: 10 steps at least, or a third where there
    are fewer than 30. 0 begins with the highest."""
    floor: float = Field(default=0.1, ge=0, le=1)
    """Where the cosine ends, as a share of `learning_rate`."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled decay (AdamW), on matrices only: norms and biases keep their scale."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """How slowly AdamW forgets the gradient's mean and square, each below 1."""
    optimizer: Literal["adamw", "adamw_8bit", "adamw_bf16"] = "adamw"
    """AdamW, and what its two moments are kept in: fp32, 8 bytes a trained weight; ``adamw_8bit`` 2 bytes
    (bitsandbytes, those of embeddings in fp32), for one process; ``adamw_bf16`` 4 bytes, also with `launch`. What is
    learned is nearly the same; only `betas` above 0.98 are more than bf16 can follow."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients longer than this are shortened to it."""
    batch_tokens: Count | None = None
    """Tokens an optimizer step averages over, at most `tokens`. Rounded to the nearest whole rows of the data, and at
    least one. Left out: enough for about 2000 steps, within 2k and 512k, and no more than `tokens`."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Sequences that are in memory at once; it does not change the batch. Left out: on a GPU the largest power of two
    that fits, found by trying, on a processor about 2000 tokens. It is halved when memory runs out later; not with
    `launch`, whose processes cannot go on when one of them has run out."""
    checkpoint_activations: bool | Literal["auto"] = "auto"
    """Whether each layer keeps only its input for the backward pass and computes the rest again: the same result, with
    a fraction of the memory and about a third more time. ``auto``: on a GPU where 2000 tokens at once do not fit
    without, or a single sequence no longer does; with `launch` on GPUs unless an estimate leaves clear room; on a
    processor when a single sequence no longer fits."""
    held_out: DataRef | None = None
    """Data to evaluate on and never to learn from, usually that of `evaluate.text`: its loss (and divergence from the
    teacher) goes beside the training loss. Left out: nothing is evaluated on the way."""
    held_out_rows: int = Field(default=64, ge=1)
    """Rows of `held_out` to evaluate, from its beginning; all where there are fewer."""
    tasks: tuple[str, ...] = ()
    """lm-eval tasks to watch on the way, by accuracy. You are warned when one falls although the held-out loss does."""
    task_samples: int = Field(default=200, ge=1)
    """Items of each task, the same ones every time."""
    task_chat_template: bool = False
    """Ask the tasks by the chat template of the data, else the model's: as `evaluate.chat_template` asks the result."""
    evaluate_every: float = Field(default=0.1, gt=0, le=1)
    """How often to evaluate, as a share of the steps; also before the first and after the last."""
    stop_after: int | None = Field(default=None, ge=1)
    """Stop once so many evaluations in a row brought no lower held-out loss, and keep the weights of the lowest. Left
    out: all steps are taken and the last weights kept, which end at the lowest learning rate and are rarely worse."""
    lora: Lora | None = None
    """Train low-rank adapters and add them to the frozen weights at the end: optimizer and checkpoints shrink to a few
    per cent, and what is learned is more limited. Left out: all weights are trained. ``{}`` takes the defaults."""
    attend_across_documents: bool = False
    """Whether a text packed into a row sees the ones before it and is predicted from them. It is no part of what they
    say, so by default attention stays within each text."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """What matrices are multiplied in; weights and optimizer stay fp32. ``auto`` is bf16 where it is fast."""
    launch: Annotated[Launch | None, Manner()] = None
    """Train on several processes: ``{processes: 8}``. The batch is the same, shared between them, so the result differs
    by rounding only and has the same name in the store; a run may be taken up by another number of processes. Without
    GPUs they share the processor's cores. On GPUs they try together what fits, and the record says how models were
    divided: by machine where one can hold all, the teacher whole and gradients summed once a step where there is
    room."""
    checkpoint_seconds: float = Field(default=30.0, ge=0)
    """Seconds between checkpoints; longer where writing one takes long (at most a twentieth of the time)."""

    @field_validator("betas", mode="before")
    @classmethod
    def _are_two(cls, betas: Any) -> Any:
        if isinstance(betas, list | tuple) and len(betas) != 2:
            raise ValueError(f"expected two numbers, such as [0.9, 0.95], found {len(betas)}: {list(betas)}")
        return betas

    @model_validator(mode="after")
    def _a_batch_is_within_the_budget(self) -> Self:
        if self.batch_tokens is not None and self.batch_tokens > self.tokens:
            raise ValueError(
                f"'batch_tokens' ({self.batch_tokens:,}) is more than 'tokens' ({self.tokens:,}): a single step would "
                "train on more than asked for; make it smaller, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _moments_can_be_kept_so(self) -> Self:
        if self.optimizer == "adamw_8bit" and self.launch is not None:
            raise ValueError(
                "`optimizer: adamw_8bit` is for one process: bitsandbytes cannot update weights that are shared out "
                "among several. With `launch` write `optimizer: adamw_bf16`, or adamw"
            )
        if self.optimizer == "adamw_bf16" and max(self.betas) > HIGHEST_BETA_OF_BF16:
            raise ValueError(
                f"`optimizer: adamw_bf16` cannot follow betas above {HIGHEST_BETA_OF_BF16}, found "
                f"{list(self.betas)}: what a step adds would be rounded away. Lower them, or write "
                "`optimizer: adamw_8bit` or adamw"
            )
        return self

    @model_validator(mode="after")
    def _evaluates_on_other_data(self) -> Self:
        if self.held_out == self.data:
            raise ValueError(f"'held_out' is the data learned from ('{self.data}'); name other data")
        if self.held_out is None and self.tasks:
            raise ValueError("'tasks' needs 'held_out': a fall is told from bad luck by the loss beside it")
        if self.task_chat_template and not self.tasks:
            raise ValueError("'task_chat_template' is how 'tasks' are asked, and there are none")
        if self.held_out is None and self.stop_after is not None:
            raise ValueError("'stop_after' needs 'held_out': training stops by its loss")
        return self


def trained(spec: ModelSpec, settings: TrainingSettings) -> ModelSpec:
    """Return the model training makes of one: the same, as it changes values only.

    Raises `InputError` for a model whose logits are not those of its next token, layers to adapt that it has not or a
    rank they have not, and tasks that cannot be watched.
    """
    if not writes(spec.config):
        raise InputError(
            f"training learns the next token, and this model is {in_words(spec.config)}: it cannot be taught"
        )
    if settings.lora is not None:
        check_adapters(spec, settings.lora.targets, settings.lora.rank)
    if TEXT_TASK in settings.tasks:
        raise InputError(f"tasks: '{TEXT_TASK}' has no accuracy to watch; name tasks that are answered")
    check_tasks(settings.tasks)
    return spec


Settings = TypeVar("Settings", bound=TrainingSettings)


def rehearsed(settings: Settings) -> Settings:
    """Return the settings with eight steps of four short sequences, launched if they were: enough to see every part."""
    steps = {"tokens": 2_048, "batch_tokens": 256, "micro_batch": None}
    launch = rehearsed_launch(settings.launch) if settings.launch else None
    looks = {"held_out_rows": 4, "task_samples": 4, "task_chat_template": False, "evaluate_every": 0.5}
    tasks = tuple(DEMO_TASKS)[:1] if settings.tasks else ()  # offline, as the demo's texts that are read
    lora = settings.lora and settings.lora.model_copy(update={"rank": min(settings.lora.rank, 4)})
    return settings.model_copy(update={**steps, **looks, "tasks": tasks, "launch": launch, "lora": lora})
