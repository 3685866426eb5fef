"""Losses of whole rows on a processor, compiled: forward KL and labels, of a teacher's products or sparse targets.

A row is read three times while it is in the cache: for its largest logit, for what its softmax is divided by, and for
loss and gradient, which takes the place of the student's product. Likely logits are put right in between
(`compress.train.projection` says why). Nothing else of a row's size is held.

A row is bits, int16 of bf16 logits or int32 of fp32 ones, so that one code reads both. Logits are taken less the row's
largest, so that exponents are small and exact. Sums over a vocabulary are fp32 of a block's and fp64 of all blocks'.
What is no number stays none: a loss of it must not look finite.

Machine code is kept on disk for as long as this file is as it was: numba looks at no other. So all that is compiled
together stands here, long as it is, and what is defined elsewhere is an argument. Loops over a block's slice by index
become vectors; other loops do not.

Shapes: g tokens of a group, V vocabulary, C blocks of it, b ids of one, M likely ids, K ids of a sparse target,
D hidden size.
"""

# What numba compiles has no types that mypy knows.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-arg, assignment"
# ruff: noqa: ANN001, ANN201, ANN202

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

F4, F8, I4 = np.float32, np.float64, np.int32
FAST = {"reassoc", "contract", "arcp", "nsz"}
"""Sums in any order, so that they are vectors'; but NaN and ∞ as they are."""
BLOCK = 128
"""How many ids are summed in fp32 and searched together."""
LOG2_E = F4(1.4426950408889634)
LN_2_HIGH, LN_2_LOW = F4(0.693359375), F4(-2.12194440e-4)
"""ln 2 in two parts: multiples of the first are exact."""
LOWEST = F4(-87.0)
"""Below it the bits of an exponent would run over; exponentials there are as good as zero."""
TINY = F8(np.finfo(F4).tiny)


def compiled(function):
    """Return a function that is compiled when it is first needed, and kept on disk where there is a place for it."""
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


def write_rounded(row, place, value):
    """Write a number into a row, rounded to nearest, ties to even."""


@overload(write_rounded, inline="always")
def _write_rounded(row, place, value):
    if row.dtype == types.int16:

        def rounded(row, place, value):
            bits = bits_of(F4(value))
            row[place] = np.int16((bits + I4(0x7FFF) + ((bits >> I4(16)) & I4(1))) >> I4(16))

        return rounded

    def as_it_is(row, place, value):
        row[place] = bits_of(F4(value))

    return as_it_is


@njit(inline="always")
def number(bits):
    """Return a number of a row in fp32."""
    return float_of(wide_bits(bits))


@njit(inline="always")
def ordered(bits):
    """Return fp32 bits as integers of the same order as the numbers; and back."""
    return bits ^ ((bits >> I4(31)) & I4(0x7FFFFFFF))


@njit(inline="always", fastmath=FAST)
def exp(x):
    """Return eˣ in fp32 to 4e-7 of it, for x from −87 to 88: Cephes' ``expf``, which compiles to vectors."""
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
def find_tops(row_V, tops_C):
    """Write each block's largest logit as `ordered` of its bits; return the row's as a number."""
    top = I4(-0x80000000)
    for block in range(len(tops_C)):
        highest = I4(-0x80000000)
        row_b = row_V[block * BLOCK : (block + 1) * BLOCK]
        for v in range(len(row_b)):
            highest = max(highest, ordered(wide_bits(row_b[v])))
        tops_C[block] = highest
        top = max(top, highest)
    return float_of(ordered(top))


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
def find_likely(row_V, tops_C, bound, ids_M):
    """Write the ids of all logits above a bound, ascending; return how many, `len(ids_M)` at most."""
    count = 0
    for block in range(len(tops_C)):
        if float_of(ordered(tops_C[block])) > bound:
            for v in range(block * BLOCK, min(len(row_V), (block + 1) * BLOCK)):
                if number(row_V[v]) > bound and count < len(ids_M):
                    ids_M[count] = v
                    count += 1
    return count


@njit
def room_for_likely(layer):
    """Return how many ids of a row can have a probability above the layer's bound."""
    return int(1 / layer[3]) + 1


