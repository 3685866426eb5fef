"""Losses of whole rows on a processor, compiled: forward KL and labels from two models' products.

A row is read three times while it is in the cache: for its largest logit, for what its softmax is divided by, and for
loss and gradient, which takes the place of the student's product. Likely logits are put right in between
(`compress.train.projection` says why). Nothing else of a row's size is held.

A row is bits, int16 of bf16 logits or int32 of fp32 ones, so that one code reads both. Sums over a vocabulary are fp32
of a block's and fp64 of all blocks'. What is no number stays none: a loss of it must not look finite.

Compiled once, and kept beside this file or in the user's cache for as long as this file is as it was: all that is
compiled together stands here. Loops over a block's slice become vectors; over the whole row they do not.

Shapes: g tokens of a group, V vocabulary, K blocks of it, b ids of one, M likely ids, D hidden size.
"""

# What numba compiles has no types that mypy knows.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-arg, assignment"
# ruff: noqa: ANN001, ANN201, ANN202

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from compress.train.projection import REFINED_ABOVE

F4, I4 = np.float32, np.int32
FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, so that they are vectors'; but NaN and ∞ as they are."""
BLOCK = 128
"""Of ids that are summed in fp32 and searched together."""
MOST_LIKELY = math.ceil(1 / REFINED_ABOVE)
"""Of ids of a row can be above `REFINED_ABOVE`."""
LOG2_E = F4(1.4426950408889634)
LN_2_HIGH, LN_2_LOW = F4(0.693359375), F4(-2.12194440e-4)
"""ln 2 in two parts: multiples of the first are exact."""
LOWEST = F4(-87.0)
"""Below it an exponential is as good as zero, and fp32 has none."""
LOG_REFINED_ABOVE = math.log(REFINED_ABOVE)
TINY = float(np.finfo(F4).tiny)


def kept(function):
    """Return a function that is compiled when it is first called, and kept on disk where there is a place for it."""
    try:
        return njit(function, fastmath=FAST, nogil=True, cache=True)
    except RuntimeError:  # neither this folder nor the user's cache can be written to
        return njit(function, fastmath=FAST, nogil=True)


