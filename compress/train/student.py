"""From a parent checkpoint to a trained one: what `train` and `distill` share around the loop."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from compress.data.tokens import PackedTokens, given_template
from compress.errors import DoesNotFit, InputError
from compress.models.checkpoint import DTYPES, load_tokenizer, save_model
from compress.models.pruning_map import copy_map
from compress.models.spec import read_spec, stored_dtype
from compress.plugins import Context
from compress.records import Artifact, ModelSpec, Outcome
from compress.train.chat_template import hand_on_template
from compress.train.checkpoint import Abandoned
from compress.train.cost import account_in_words, num_trained
from compress.train.distributed import Team, load_at_leader, whole_weights, without_weights
from compress.train.loop import fit
from compress.train.memory_account import Teaching, account
from compress.train.settings import Lora, TrainingSettings
from compress.train.tasks import WatchedTasks
from compress.train.watch import Watch

LITTLE = 0.1
"""The share of the tokens below which it is said how few are learned."""


def train_student(
    parent: Artifact,
    settings: TrainingSettings,
    context: Context,
    objective: Callable[[PreTrainedModel], nn.Module],
    teaching: Teaching | None = None,
) -> Outcome:
    """Train the parent's model by the objective built around it; write it in the parent's dtypes.

    `teaching`: the teacher that runs beside it. Raises `DoesNotFit`, with the account of memory, where a GPU is too
    small for a single sequence.
    """
    student = load_at_leader(parent.path, dtype=torch.float32)
    merge = _add_adapters(student, settings.lora, context) if settings.lora else None
    # What gets sharded stays so: in the end a copy takes the whole.
    unsharded = without_weights(student, merge) if Team.current().is_launched else (student, merge)
    data = PackedTokens.open(context.inputs["data"].path)
    _tell_if_little(data, settings, context)
    watch = _watch(parent, settings, context)
    spec = read_spec(parent.path)
    held = partial(account, spec, settings, num_trained(spec, settings), teaching)
    try:
        facts = fit(objective(student), student, data, settings, context, held, watch)
    except DoesNotFit as error:
        told = account_in_words(spec, settings, teaching, data.sequence_length)
        raise DoesNotFit(f"{error}. {told}") from error
    if Team.current().is_launched:
        weights = whole_weights(student)
        if not Team.current().leads:
            return Outcome()
        student, merge = unsharded
        student.load_state_dict(weights, assign=True)
        student.tie_weights()
        del weights  # lest they stay beside what they are stored as
    if merge:
        merge()
    _store_like(spec, student.to("cpu"))
    save_model(student, context.folder, like=parent.path)
    hand_on_template(context.inputs["data"].path, parent.path, context)
    copy_map(parent.path, context.folder)
    return Outcome(spec=read_spec(context.folder), facts=facts)


def _tell_if_little(data: PackedTokens, settings: TrainingSettings, context: Context) -> None:
    share = data.learned_share
    if share < LITTLE:
        context.warn(
            f"of '{settings.data}' only {100 * share:.1f} % of the tokens are learned, about "
            f"{share * settings.tokens:,.0f} of {settings.tokens:,}: the rest is only read, as questions are. Longer "
            "answers or shorter questions teach more for the same work"
        )


def _add_adapters(student: PreTrainedModel, settings: Lora, context: Context) -> Callable[[], None]:
    """Put adapters into the student; return what merges them."""
    # peft takes a second to import: only where it is asked for.
    from compress.train.lora import add_adapters, merge, num_in_experts

    experts = num_in_experts(student)
    if experts and settings.targets == "all-linear":
        context.warn(
            f"lora: the {experts:,} weights of fused experts are in no linear layer and stay as they are; "
            "only the other layers are trained"
        )
    return partial(merge, add_adapters(student, settings, context.seed))


def _watch(parent: Artifact, settings: TrainingSettings, context: Context) -> Watch | None:
    """Return what looks at held-out data and tasks. Raises `InputError` where that is the data learned from."""
    if settings.held_out is None:
        return None
    held_out = context.inputs["held_out"]
    if held_out.key == context.inputs["data"].key:
        raise InputError(
            f"held_out: '{settings.held_out}' and '{settings.data}' are the same rows; evaluate on others"
        )
    tasks = None
    if settings.tasks:
        tokenizer, folder = load_tokenizer(parent.path), context.partial / "tasks"
        if template := given_template(context.inputs["data"].path):
            tokenizer.chat_template = template
        if settings.task_chat_template and not tokenizer.chat_template:
            raise InputError(
                "task_chat_template: neither the model's tokenizer nor the data have a chat template to ask tasks by"
            )
        tasks = Team.current().leader_first(
            lambda: WatchedTasks(
                settings.tasks,
                settings.task_samples,
                tokenizer,
                folder,
                on_progress=lambda: _heed(context),
                as_chat=settings.task_chat_template,
            )
        )
    return Watch(PackedTokens.open(held_out.path), settings, context, tasks)


def _heed(context: Context) -> None:
    """Give an evaluation up where a stop is asked for: what was learned is kept first. A team stops between steps."""
    if not Team.current().is_launched and context.stopping:
        raise Abandoned


def _store_like(spec: ModelSpec, student: PreTrainedModel) -> None:
    usual = stored_dtype(spec)
    for name, parameter in student.named_parameters():
        stored = spec.tensors.get(name)
        parameter.data = parameter.data.to(DTYPES[stored.dtype if stored else usual])
