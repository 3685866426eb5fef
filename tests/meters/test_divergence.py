from itertools import pairwise
from math import exp, log

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.meters import divergence
from compress.meters.divergence import score_text
from tests.meters.bigram import BigramBackend


def ids(num=5, length=9, vocabulary=7, seed=1):
    return torch.randint(vocabulary, (num, length), generator=torch.Generator().manual_seed(seed))


def batches(rows_ST, size=2):
    return [(ids_BT, torch.ones_like(ids_BT)) for ids_BT in rows_ST.split(size)]


def test_a_model_does_not_diverge_from_itself():
    model = BigramBackend.random()
    scores = score_text(model, batches(ids()), teacher=model)
    assert scores.kl.max() == 0.0
    assert scores.same_top.all()


def test_divergence_and_likelihood_equal_a_slow_reference():
    teacher, student = BigramBackend.random(seed=1), BigramBackend.random(seed=2)
    rows_ST = ids()
    scores = score_text(student, batches(rows_ST), teacher)
    nats, kl, same = [], [], []
    for row in rows_ST.tolist():
        for before, token in pairwise(row):
            p = teacher.table_VV[before].double().softmax(-1).tolist()
            q = student.table_VV[before].double().softmax(-1).tolist()
            nats.append(-log(q[token]))
            kl.append(sum(a * log(a / b) for a, b in zip(p, q, strict=True)))
            same.append(p.index(max(p)) == q.index(max(q)))
    assert scores.nats.tolist() == pytest.approx(nats, rel=1e-5)
    assert scores.kl.tolist() == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert scores.same_top.tolist() == same


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    teacher, student = BigramBackend.random(seed=1), BigramBackend.random(seed=2)
    whole = score_text(student, batches(ids()), teacher)
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", 1)
    one_by_one = score_text(student, batches(ids()), teacher)
    assert torch.equal(whole.nats, one_by_one.nats)
    assert torch.equal(whole.kl, one_by_one.kl)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_scored(side):
    model = BigramBackend.random()
    row_T = ids(num=1)
    padding = torch.zeros(1, 3, dtype=torch.int64)
    parts = [padding, row_T] if side == "left" else [row_T, padding]
    padded_T = torch.cat(parts, dim=1)
    mask_T = torch.cat([torch.full_like(part, int(part is row_T)) for part in parts], dim=1)
    padded = score_text(model, [(padded_T, mask_T)])
    assert padded.nats.tolist() == score_text(model, batches(row_T)).nats.tolist()


def test_a_padded_vocabulary_is_compared_over_the_ids_both_have():
    teacher = BigramBackend.random(vocabulary=7)
    table_VV = torch.zeros(9, 9)
    table_VV[:7, :7] = teacher.table_VV
    scores = score_text(BigramBackend(table_VV), batches(ids()), teacher)
    assert scores.kl.max() < 1e-6
    assert score_text(teacher, batches(ids()), BigramBackend(table_VV)).kl.max() < 1e-6


def test_a_pruned_vocabulary_is_compared_over_its_own_tokens():
    kept = torch.tensor([0, 2, 3, 6])
    teacher, student = BigramBackend.random(vocabulary=7), BigramBackend.random(vocabulary=4, seed=3)
    rows_ST = ids(vocabulary=4)
    scores = score_text(student, batches(rows_ST), teacher, teacher_ids=kept)
    nats, kl, same, mass = [], [], [], []
    for row in rows_ST.tolist():
        for before, token in pairwise(row):
            whole = teacher.table_VV[kept[before]].double().softmax(-1)[kept].tolist()
            p = [value / sum(whole) for value in whole]
            q = student.table_VV[before].double().softmax(-1).tolist()
            nats.append(-log(q[token]))
            kl.append(sum(a * log(a / b) for a, b in zip(p, q, strict=True)))
            same.append(p.index(max(p)) == q.index(max(q)))
            mass.append(sum(whole))
    assert scores.nats.tolist() == pytest.approx(nats, rel=1e-5)
    assert scores.kl.tolist() == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert scores.same_top.tolist() == same
    assert scores.kept_mass.tolist() == pytest.approx(mass, rel=1e-5)


def test_the_teachers_own_rows_and_columns_do_not_diverge_from_it():
    kept = torch.tensor([1, 2, 5])
    teacher = BigramBackend.random(vocabulary=7)
    student = BigramBackend(teacher.table_VV[kept][:, kept])
    scores = score_text(student, batches(ids(vocabulary=3)), teacher, teacher_ids=kept)
    assert scores.kl.max() < 1e-6 and scores.same_top.all() and scores.kept_mass.max() < 1.0
    everything = score_text(teacher, batches(ids()), teacher, teacher_ids=torch.arange(7))
    assert everything.kept_mass.tolist() == pytest.approx([1.0] * len(everything.nats))


def test_perplexity_equals_the_models_own_loss(llama, backend):
    rows_ST = ids(num=4, length=20, vocabulary=259)
    scores = score_text(backend, batches(rows_ST))
    model = AutoModelForCausalLM.from_pretrained(llama.path)
    with torch.no_grad():
        loss = float(model(input_ids=rows_ST, labels=rows_ST).loss)
    assert scores.perplexity.mean == pytest.approx(exp(loss), rel=1e-5)
    assert scores.perplexity.low < scores.perplexity.mean < scores.perplexity.high
    assert scores.perplexity.n == 4 * 19


def test_one_sequence_has_no_interval():
    estimate = score_text(BigramBackend.random(), batches(ids(num=1))).cross_entropy
    assert estimate.low is None and estimate.high is None


def test_a_uniform_model_takes_the_bits_of_its_vocabulary():
    scores = score_text(BigramBackend(torch.zeros(8, 8)), batches(ids(num=1)))
    assert scores.bits_per_byte(num_bytes=8) == pytest.approx(3.0)
    assert scores.bits_per_byte(num_bytes=16) == pytest.approx(1.5)
