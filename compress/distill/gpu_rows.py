"""The default loss of whole rows on a GPU: forward KL and labels, from two products, in two passes of one kernel.

A row's first pass finds what softmaxes are divided by and the divergence together, each lane of the program keeping
sums of its own relative to its own largest logit (Milakov and Gimelshein 2018, arXiv:1805.02867, Alg. 3), which meet
at the end. The second pass writes the gradient. So products are read twice, and nothing else of a row's size is.

Imports triton, which is there beside PyTorch for CUDA: see `compress.distill.rows`.

Shapes: g tokens of a group, V vocabulary.
"""

# What triton compiles has no types that Python knows.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: ANN001, ANN202

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, NUM_WARPS = 2048, 8
LOWEST = tl.constexpr(-1.0e15)
"""Below every logit, and finite: lanes that saw none are then weighed by 0 and not by NaN."""


@triton.jit
def _capped(logits, softcap):
    """``c · tanh(x / c)``, of exponentials alone: the error is some 10⁻⁷ of c."""
    return softcap * (1 - 2 / (tl.exp(2 * logits / softcap) + 1))


@triton.jit
def _logits(row, bias, ids, inside, softcap, HAS_BIAS: tl.constexpr, HAS_CAP: tl.constexpr):
    """Logits of some ids of a row's product, `LOWEST` beyond its end."""
    logits = tl.load(row + ids, mask=inside, other=0.0)
    if HAS_BIAS:
        logits += tl.load(bias + ids, mask=inside, other=0.0)
    if HAS_CAP:
        logits = _capped(logits, softcap)
    return tl.where(inside, logits, LOWEST)


@triton.jit
def _joined(tops, sums):
    """The log-normalizer of lanes' largest logits and their sums relative to them."""
    top = tl.max(tops, 0)
    return top + tl.log(tl.sum(sums * tl.exp(tops - top), 0))


