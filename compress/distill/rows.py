"""Learning from whole rows at once, where something is compiled for it: forward KL and labels.

On a GPU that is triton's (`compress.distill.gpu_rows`), on a processor numba's (`compress.distill.cpu_rows`).

Shapes: N tokens, g of a group, V vocabulary, D hidden size.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from compress.distill.divergences import Divergence
from compress.distill.losses import forward_kl
from compress.distill.targets import Targets
from compress.train.fused import GroupJudge
from compress.train.projection import REFINED_ABOVE, Projection

ALIGNMENT = 8
"""Rows of half-precision gradients begin at multiples of 16 bytes, which a GPU's matrix products need to be fast."""

Array = np.ndarray[Any, np.dtype[Any]]
Layer = tuple[Array, Array, Array, float]
"""What compiled loops know of an output layer beside its products: hidden states ``[g, D]`` fp32, the output matrix as
stored ``[V, D]``, what a token's logits are less than their products ``[g]`` fp32, and above which probability logits
are computed again from these: 1 for none."""
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}


def has_kernel(divergence: Divergence, student: Projection, teacher: Projection) -> bool:
    """Return whether `KernelJudge` computes a divergence between such output layers.

    Triton is there beside PyTorch for CUDA, and reads fp32 products.
    """
    if not (isinstance(divergence, partial) and divergence.func is forward_kl.divergence):
        return False
    both = student, teacher
    if student.hidden.is_cuda:
        return all(each.product_dtype == torch.float32 for each in both) and _has_triton()
    return all(has_compiled_rows(each) for each in both)


def has_compiled_rows(layer: Projection) -> bool:
    """Return whether a processor's compiled loops read such an output layer: bf16 or fp32, and its matrix alone."""
    dtypes = {layer.hidden.dtype, layer.weight.dtype, _stored(layer).dtype}
    on_processor = layer.hidden.device.type == "cpu"
    return on_processor and dtypes <= _BITS.keys() and layer.bias is None and layer.softcap is None


def kernel_name(layer: Projection) -> str:
    """Return what the record calls the kernel that reads such an output layer."""
    return "triton" if layer.hidden.is_cuda else "compiled rows"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@dataclass(frozen=True)