@njit(fastmath=FAST)
def exact_logit(layer, token, v):
    """Return a logit in fp32, from the output matrix as it is stored."""
    hidden_gD, stored_VD, shift_g, _ = layer
    return dot(hidden_gD[token], stored_VD[v]) - shift_g[token]


@njit(fastmath=FAST)
def normalize(row_V, rates, layer, token, tops_C, apart, ids_M, exact_M):
    """Find what a row's softmaxes are divided by and its likely logits, these exactly.

    rates: 1/T and 1. layer: see `compress.distill.rows`. apart: ascending ids. Returned are the largest logit,
    ``log Σ exp(rate · (logit − largest))`` of both rates, at the first of them the probability of all ids that are not
    apart, and how many logits are likely at one of the rates. Their ids, ascending, are written, and they.
    """
    least = layer[3]
    top = find_tops(row_V, tops_C)
    of_apart = np.empty(len(apart), F4)
    for k in range(len(apart)):
        of_apart[k] = number(row_V[apart[k]])
    # A small rest is summed by itself: as the difference of two sums it would be their rounding.
    for v in apart:
        write_rounded(row_V, v, F4(-np.inf))
    rest = sum_of_exps(row_V, top, rates[0])
    sums = (rest, rest if rates[0] == rates[1] else sum_of_exps(row_V, top, rates[1]))
    for k in range(len(apart)):
        write_rounded(row_V, apart[k], of_apart[k])
        sums = plus_exps(sums, of_apart[k] - top, rates)
    count, place = 0, 0
    if least < 1:
        bounds = [(math.log(sums[k]) + math.log(least)) / rates[k] for k in range(2)]
        count = find_likely(row_V, tops_C, top + F4(min(bounds[0], bounds[1])), ids_M[: len(exact_M)])
    for m in range(count):
        exact_M[m] = exact_logit(layer, token, ids_M[m])
        less = plus_exps((0.0, 0.0), number(row_V[ids_M[m]]) - top, rates)
        more = plus_exps((0.0, 0.0), exact_M[m] - top, rates)
        sums = sums[0] + (more[0] - less[0]), sums[1] + (more[1] - less[1])
        while place < len(apart) and apart[place] < ids_M[m]:
            place += 1
        if place == len(apart) or apart[place] != ids_M[m]:
            rest += more[0] - less[0]
    return top, math.log(sums[0]), math.log(sums[1]), rest / sums[0], count


@njit(inline="always", fastmath=FAST)
def plus_exps(sums, logit, rates):
    """Return sums of exponentials at both rates with a logit's added."""
    first = F8(exp(rates[0] * logit))
    return sums[0] + first, sums[1] + (first if rates[0] == rates[1] else F8(exp(rates[1] * logit)))