@triton.jit
def _write_slopes(
    student,
    student_bias,
    teacher,
    teacher_bias,
    slopes,
    vocabulary,
    target,
    log_norm_q,
    log_norm_p,
    log_norm_1,
    student_cap,
    teacher_cap,
    temperature,
    label_weight,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HAS_STUDENT_CAP: tl.constexpr,
    HAS_TEACHER_CAP: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The second pass over a row: gradients in its product, from its normalizers."""
    lanes = tl.arange(0, BLOCK)
    kl_weight = (1 - label_weight) * temperature
    for start in range(0, vocabulary, BLOCK):
        ids = start + lanes
        inside = ids < vocabulary
        q = _logits(student, student_bias, ids, inside, student_cap, HAS_STUDENT_BIAS, HAS_STUDENT_CAP)
        p = _logits(teacher, teacher_bias, ids, inside, teacher_cap, HAS_TEACHER_BIAS, HAS_TEACHER_CAP)
        slope = kl_weight * (tl.exp(q / temperature - log_norm_q) - tl.exp(p / temperature - log_norm_p))
        if HAS_LABELS:
            slope += label_weight * (tl.exp(q - log_norm_1) - tl.where(ids == target, 1.0, 0.0))
        if HAS_STUDENT_CAP:
            slope = slope * (1 - (q / student_cap) * (q / student_cap))
        tl.store(slopes + ids, slope.to(slopes.dtype.element_ty), mask=inside)


# Still long, a third of it parameters: the first pass's seven running sums stay in registers between its start and end.
@triton.jit
def _rows(
    student,
    student_bias,
    teacher,
    teacher_bias,
    targets,
    losses,
    slopes,
    vocabulary,
    student_stride,
    teacher_stride,
    slopes_stride,
    student_cap,
    teacher_cap,
    temperature,
    label_weight,
    HAS_STUDENT_BIAS: tl.constexpr,
    HAS_TEACHER_BIAS: tl.constexpr,
    HAS_STUDENT_CAP: tl.constexpr,
    HAS_TEACHER_CAP: tl.constexpr,
    HAS_LABELS: tl.constexpr,
    IS_TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a row: see `kl_of_rows`."""
    token = tl.program_id(0).to(tl.int64)
    student += token * student_stride
    teacher += token * teacher_stride
    slopes += token * slopes_stride
    lanes = tl.arange(0, BLOCK)
    top_q = tl.full([BLOCK], LOWEST, tl.float32)
    top_p = tl.full([BLOCK], LOWEST, tl.float32)
    top_1 = tl.full([BLOCK], LOWEST, tl.float32)  # of the student at temperature 1, where that is another
    sum_q = tl.zeros([BLOCK], tl.float32)
    sum_p = tl.zeros([BLOCK], tl.float32)
    sum_1 = tl.zeros([BLOCK], tl.float32)
    sum_ratio = tl.zeros([BLOCK], tl.float32)  # Σ exp(teacher's) · (teacher's − student's)
    for start in range(0, vocabulary, BLOCK):
        ids = start + lanes
        inside = ids < vocabulary
        q = _logits(student, student_bias, ids, inside, student_cap, HAS_STUDENT_BIAS, HAS_STUDENT_CAP)
        p = _logits(teacher, teacher_bias, ids, inside, teacher_cap, HAS_TEACHER_BIAS, HAS_TEACHER_CAP)
        if IS_TEMPERED:
            if HAS_LABELS:
                new_1 = tl.maximum(top_1, q)
                sum_1 = sum_1 * tl.exp(top_1 - new_1) + tl.exp(q - new_1)
                top_1 = new_1
            q = q / temperature
            p = p / temperature
        new_q = tl.maximum(top_q, q)
        new_p = tl.maximum(top_p, p)
        weight = tl.exp(p - new_p)
        kept = tl.exp(top_p - new_p)
        sum_q = sum_q * tl.exp(top_q - new_q) + tl.exp(q - new_q)
        sum_p = sum_p * kept + weight
        sum_ratio = sum_ratio * kept + weight * (p - q)
        top_q = new_q
        top_p = new_p
    log_norm_q = _joined(top_q, sum_q)
    log_norm_p = _joined(top_p, sum_p)
    mean_ratio = tl.sum(sum_ratio * tl.exp(top_p - log_norm_p), 0)
    kl_weight = (1 - label_weight) * temperature
    loss = kl_weight * temperature * (mean_ratio - log_norm_p + log_norm_q)
    target = tl.load(targets + token)
    log_norm_1 = log_norm_q
    if HAS_LABELS:
        if IS_TEMPERED:
            log_norm_1 = _joined(top_1, sum_1)
        of_target = tl.load(student + target)
        if HAS_STUDENT_BIAS:
            of_target += tl.load(student_bias + target)
        if HAS_STUDENT_CAP:
            of_target = _capped(of_target, student_cap)
        loss += label_weight * (log_norm_1 - of_target)
    tl.store(losses + token, loss)
    _write_slopes(
        student, student_bias, teacher, teacher_bias, slopes, vocabulary, target, log_norm_q, log_norm_p, log_norm_1,
        student_cap, teacher_cap, temperature, label_weight, HAS_STUDENT_BIAS, HAS_TEACHER_BIAS, HAS_STUDENT_CAP,
        HAS_TEACHER_CAP, HAS_LABELS, BLOCK,
    )  # fmt: skip


def kl_of_rows(
    student_gV: Tensor,
    teacher_gV: Tensor,
    targets_g: Tensor,
    slopes_gV: Tensor,
    *,
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
    softcaps: tuple[float | None, float | None] = (None, None),
    temperature: float = 1.0,
    label_weight: float = 0.0,
) -> Tensor:
    """Return ``(1 − w) · T² · KL(teacher at T ‖ student at T) + w · CE`` of rows in nats, fp32 ``[g]``.

    Its gradients in the student's product are written to `slopes_gV`, of any floating dtype. Products are fp32 with
    adjacent ids; biases ``[V]`` fp32 and softcaps: the student's and the teacher's. w < 1.
    """
    (student_bias, teacher_bias), (student_cap, teacher_cap) = biases, softcaps
    for part in (student_gV, teacher_gV, slopes_gV):
        assert part.shape == student_gV.shape and part.stride(1) == 1
    assert student_gV.dtype == teacher_gV.dtype == torch.float32 and targets_g.is_contiguous()
    losses_g = torch.empty(len(student_gV), device=student_gV.device)
    with torch.cuda.device(student_gV.get_device()):
        _rows[(len(student_gV),)](
            student_gV,
            student_gV if student_bias is None else student_bias,
            teacher_gV,
            teacher_gV if teacher_bias is None else teacher_bias,
            targets_g,
            losses_g,
            slopes_gV,
            student_gV.shape[1],
            student_gV.stride(0),
            teacher_gV.stride(0),
            slopes_gV.stride(0),
            student_cap or 1.0,
            teacher_cap or 1.0,
            temperature,
            label_weight,
            HAS_STUDENT_BIAS=student_bias is not None,
            HAS_TEACHER_BIAS=teacher_bias is not None,
            HAS_STUDENT_CAP=student_cap is not None,
            HAS_TEACHER_CAP=teacher_cap is not None,
            HAS_LABELS=label_weight > 0,
            IS_TEMPERED=temperature != 1,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
    return losses_g