@intrinsic
def float_of(typing_context, bits):
    """Return the fp32 number of some int32 bits."""

    def generate(context, builder, signature, given):
        return builder.bitcast(given[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def bits_of(typing_context, number):
    """Return the int32 bits of an fp32 number."""

    def generate(context, builder, signature, given):
        return builder.bitcast(given[0], ir.IntType(32))

    return types.int32(types.float32), generate


def wide_bits(bits):
    """Return the fp32 bits of a number of a row."""


@overload(wide_bits, inline="always")
def _wide_bits(bits):
    if bits == types.int16:
        return lambda bits: I4(bits) << I4(16)
    return lambda bits: bits


def put(row, place, number):
    """Write a number into a row, rounded to nearest, ties to even."""


@overload(put, inline="always")
def _put(row, place, number):
    if row.dtype == types.int16:

        def rounded(row, place, number):
            bits = bits_of(F4(number))
            row[place] = np.int16((bits + I4(0x7FFF) + ((bits >> I4(16)) & I4(1))) >> I4(16))

        return rounded

    def as_it_is(row, place, number):
        row[place] = bits_of(F4(number))

    return as_it_is


@njit(inline="always")
def number(bits):
    """Return a number of a row in fp32."""
    return float_of(wide_bits(bits))


@njit(inline="always")
def order(bits):
    """Return fp32 bits as integers of the same order, NaN above all; and back."""
    return bits ^ ((bits >> I4(31)) & I4(0x7FFFFFFF))


@njit(inline="always", fastmath=FAST)
def exp(x):
    """Return eˣ in fp32 to 4e-7 of it, for x up to 88: Cephes' ``expf``, which compiles to vectors."""
    x = LOWEST if x < LOWEST else x
    power = np.floor(x * LOG2_E + F4(0.5))
    rest = x - power * LN_2_HIGH - power * LN_2_LOW
    series = F4(1.9875691500e-4)
    series = series * rest + F4(1.3981999507e-3)
    series = series * rest + F4(8.3334519073e-3)
    series = series * rest + F4(4.1665795894e-2)
    series = series * rest + F4(1.6666665459e-1)
    series = series * rest + F4(5.0000001201e-1)
    series = series * rest * rest + rest + F4(1.0)
    return series * float_of((I4(power) + I4(127)) << I4(23))


@njit(fastmath=FAST)
def find_tops(row_V, tops_K):
    """Write each block's largest logit as `order` of its bits; return the row's as a number."""
    top = I4(-0x80000000)
    for block in range(len(tops_K)):
        highest = I4(-0x80000000)
        row_b = row_V[block * BLOCK : (block + 1) * BLOCK]
        for v in range(len(row_b)):
            highest = max(highest, order(wide_bits(row_b[v])))
        tops_K[block] = highest
        top = max(top, highest)
    return float_of(order(top))


@njit(fastmath=FAST)
def sum_of_exps(row_V, top, rate):
    """Return ``Σ exp(rate · (logit − top))``."""
    total = 0.0
    for start in range(0, len(row_V), BLOCK):
        of_block = F4(0.0)
        row_b = row_V[start : start + BLOCK]
        for v in range(len(row_b)):
            of_block += exp(rate * (number(row_b[v]) - top))
        total += of_block
    return total


@njit(fastmath=FAST)
def dot(left_D, right_D):
    """Return the inner product of fp32 numbers and a row's."""
    total = F4(0.0)
    for d in range(len(left_D)):
        total += left_D[d] * number(right_D[d])
    return total


@njit
def find_likely(row_V, tops_K, bound, ids_M):
    """Write the ids of all logits above a bound, ascending; return how many, `len(ids_M)` at most."""
    count = 0
    for block in range(len(tops_K)):
        if float_of(order(tops_K[block])) > bound:
            for v in range(block * BLOCK, min(len(row_V), (block + 1) * BLOCK)):
                if number(row_V[v]) > bound and count < len(ids_M):
                    ids_M[count] = v
                    count += 1
    return count


@njit(fastmath=FAST)
def normalize(row_V, rates, layer, token, tops_K, apart, norms, ids_M, exact_M):
    """Find what a row's softmaxes are divided by and its likely logits, these exactly; return how many those are.

    rates: 1/T and 1. layer: see `compress.distill.rows`. apart: ascending ids. Written are ``log Σ exp(rate · logit)``
    of each rate and, at the first, the probability of all ids that are not apart; the ids of what is likely at one of
    the rates, ascending, and their logits.
    """
    hidden_ND, stored_VD, shift_N, refines = layer
    top = find_tops(row_V, tops_K)
    of_apart = np.empty(len(apart), F4)
    for k in range(len(apart)):
        of_apart[k] = number(row_V[apart[k]])
    # A small rest is summed by itself: as the difference of two sums it would be their rounding.
    for v in apart:
        put(row_V, v, F4(-np.inf))
    rest = sum_of_exps(row_V, top, rates[0])
    sums = (rest, rest if rates[0] == rates[1] else sum_of_exps(row_V, top, rates[1]))
    for k in range(len(apart)):
        put(row_V, apart[k], of_apart[k])
        sums = plus(sums, of_apart[k], top, rates)
    count, place = 0, 0
    if refines:
        bounds = [(math.log(sums[k]) + LOG_REFINED_ABOVE) / rates[k] for k in range(2)]
        count = find_likely(row_V, tops_K, top + F4(min(bounds[0], bounds[1])), ids_M)
    for m in range(count):
        exact_M[m] = dot(hidden_ND[token], stored_VD[ids_M[m]]) - shift_N[token]
        less, more = plus((0.0, 0.0), number(row_V[ids_M[m]]), top, rates), plus(sums, exact_M[m], top, rates)
        sums = more[0] - less[0], more[1] - less[1]
        while place < len(apart) and apart[place] < ids_M[m]:
            place += 1
        if place == len(apart) or apart[place] != ids_M[m]:
            rest += plus((0.0, 0.0), exact_M[m], top, rates)[0] - less[0]
    for k in range(2):
        norms[k] = float(rates[k] * top) + math.log(sums[k])
    norms[2] = rest / sums[0]
    return count


@njit(inline="always", fastmath=FAST)
def plus(sums, logit, top, rates):
    """Return the sums of exponentials at both rates with a logit's added."""
    first = float(exp(rates[0] * (logit - top)))
    return sums[0] + first, sums[1] + (
        first if rates[0] == rates[1] else float(exp(rates[1] * (logit - top)))
    )


@kept
def kl_of_rows(student, teacher, targets_g, losses_g, temperature, label_weight, first, last):
    """Write the losses of rows `first` to `last`, and their gradients over the student's product.

    ``(1 − w) · T² · KL(teacher at T ‖ student at T) + w · CE`` in nats. student, teacher: see `compress.distill.rows`.
    """
    (q_gV, of_q), (p_gV, of_p) = student, teacher
    hidden_gD, stored_VD, shift_g, refines = of_q
    vocabulary = q_gV.shape[1]
    rates = (F4(1 / temperature), F4(1))
    kl_weight, label_weight = F4((1 - label_weight) * temperature), F4(label_weight)
    tops_K = np.empty(-(-vocabulary // BLOCK), np.int32)
    norms_q, norms_p, nothing = np.empty(3), np.empty(3), np.empty(0, np.int64)
    ids_q, ids_p = np.empty(MOST_LIKELY + 1, np.int64), np.empty(MOST_LIKELY + 1, np.int64)
    exact_q, exact_p = np.empty(MOST_LIKELY, F4), np.empty(MOST_LIKELY, F4)
    changed, slopes = np.empty(2 * MOST_LIKELY + 1, np.int64), np.empty(2 * MOST_LIKELY + 1, F4)
    for token in range(first, last):
        q_V, p_V, target = q_gV[token], p_gV[token], targets_g[token]
        num_q = normalize(q_V, rates, of_q, token, tops_K, nothing, norms_q, ids_q, exact_q)
        num_p = normalize(p_V, rates, of_p, token, tops_K, nothing, norms_p, ids_p, exact_p)
        ids_q[num_q] = ids_p[num_p] = vocabulary
        log_norms = F4(norms_q[0]), F4(norms_p[0]), F4(norms_q[1])
        # What is put right afterwards: the likely ids of both models, and the target.
        mean_ratio, count, next_q, next_p = 0.0, 0, 0, 0
        of_target = number(q_V[target])
        if refines and label_weight > 0:
            of_target = dot(hidden_gD[token], stored_VD[target]) - shift_g[token]
        wanted = target if label_weight > 0 else vocabulary
        while True:
            v = min(ids_q[next_q], ids_p[next_p], wanted)
            if v == vocabulary:
                break
            q, p = number(q_V[v]), number(p_V[v])
            weight = exp(rates[0] * p - log_norms[1])
            mean_ratio -= float(weight * (p - q))
            if v == ids_q[next_q]:
                q, next_q = exact_q[next_q], next_q + 1
            if v == ids_p[next_p]:
                p, next_p = exact_p[next_p], next_p + 1
                weight = exp(rates[0] * p - log_norms[1])
            of_labels = F4(0)
            if v == wanted:
                q, of_labels, wanted = of_target, F4(1), vocabulary
            mean_ratio += float(weight * (p - q))
            slope = kl_weight * (exp(rates[0] * q - log_norms[0]) - weight)
            if label_weight > 0:
                slope += label_weight * (exp(q - log_norms[2]) - of_labels)
            changed[count], slopes[count] = v, slope
            count += 1
        mean_ratio += write_slopes(q_V, p_V, rates, log_norms, kl_weight, label_weight)
        for m in range(count):
            put(q_V, changed[m], slopes[m])
        # All weights share the rounding of their normalizer.
        mean_ratio *= math.exp(float(log_norms[1]) - norms_p[0])
        kl = mean_ratio / temperature - norms_p[0] + norms_q[0]
        losses_g[token] = kl_weight * temperature * kl + label_weight * (norms_q[1] - of_target)


@njit(fastmath=FAST)
def write_slopes(q_V, p_V, rates, log_norms, kl_weight, label_weight):
    """Write a row's gradients over the student's logits; return the mean of what these were below the teacher's."""
    mean_ratio = 0.0
    for start in range(0, len(q_V), BLOCK):
        of_block = F4(0)
        q_b, p_b = q_V[start : start + BLOCK], p_V[start : start + BLOCK]  # it takes these for vectors
        for v in range(len(q_b)):
            q, p = number(q_b[v]), number(p_b[v])
            weight = exp(rates[0] * p - log_norms[1])
            of_block += weight * (p - q)
            slope = kl_weight * (exp(rates[0] * q - log_norms[0]) - weight)
            if label_weight > 0:
                slope += label_weight * exp(q - log_norms[2])
            put(q_b, v, slope)
        mean_ratio += of_block
    return mean_ratio


@kept
def sparse_kl_of_rows(student, targets, labels_g, losses_g, temperature, label_weight, first, last):
    """Write the losses of rows `first` to `last`, and their gradients over the student's product.

    ``(1 − w) · T² · D + w · CE`` in nats, D as in `compress.distill.sparse_kl`. targets: ids ``[g, K]``, first the
    likely and then the sampled ones, each ascending; their probabilities; tails ``[g]``; how many are likely.
    """
    (q_gV, layer), (ids_gK, probs_gK, tail_g, num_likely) = student, targets
    hidden_gD, stored_VD, shift_g, refines = layer
    vocabulary, num_ids = q_gV.shape[1], ids_gK.shape[1]
    rates, weights = (F4(1 / temperature), F4(1)), (F4((1 - label_weight) * temperature), F4(label_weight))
    tops_K, norms = np.empty(-(-vocabulary // BLOCK), np.int32), np.empty(3)
    ids_M, exact_M = np.empty(MOST_LIKELY + 1, np.int64), np.empty(MOST_LIKELY, F4)
    changed, slopes = np.empty(MOST_LIKELY + num_ids + 1, np.int64), np.empty(MOST_LIKELY + num_ids + 1, F4)
    logits_K, above_K = np.empty(num_ids, F4), np.zeros(num_ids)
    for token in range(first, last):
        q_V, ids_K, probs_K, label = q_gV[token], ids_gK[token], probs_gK[token], labels_g[token]
        likely_K, sampled_K = ids_K[:num_likely], ids_K[num_likely:]
        count = normalize(q_V, rates, layer, token, tops_K, likely_K, norms, ids_M, exact_M)
        ids_M[count] = vocabulary
        of_label = number(q_V[label])
        if refines and weights[1] > 0:
            of_label = dot(hidden_gD[token], stored_VD[label]) - shift_g[token]
        find_logits(q_V, likely_K, ids_M, exact_M, logits_K)
        find_logits(q_V, sampled_K, ids_M, exact_M, logits_K[num_likely:])
        divergence, others = compare(
            logits_K, probs_K, float(tail_g[token]), num_likely, norms, rates[0], above_K
        )
        log_norms = F4(norms[0]), F4(norms[1])
        num_changed, next_m, next_k, next_s = 0, 0, 0, num_likely
        wanted = label if weights[1] > 0 else vocabulary
        while True:
            v = min(ids_M[next_m], wanted)
            v = min(v, ids_K[next_k]) if next_k < num_likely else v
            v = min(v, ids_K[next_s]) if next_s < num_ids else v
            if v == vocabulary:
                break
            q = number(q_V[v])
            if v == ids_M[next_m]:
                q, next_m = exact_M[next_m], next_m + 1
            of_labels = F4(0)
            if v == wanted:
                q, of_labels, wanted = of_label, F4(1), vocabulary
            slope = exp(rates[0] * q - log_norms[0])
            if next_k < num_likely and v == ids_K[next_k]:
                slope, next_k = slope - probs_K[next_k], next_k + 1
            else:
                slope *= others
            while next_s < num_ids and v == ids_K[next_s]:
                slope, next_s = slope + F4(above_K[next_s]), next_s + 1
            slope *= weights[0]
            if weights[1] > 0:
                slope += weights[1] * (exp(q - log_norms[1]) - of_labels)
            changed[num_changed], slopes[num_changed] = v, slope
            num_changed += 1
        write_student_slopes(q_V, rates, log_norms, weights[0] * others, weights[1])
        for m in range(num_changed):
            put(q_V, changed[m], slopes[m])
        losses_g[token] = weights[0] * temperature * divergence + weights[1] * (norms[1] - of_label)


@njit
def find_logits(row_V, ids_K, ids_M, exact_M, logits_K):
    """Write the logits of ascending ids: exact ones where there are."""
    place = 0
    for k in range(len(ids_K)):
        while ids_M[place] < ids_K[k]:
            place += 1
        logits_K[k] = exact_M[place] if ids_M[place] == ids_K[k] else number(row_V[ids_K[k]])


@njit
def compare(logits_K, probs_K, tail, num_likely, norms, rate, above_K):
    """Return a sparse target's divergence, and what its gradient in an id that is not named is of the probability.

    Written is what the gradient has beside that in each sampled id.
    """
    rest, num_samples = max(norms[2], TINY), len(probs_K) - num_likely
    divergence, mean_above = x_log_x(tail) - tail * math.log(rest), 0.0
    for k in range(len(probs_K)):
        prob, log_q = float(probs_K[k]), rate * logits_K[k] - norms[0]
        if k < num_likely:
            divergence += x_log_x(prob) - prob * log_q
            continue
        above_K[k] = 0.0
        if prob > 0:  # where the likely ids are all there is, what was "sampled" is none of the rest
            log_ratio = log_q - math.log(rest) - (math.log(prob) - math.log(tail))
            above = math.expm1(log_ratio)
            divergence += tail * (above - log_ratio) / num_samples
            mean_above += above / num_samples
            above_K[k] = above * tail / num_samples
    return divergence, F4(1 - tail / rest * (1 + mean_above))


@njit
def x_log_x(x):
    """Return ``x · log x``, 0 at 0."""
    return x * math.log(x) if x > 0 else 0.0


@njit(fastmath=FAST)
def write_student_slopes(q_V, rates, log_norms, weight, label_weight):
    """Write a row's gradients, shares of the student's probabilities at T and at 1, over its logits."""
    for start in range(0, len(q_V), BLOCK):
        q_b = q_V[start : start + BLOCK]
        for v in range(len(q_b)):
            q = number(q_b[v])
            slope = weight * exp(rates[0] * q - log_norms[0])
            if label_weight > 0:
                slope += label_weight * exp(q - log_norms[1])
            put(q_b, v, slope)
