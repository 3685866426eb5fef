"""What rows begin with is read once, and the answers are those of rows that are read whole."""

import itertools
import random
from itertools import pairwise

import pytest
import torch

from compress.backends.huggingface import HuggingFaceBackend
from compress.meters.lm_eval_model import BackendLM
from compress.meters.request_rows import (
    LARGEST_GROUP,
    Query,
    groups_of,
    prefixed,
    shared_rows,
    with_prefixes,
)
from tests.meters.test_halving import FULL
from tests.meters.test_lm_eval_model import requests
from tests.models.tiny import tiny_model

FAMILIES = ["llama", "qwen3", "gemma", "gemma3_text", "gpt2", "phi", "qwen3_moe"]
"""Gemma 3's window is 8 tokens here: shorter than the contexts."""


def text(r, num):
    return tuple(r.choices(range(3, 259), k=num))


def question(r, context, *options):
    """Queries of a question: the same context, options of so many tokens."""
    begin = text(r, context)
    return [Query(begin + text(r, num), num) for num in options]


def mixed(num_positions=512):
    """Questions of unequal contexts and options, some doubled, one in another; short ones; texts without context."""
    r = random.Random(0)
    queries = [*question(r, 40, 4, 9, 2, 1), *question(r, 25, 3, 3, 12), *question(r, 18, 5, 5)]
    queries += [queries[1], Query(queries[1].ids[:-3], 6)]  # the same again, and what it begins with
    queries += [*question(r, 4, 6, 7), *question(r, 1, 8, 8), Query(text(r, 1) + text(r, 20), 20)]
    queries += question(r, 60, 1, 1, 1)
    r.shuffle(queries)
    return [Query(query.ids[-(num_positions + 1) :], query.num_targets) for query in queries]


def asked(backend, batch_size=64, on_progress=lambda done, total: None):
    lm = BackendLM.__new__(BackendLM)
    lm.backend, lm.batch_size, lm.on_progress, lm.gave_way = backend, batch_size, on_progress, []
    return lm


def whole(backend, queries):
    """Answers of rows that are all read whole."""
    shares, backend.shares_prefixes = backend.shares_prefixes, False
    try:
        return asked(backend)._answer(queries)
    finally:
        backend.shares_prefixes = shares


def check(answers, expected):
    assert [p for p, _ in answers] == pytest.approx([p for p, _ in expected], abs=1e-5)
    assert [greedy for _, greedy in answers] == [greedy for _, greedy in expected]


def count_tokens(model):
    """Return a list to which every pass through the model adds its tokens."""
    seen = []
    model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(args[0].numel())
    )
    return seen


def test_the_context_of_a_question_is_read_once():
    backend = HuggingFaceBackend(tiny_model("llama"))
    seen = count_tokens(backend.model)
    queries = question(random.Random(0), 60, 20, 20, 20, 20)
    whole(backend, queries)
    assert sum(seen) == 4 * 79
    seen.clear()
    asked(backend)._answer(queries)
    assert seen == [59, 4 * 20]  # the last of the context with every option: it predicts their first tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_are_those_of_rows_read_whole(family, batch_size):
    backend = HuggingFaceBackend(tiny_model(family))
    queries = mixed()
    check(asked(backend, batch_size)._answer(queries), whole(backend, queries))


def test_what_greedy_decoding_writes_is_marked_behind_a_prefix_too():
    backend = HuggingFaceBackend(tiny_model("llama"))
    context = text(random.Random(1), 30)
    ids = torch.tensor([context])
    written = tuple(backend.generate(ids, torch.ones_like(ids), 4)[0].tolist())
    queries = [Query(context + option, 4) for option in (written, (*written[:3], 3), (3, *written[1:]))]
    assert prefixed(with_prefixes(shared_rows(queries), queries, 64))
    assert [greedy for _, greedy in asked(backend)._answer(queries)] == [True, False, False]


@pytest.mark.parametrize("num_positions", [24, 48])
def test_contexts_that_lost_their_oldest_tokens_are_answered_alike(num_positions):
    """Options of unequal length then drop unequal amounts, and begin unalike."""
    backend = HuggingFaceBackend(tiny_model("gpt2", n_positions=num_positions))
    queries = mixed(num_positions)
    assert any(len(query.inputs) == num_positions for query in queries)
    check(asked(backend, 4)._answer(queries), whole(backend, queries))


def test_texts_without_a_context_are_read_as_ever():
    """Minimal pairs share a beginning-of-sequence token, and some words of which all are asked for."""
    backend = HuggingFaceBackend(tiny_model("llama"))
    r = random.Random(0)
    begin = (1, *text(r, 20))
    queries = [Query(begin + text(r, 5), 25) for _ in range(2)]
    seen = count_tokens(backend.model)
    asked(backend)._answer(queries)
    assert seen == [2 * 25]