@compiled
def kl_of_rows(student, teacher, targets_g, losses_g, temperature, label_weight, first, last):
    """Write the losses of rows `first` to `last`, and their gradients over the student's product.

    ``(1 − w) · T² · KL(teacher at T ‖ student at T) + w · CE`` in nats. student, teacher: see `compress.distill.rows`.
    """
    (q_gV, of_q), (p_gV, of_p) = student, teacher
    vocabulary, room_q, room_p = q_gV.shape[1], room_for_likely(of_q), room_for_likely(of_p)
    rates, weights = (F4(1 / temperature), F4(1)), (F4((1 - label_weight) * temperature), F4(label_weight))
    tops_C, nothing = np.empty(-(-vocabulary // BLOCK), np.int32), np.empty(0, np.int64)
    ids_q, exact_q = np.empty(room_q + 1, np.int64), np.empty(room_q, F4)
    ids_p, exact_p = np.empty(room_p + 1, np.int64), np.empty(room_p, F4)
    changed, slopes = np.empty(room_q + room_p + 1, np.int64), np.empty(room_q + room_p + 1, F4)
    for token in range(first, last):
        q_V, p_V, target = q_gV[token], p_gV[token], targets_g[token]
        top_q, log_q, log_1, _, num_q = normalize(q_V, rates, of_q, token, tops_C, nothing, ids_q, exact_q)
        top_p, log_p, _, _, num_p = normalize(p_V, rates, of_p, token, tops_C, nothing, ids_p, exact_p)
        ids_q[num_q] = ids_p[num_p] = vocabulary
        tops, logs = (top_q, top_p), (F4(log_q), F4(log_p), F4(log_1))
        of_target = number(q_V[target]) if of_q[3] == 1 else exact_logit(of_q, token, target)
        wanted = target if weights[1] > 0 else vocabulary
        # What is put right afterwards: the likely ids of both models, and the target.
        mean_ratio, count, next_q, next_p = 0.0, 0, 0, 0
        while True:
            v = min(ids_q[next_q], ids_p[next_p], wanted)
            if v == vocabulary:
                break
            q, p = number(q_V[v]) - top_q, number(p_V[v]) - top_p
            weight = exp(rates[0] * p - logs[1])
            mean_ratio -= F8(weight * (p - q))
            if v == ids_q[next_q]:
                q, next_q = exact_q[next_q] - top_q, next_q + 1
            if v == ids_p[next_p]:
                p, next_p = exact_p[next_p] - top_p, next_p + 1
                weight = exp(rates[0] * p - logs[1])
            of_label = F4(0)
            if v == wanted:
                q, of_label, wanted = of_target - top_q, F4(1), vocabulary
            mean_ratio += F8(weight * (p - q))
            slope = weights[0] * (exp(rates[0] * q - logs[0]) - weight)
            if weights[1] > 0:
                slope += weights[1] * (exp(q - logs[2]) - of_label)
            changed[count], slopes[count] = v, slope
            count += 1
        mean_ratio += write_slopes(q_V, p_V, tops, rates, logs, weights)
        for m in range(count):
            write_rounded(q_V, changed[m], slopes[m])
        # All weights share the rounding of their normalizer.
        kl = F8(rates[0]) * mean_ratio * math.exp(F8(logs[1]) - log_p) - log_p + log_q
        losses_g[token] = weights[0] * temperature * kl + weights[1] * (log_1 - F8(of_target - top_q))


@njit(fastmath=FAST)
def write_slopes(q_V, p_V, tops, rates, logs, weights):
    """Write a row's gradients over the student's logits; return the mean of what these were below the teacher's."""
    mean_ratio = 0.0
    for start in range(0, len(q_V), BLOCK):
        of_block = F4(0)
        q_b, p_b = q_V[start : start + BLOCK], p_V[start : start + BLOCK]
        for v in range(len(q_b)):
            q, p = number(q_b[v]) - tops[0], number(p_b[v]) - tops[1]
            weight = exp(rates[0] * p - logs[1])
            of_block += weight * (p - q)
            slope = weights[0] * (exp(rates[0] * q - logs[0]) - weight)
            if weights[1] > 0:
                slope += weights[1] * exp(q - logs[2])
            write_rounded(q_b, v, slope)
        mean_ratio += of_block
    return mean_ratio


@compiled
def sparse_kl_of_rows(student, targets, labels_g, losses_g, temperature, label_weight, first, last):
    """Write the losses of rows `first` to `last`, and their gradients over the student's product.

    ``(1 − w) · T² · D + w · CE`` in nats, D as in `compress.distill.sparse_kl`. targets: ids ``[g, K]``, first the
    likely and then the sampled ones, each ascending; their probabilities; tails ``[g]``; how many are likely.
    """
    (q_gV, layer), (ids_gK, probs_gK, tail_g, num_likely) = student, targets
    vocabulary, num_ids, room = q_gV.shape[1], ids_gK.shape[1], room_for_likely(layer)
    rates, weights = (F4(1 / temperature), F4(1)), (F4((1 - label_weight) * temperature), F4(label_weight))
    tops_C = np.empty(-(-vocabulary // BLOCK), np.int32)
    ids_M, exact_M = np.empty(room + 1, np.int64), np.empty(room, F4)
    changed, slopes = np.empty(room + num_ids + 1, np.int64), np.empty(room + num_ids + 1, F4)
    logits_K, above_K = np.empty(num_ids, F4), np.zeros(num_ids)
    for token in range(first, last):
        q_V, ids_K, probs_K, label = q_gV[token], ids_gK[token], probs_gK[token], labels_g[token]
        likely_K, sampled_K = ids_K[:num_likely], ids_K[num_likely:]
        top, log_q, log_1, rest, count = normalize(q_V, rates, layer, token, tops_C, likely_K, ids_M, exact_M)
        ids_M[count] = vocabulary
        find_logits(q_V, likely_K, ids_M, exact_M, logits_K)
        find_logits(q_V, sampled_K, ids_M, exact_M, logits_K[num_likely:])
        for k in range(num_ids):
            logits_K[k] = rates[0] * (logits_K[k] - top) - F4(log_q)
        divergence, others = compare(
            logits_K, probs_K, F8(tail_g[token]), num_likely, max(rest, TINY), above_K
        )
        logs = F4(log_q), F4(log_1)
        of_target = number(q_V[label]) if layer[3] == 1 else exact_logit(layer, token, label)
        wanted = label if weights[1] > 0 else vocabulary
        num_changed, next_m, next_k, next_s = 0, 0, 0, num_likely
        while True:
            v = min(ids_M[next_m], wanted)
            v = min(v, ids_K[next_k]) if next_k < num_likely else v
            v = min(v, ids_K[next_s]) if next_s < num_ids else v
            if v == vocabulary:
                break
            q, of_label = number(q_V[v]) - top, F4(0)
            if v == ids_M[next_m]:
                q, next_m = exact_M[next_m] - top, next_m + 1
            if v == wanted:
                q, of_label, wanted = of_target - top, F4(1), vocabulary
            slope = exp(rates[0] * q - logs[0])
            is_likely = next_k < num_likely and v == ids_K[next_k]
            slope = slope - probs_K[next_k] if is_likely else slope * others
            next_k += is_likely
            while next_s < num_ids and v == ids_K[next_s]:
                slope, next_s = slope if is_likely else slope + F4(above_K[next_s]), next_s + 1
            slope *= weights[0]
            if weights[1] > 0:
                slope += weights[1] * (exp(q - logs[1]) - of_label)
            changed[num_changed], slopes[num_changed] = v, slope
            num_changed += 1
        write_shares(q_V, top, rates, logs, weights[0] * others, weights[1])
        for m in range(num_changed):
            write_rounded(q_V, changed[m], slopes[m])
        losses_g[token] = weights[0] * temperature * divergence + weights[1] * (log_1 - F8(of_target - top))


@njit
def find_logits(row_V, ids_K, ids_M, exact_M, logits_K):
    """Write the logits of ascending ids: exact ones where there are. ids_M ends with an id above all."""
    place = 0
    for k in range(len(ids_K)):
        while ids_M[place] < ids_K[k]:
            place += 1
        logits_K[k] = exact_M[place] if ids_M[place] == ids_K[k] else number(row_V[ids_K[k]])


@njit
def compare(log_probs_K, probs_K, tail, num_likely, rest, above_K):
    """Return a sparse target's divergence, and what its gradient in an id that is not named is of the probability.

    log_probs_K: the student's; rest: its probability of all but the likely ids. Written is what the gradient has beside
    that share in each sampled id.
    """
    num_samples = len(probs_K) - num_likely
    divergence, mean_above = x_log_x(tail) - tail * math.log(rest), 0.0
    for k in range(len(probs_K)):
        prob, log_q = F8(probs_K[k]), F8(log_probs_K[k])
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
def write_shares(q_V, top, rates, logs, weight, label_weight):
    """Write over a row's logits so much of the student's probabilities at T and so much of those at 1."""
    for start in range(0, len(q_V), BLOCK):
        q_b = q_V[start : start + BLOCK]
        for v in range(len(q_b)):
            q = number(q_b[v]) - top
            slope = weight * exp(rates[0] * q - logs[0])
            if label_weight > 0:
                slope += label_weight * exp(q - logs[1])
            write_rounded(q_b, v, slope)
