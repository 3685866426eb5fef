"""How a training fits into the memory there is: sizes tried before the first step, smaller ones when it runs out."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from transformers import PreTrainedModel

from compress.data.batch import Batch
from compress.errors import DoesNotFit, InputError, is_out_of_memory
from compress.models.determinism import has_no_deterministic
from compress.train.memory_account import MOMENT_BYTES
from compress.train.numerics import Numerics
from compress.train.schedule import Schedule
from compress.train.settings import TrainingSettings

Fits = Callable[[int, bool], bool]
"""Whether so many sequences at once fit, with recomputed activations or without."""

MOST_TOKENS = 65_536
"""More tokens at once make no GPU faster."""
FEW_TOKENS = 2_048
"""Where not even these fit, activations are recomputed: smaller products would leave a GPU idle for longer."""
SHARE = 0.9
"""Of a GPU's memory; the rest is lost between blocks, and documents differ."""


def fitted(
    numerics: Numerics, settings: TrainingSettings, schedule: Schedule, fits: Fits, can_recompute: bool = True
) -> Numerics:
    """Return the numerics with the largest micro-batch that fits, and with recomputing where little would.

    Raises `DoesNotFit` where not even one sequence does, with recomputed activations unless they are to be kept.
    """
    fits = cache(fits)
    length = schedule.sequence_length
    recompute = settings.checkpoint_activations
    if recompute == "auto":
        recompute = can_recompute and not fits(
            settings.micro_batch or _within(FEW_TOKENS, length, schedule), False
        )
    most = min(settings.micro_batch or _within(MOST_TOKENS, length, schedule), schedule.batch_sequences)
    # A size that is asked for is taken where the smallest fits: it gives way when memory runs out.
    num_fitting = largest(lambda size: fits(size, recompute), 1 if settings.micro_batch else most)
    if num_fitting == 0:
        raise DoesNotFit(
            f"not even one sequence of {length:,} tokens fits beside weights, gradients and optimizer"
            + (", with recomputed activations" if recompute else "")
        )
    micro_batch = most if settings.micro_batch else num_fitting
    return numerics.model_copy(update={"micro_batch": micro_batch, "checkpoint_activations": recompute})


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest of 1, 2, 4, … and `most` that fits, trying from below; 0 where none does."""
    if not fits(1):
        return 0
    size = 1
    while size < most and fits(larger := min(2 * size, most)):
        size = larger
    return size


def tried_on(
    objective: nn.Module,
    student: PreTrainedModel,
    read: Callable[[int], Batch],
    numerics: Numerics,
    optimizer: str = "adamw",
) -> Fits:
    """Return a trial of a size on the GPU that objective and student are on.

    `read` gives as many rows as training reads them: an objective may know nothing of others, or of other marks.
    """
    moments = moment_bytes(student, optimizer)
    available = SHARE * (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())

    def fits(size: int, recompute: bool) -> bool:
        nonlocal numerics
        recompute_activations(student, recompute)
        batch = read(size)
        torch.cuda.reset_peak_memory_stats()
        try:
            with torch.random.fork_rng([torch.cuda.current_device()]):
                for _ in range(2):  # the second time beside the gradients of the first, as in a long batch
                    with numerics.exact():
                        with numerics.autocast():
                            loss, _ = objective(batch.to(numerics.device))
                        loss.backward()
                    del loss
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return False
            if not isinstance(error, RuntimeError) or not has_no_deterministic(error):
                raise
            numerics = numerics.without_one_order(error)
            return fits(size, recompute)
        finally:
            student.zero_grad(set_to_none=True)
        return bool(torch.cuda.max_memory_allocated() + moments <= available)

    return fits


def moment_bytes(student: nn.Module, optimizer: str) -> int:
    """Return what an optimizer will keep of a model's trained parameters: it is not there yet when sizes are tried."""
    looked_up = {id(m.weight) for m in student.modules() if isinstance(m, nn.Embedding)}
    apart = looked_up if optimizer == "adamw_8bit" else set()
    each = {True: MOMENT_BYTES["adamw"], False: MOMENT_BYTES[optimizer]}
    return round(sum(each[id(p) in apart] * p.numel() for p in student.parameters() if p.requires_grad))


def recompute_activations(student: PreTrainedModel, recompute: bool) -> None:
    """Let the student keep its activations for the backward pass, or only each layer's input.

    Recomputed they are the same numbers: dropout draws again what it drew (Chen et al. 2016, arXiv:1604.06174). Raises
    `InputError` for a model that cannot.
    """
    if not student.supports_gradient_checkpointing:
        if recompute:
            raise InputError(
                f"checkpoint_activations: a model of type '{student.config.model_type}' cannot recompute its "
                "activations. Allowed: auto, false"
            )
    elif recompute:
        student.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        student.activation_checkpointing_disable()


def giving_way(numerics: Numerics, settings: TrainingSettings, can_recompute: bool) -> Numerics | None:
    """Return what needs less memory: half the sequences at once, then recomputed activations; `None` beyond that."""
    if numerics.micro_batch > 1:
        less: dict[str, object] = {"micro_batch": numerics.micro_batch // 2}
        said = f"micro_batch {numerics.micro_batch} became {numerics.micro_batch // 2}"
    elif settings.checkpoint_activations == "auto" and can_recompute and not numerics.checkpoint_activations:
        less, said = {"checkpoint_activations": True}, "activations are recomputed"
    else:
        return None
    return numerics.model_copy(update={**less, "gave_way": (*numerics.gave_way, said)})


def _within(tokens: int, sequence_length: int, schedule: Schedule) -> int:
    return min(max(1, tokens // sequence_length), schedule.batch_sequences)