def test_a_short_context_is_not_worth_a_pass():
    backend = HuggingFaceBackend(tiny_model("llama"))
    seen = count_tokens(backend.model)
    asked(backend)._answer(question(random.Random(0), 10, 5, 5, 5, 5))
    assert seen == [4 * 14]


def test_a_prefix_that_saves_little_is_not_worth_a_pass():
    queries = question(random.Random(0), 20, 80, 80)
    assert not any(row.num_shared for row in with_prefixes(shared_rows(queries), queries, 64))


def test_a_backend_that_cannot_go_on_is_asked_for_whole_rows(backend, tokenizer, monkeypatch):
    monkeypatch.setattr(backend, "shares_prefixes", False)
    monkeypatch.setattr(backend, "logits_after", None)
    pairs = [("The ship behind the hounds sails", option) for option in (" away from here", " home at last")]
    assert len(BackendLM(backend, tokenizer, 8).loglikelihood(requests(pairs))) == 2


def test_solved_examples_that_all_questions_begin_with_are_shared_among_questions():
    r = random.Random(0)
    examples = text(r, 100)
    queries = [
        Query(examples + query.ids, query.num_targets) for _ in range(5) for query in question(r, 3, 4, 4)
    ]
    rows = with_prefixes(shared_rows(queries), queries, 64)
    assert {row.inputs[: row.num_shared] for row in rows} == {examples}


def test_a_groups_rows_are_neighbours_and_begin_alike():
    r = random.Random(2)
    queries = [
        query
        for _ in range(50)
        for query in question(r, r.randint(1, 60), *(r.randint(1, 12) for _ in range(r.randint(1, 4))))
    ]
    plain = shared_rows(queries)
    rows = with_prefixes(plain, queries, 4)
    assert sorted(row.inputs for row in rows) == sorted(row.inputs for row in plain)
    shares = [row.num_shared > 0 for row in rows]
    assert shares == sorted(shares, reverse=True) and any(shares) and not all(shares)
    prefixes = [row.inputs[: row.num_shared] for row in rows if row.num_shared]
    changes = sum(a != b for a, b in pairwise(prefixes))
    assert changes == len(set(prefixes)) - 1
    assert all(2 <= prefixes.count(prefix) <= 4 for prefix in prefixes)
    for row in rows:
        assert (
            all(row.num_shared <= queries[index].first_asked for index in row.queries) or not row.num_shared
        )


def test_fewest_tokens_are_read():
    """Against every way to part a few sorted rows into neighbours."""
    r = random.Random(3)
    for _ in range(20):
        begin = text(r, 40)
        inputs = sorted(begin[: r.choice([0, 16, 20, 30, 40])] + text(r, 6) for _ in range(7))
        found = groups_of(inputs, [len(row) - 1 for row in inputs], 64)
        saved = sum(saving(inputs[start:stop], num_shared) for start, stop, num_shared in found)
        assert saved == max(most_saved(parts) for parts in every_parting(inputs))


def saving(group, num_shared):
    return sum(map(len, group)) - num_shared - len(group) * (max(map(len, group)) - num_shared)


def most_saved(parts):
    saved = 0
    for group in parts:
        num_shared = min(len(row) - 1 for row in group)
        while len({row[:num_shared] for row in group}) > 1:
            num_shared -= 1
        if num_shared >= 16 and saving(group, num_shared) >= 0.2 * sum(map(len, group)):
            saved += max(0, saving(group, num_shared))
    return saved


def every_parting(inputs):
    for cuts in itertools.product([False, True], repeat=len(inputs) - 1):
        borders = [0, *(place for place, cut in enumerate(cuts, 1) if cut), len(inputs)]
        yield [inputs[start:stop] for start, stop in pairwise(borders)]


def test_groups_stay_small_and_batches_read_their_prefix_once():
    r = random.Random(0)
    queries = question(r, 20, *[4] * (3 * LARGEST_GROUP))
    batch = prefixed(with_prefixes(shared_rows(queries), queries, 1000))
    assert batch is not None and batch.prefix_ids.shape == (1, 20 - 1)


def test_progress_counts_rows_that_share_too():
    reports = []
    backend = HuggingFaceBackend(tiny_model("llama"))
    queries = mixed()
    asked(backend, 4, lambda *counts: reports.append(counts))._answer(queries)
    num = len(shared_rows(queries))
    assert [total for _, total in reports] == [num] * len(reports)
    assert reports[-1] == (num, num) and reports == sorted(reports)


def test_batches_that_memory_is_too_small_for_are_halved(monkeypatch):
    backend = HuggingFaceBackend(tiny_model("llama"))
    queries = mixed()
    expected = whole(backend, queries)
    read = backend.logits_after
    sizes = []

    def small(batch, *args):
        sizes.append(len(batch.ids))
        yield next(read(batch, *args))
        if len(batch.ids) > 4:
            raise FULL

    monkeypatch.setattr(backend, "logits_after", small)
    lm = asked(backend)
    check(lm._answer(queries), expected)
    assert sizes[0] > 4 >= sizes[-1] and len(lm.gave_way) == 1
