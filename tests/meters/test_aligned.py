"""Two models that cut a text otherwise, against a loop over every place."""

from itertools import pairwise
from math import log

import pytest
import torch

from compress.backends.positions import padded
from compress.meters import aligned, divergence
from compress.meters.aligned import Divergences, Recut, joined, joined_texts, score_recut
from compress.meters.divergence import TextScores
from tests.meters.bigram import BigramBackend

KEPT = torch.tensor([0, 2, 3, 6])
OWN = [[0, 1, 2, 3, 1, 1, 2], [3, 2, 1, 0], [1, 1, 1, 2, 3]]
THEIRS = [[0, 5, 3, 6, 4], [6, 3, 2, 0, 2, 1, 4, 4], [2, 3, 1]]
PLACES = [(0, 0, 0), (0, 3, 1), (0, 5, 3), (1, 0, 4), (1, 1, 5), (1, 2, 6), (2, 3, 0)]


class InAskedOrder(BigramBackend):
    """Gives the places in the order asked for, as models on a GPU do."""

    def logits_at(self, ids_BT, mask_BT, rows_N, columns_N, chunk=256):
        logits_NV = self.table_VV[ids_BT[rows_N, columns_N]]
        for start in range(0, len(rows_N), chunk):
            which_M = torch.arange(start, min(start + chunk, len(rows_N)))
            yield which_M, logits_NV[which_M]


def batch(own=OWN, theirs=THEIRS, places=PLACES):
    return Recut(
        padded(own, left=False),
        padded(theirs, left=False),
        torch.tensor(places, dtype=torch.int64).view(-1, 3),
    )


def models(kind=BigramBackend):
    return BigramBackend.random(vocabulary=4, seed=3), kind.random(vocabulary=7, seed=1)


def reference():
    """Sequence, KL, same top and kept mass of every place, in fp64, one after the other."""
    student, teacher = models()
    found = set()
    for sequence, own, theirs in PLACES:
        whole = teacher.table_VV[THEIRS[sequence][theirs]].double().softmax(-1)[KEPT].tolist()
        p = [value / sum(whole) for value in whole]
        q = student.table_VV[OWN[sequence][own]].double().softmax(-1).tolist()
        kl = sum(a * log(a / b) for a, b in zip(p, q, strict=True))
        found.add((sequence, round(kl, 4), p.index(max(p)) == q.index(max(q)), round(sum(whole), 4)))
    return found


def as_set(divergences):
    columns = (divergences.sequence, divergences.kl, divergences.same_top, divergences.kept_mass)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {(sequence, round(kl, 4), top, round(mass, 4)) for sequence, kl, top, mass in rows}


@pytest.mark.parametrize("elements", [1, 14, 10_000])
@pytest.mark.parametrize("kind", [BigramBackend, InAskedOrder])
def test_every_place_equals_a_slow_reference_however_little_is_held_at_once(kind, elements, monkeypatch):
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", elements)
    scores, divergences = score_recut(*models(kind), [batch()], KEPT)
    assert len(divergences.kl) == len(PLACES) and as_set(divergences) == reference()
    student, _ = models()
    nats = sorted(-log(student.table_VV[a].double().softmax(-1)[b]) for row in OWN for a, b in pairwise(row))
    assert sorted(scores.nats.tolist()) == pytest.approx(nats, rel=1e-5)
    assert torch.bincount(scores.sequence).tolist() == [6, 3, 4]


def test_each_model_reads_each_row_once():
    student, teacher = models()
    score_recut(student, teacher, [batch()], KEPT)
    assert (student.rows, teacher.rows) == (3, 3)


def test_batches_are_numbered_on_and_heard_of():
    parts = [
        batch(OWN[:1], THEIRS[:1], PLACES[:3]),
        batch(OWN[1:2], THEIRS[1:2], [(0, 0, 4), (0, 1, 5), (0, 2, 6)]),
    ]
    parts.append(batch(OWN[2:], THEIRS[2:], []))
    done = []
    scores, divergences = score_recut(*models(), parts, KEPT, done.append)
    assert done == [1, 2, 3]
    assert as_set(divergences) == {each for each in reference() if each[0] < 2}
    assert torch.bincount(scores.sequence).tolist() == [6, 3, 4]


def test_a_batch_that_memory_is_too_small_for_is_read_in_parts(monkeypatch):
    whole = aligned._score_batch

    def small(student, teacher, part, ids):
        if len(part) > 1:
            raise MemoryError
        return whole(student, teacher, part, ids)

    monkeypatch.setattr(aligned, "_score_batch", small)
    warnings = []
    _, divergences = score_recut(*models(), [batch()], KEPT, on_halved=warnings.append)
    assert as_set(divergences) == reference() and "1 were read" in warnings[0]


def test_joined_parts_keep_their_sequences_apart():
    values = torch.tensor([1.0, 2.0])
    one = Divergences(torch.tensor([0, 2]), values, values > 1, None)
    assert joined([one, one]).sequence.tolist() == [0, 2, 3, 5]
    assert joined([Divergences(*(torch.zeros(0),) * 3, None)]) is None and joined([]) is None
    text = TextScores(values, torch.tensor([0, 1]))
    assert joined_texts([text, text]).sequence.tolist() == [0, 1, 2, 3]