class KernelJudge(GroupJudge):
    """``(1 − w) · T² · KL(teacher at T ‖ student at T) + w · CE`` of a group, w < 1."""

    student: Projection
    teacher: Projection
    teacher_product: Tensor
    """``[g, V]``, as `Projection.product` returns it."""
    group: slice
    """Which of both models' tokens."""
    targets: Tensor
    """``[g]``."""
    temperature: float
    label_weight: float

    def judge_group(self, product_gV: Tensor) -> tuple[Tensor, Tensor]:
        """See `GroupJudge`."""
        if product_gV.device.type == "cpu":
            return self._by_processor(product_gV), product_gV
        return self._by_gpu(product_gV)

    def _by_processor(self, product_gV: Tensor) -> Tensor:
        """Return the losses; gradients take the product's place."""
        from compress.distill.cpu_rows import kl_of_rows

        losses_g = torch.empty(len(product_gV))
        ours = bits_of(product_gV), _layer(self.student, self.group)
        theirs = bits_of(self.teacher_product), _layer(self.teacher, self.group)
        assert _are_ids(self.targets, product_gV)
        given = ours, theirs, _array(self.targets), _array(losses_g), self.temperature, self.label_weight
        over_rows(kl_of_rows, given, len(product_gV))
        return losses_g

    def _by_gpu(self, product_gV: Tensor) -> tuple[Tensor, Tensor]:
        from compress.distill.gpu_rows import kl_of_rows

        num_tokens, vocabulary = product_gV.shape
        stride = -(-vocabulary // ALIGNMENT) * ALIGNMENT
        slopes_gV = product_gV.new_empty(num_tokens, stride, dtype=self.student.hidden.dtype)[:, :vocabulary]
        losses_g = kl_of_rows(
            product_gV,
            self.teacher_product,
            self.targets.contiguous(),
            slopes_gV,
            biases=(self.student.bias, self.teacher.bias),
            softcaps=(self.student.softcap, self.teacher.softcap),
            temperature=self.temperature,
            label_weight=self.label_weight,
        )
        return losses_g, slopes_gV


@dataclass(frozen=True)
class SparseJudge(GroupJudge):
    """``(1 − w) · T² · D + w · CE`` of a group on a processor, D that of `compress.distill.sparse_kl`."""

    student: Projection
    group: slice
    """Which of its tokens."""
    targets: Targets
    """Those of the group; likely and sampled ids are each ascending."""
    labels: Tensor
    """``[g]``."""
    temperature: float
    label_weight: float

    def judge_group(self, product_gV: Tensor) -> tuple[Tensor, Tensor]:
        """See `GroupJudge`; gradients take the product's place."""
        from compress.distill.cpu_rows import sparse_kl_of_rows

        losses_g = torch.empty(len(product_gV))
        ours = bits_of(product_gV), _layer(self.student, self.group)
        theirs = self.targets
        assert _are_ids(self.labels, product_gV) and _are_ids(theirs.ids_NK, product_gV)
        sparse = *map(_array, (theirs.ids_NK, theirs.probs_NK, theirs.tail_N)), theirs.num_likely
        given = ours, sparse, _array(self.labels), _array(losses_g), self.temperature, self.label_weight
        over_rows(sparse_kl_of_rows, given, len(product_gV))
        return losses_g, product_gV


def bits_of(numbers: Tensor) -> Array:
    """Return bf16 or fp32 numbers as integers of their bits, in the same memory."""
    return _array(numbers.detach().view(_BITS[numbers.dtype]))


def over_rows(work: Any, given: tuple[Any, ...], num_rows: int) -> None:
    """Call a compiled function with where each thread's rows begin and end, after what it is given.

    What it finds must not depend on how many threads there are.
    """
    import numba

    ends = np.linspace(0, num_rows, torch.get_num_threads() + 1).astype(int).tolist()
    with ThreadPoolExecutor(len(ends) - 1) as threads:
        # Compiling keeps what its callers hold, here whole products, until garbage is collected: not this thread's.
        threads.submit(_compile, work, tuple(numba.typeof(each) for each in (*given, 0, 0))).result()
        list(threads.map(partial(work, *given), ends[:-1], ends[1:]))


def _compile(work: Any, types: tuple[Any, ...]) -> None:
    """Compile a function for types of arguments, or read what was compiled for them before.

    One process at a time: another could read code beside which the index does not belong yet.
    """
    if types in work.overloads:
        return
    folder = work.stats.cache_path
    # A full disk keeps code from being kept, not from being used.
    with suppress(OSError), FileLock(Path(folder) / "compiling.lock") if folder else nullcontext():
        work.compile(types)


def _are_ids(ids: Tensor, product_gV: Tensor) -> bool:
    """Return whether all are inside the vocabulary, beyond which compiled loops would read what is not theirs."""
    return not ids.numel() or (int(ids.min()) >= 0 and int(ids.max()) < product_gV.shape[1])


def _array(tensor: Tensor) -> Array:
    """Return a tensor as an array, in the same memory."""
    # `Tensor.numpy` would mark that memory as never to be freed early, which is what FSDP does with gathered weights.
    return np.from_dlpack(tensor.detach())


def _stored(projection: Projection) -> Tensor:
    return projection.weight if projection.stored is None else projection.stored


def _layer(projection: Projection, group: slice) -> Layer:
    hidden_gD, least = projection.hidden[group].float(), REFINED_ABOVE if projection.is_rounded else 1.0
    shift_g = torch.zeros(len(hidden_gD)) if projection.center is None else hidden_gD @ projection.center
    return _array(hidden_gD), bits_of(_stored(projection)), _array(shift_g), least
