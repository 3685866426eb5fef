import copy
import random
from types import SimpleNamespace

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM

from compress.backends.positions import padded
from compress.errors import InputError
from compress.meters import divergence
from compress.meters.lm_eval_model import BackendLM, before_end, before_first, rolling_windows
from compress.meters.request_rows import Query, shared_rows

PAIRS = [
    ("The ship behind the hounds", " sails."),
    ("The ship behind the hounds", " sail."),
    ("A", " b"),
    ("A", " c"),
    ("A ", "b"),
    ("", "without context"),
    ("", "without"),
    ("<s>own beginning", " of text"),
    ("long " * 30, "context"),
    ("naïve", " café"),
]


def requests(arguments):
    return [SimpleNamespace(args=args) for args in arguments]


@pytest.fixture
def lm(backend, tokenizer):
    return BackendLM(backend, tokenizer, batch_size=3)


@pytest.fixture(scope="module")
def reference(llama, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(llama.path)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, softmax_dtype="float32")


def test_log_likelihoods_equal_those_of_lm_evals_own_model(lm, reference):
    ours = lm.loglikelihood(requests(PAIRS))
    theirs = reference.loglikelihood(requests(PAIRS), disable_tqdm=True)
    assert [p for p, _ in ours] == pytest.approx([p for p, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_log_likelihoods_equal_a_slow_reference(lm, llama, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(llama.path)
    (answer,) = lm.loglikelihood(requests([("One", " two")]))
    ids = tokenizer("One two")["input_ids"]
    with torch.no_grad():
        log_probs_TV = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    start = len(tokenizer("One")["input_ids"])
    assert answer[0] == pytest.approx(
        sum(float(log_probs_TV[t - 1, ids[t]]) for t in range(start, len(ids))), abs=1e-4
    )


def test_what_greedy_decoding_writes_is_marked(lm):
    prompts = [chr(letter) for letter in range(65, 123)]
    written = zip(prompts, lm.generate(prompts, {"max_gen_toks": 1}), strict=True)
    prompt, letter = next((prompt, text) for prompt, text in written if text.isalnum() and text.isascii())
    other = "x" if letter != "x" else "y"
    answers = lm.loglikelihood(requests([(prompt, letter), (prompt, other)]))
    assert [greedy for _, greedy in answers] == [True, False]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_does_not_matter(lm, backend, tokenizer, batch_size):
    other = BackendLM(backend, tokenizer, batch_size)
    expected = lm.loglikelihood(requests(PAIRS))
    assert [p for p, _ in other.loglikelihood(requests(PAIRS))] == pytest.approx(
        [p for p, _ in expected], abs=1e-4
    )


def test_the_size_of_a_chunk_does_not_matter(lm, monkeypatch):
    expected = lm.loglikelihood(requests(PAIRS))
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", 1)
    assert [p for p, _ in lm.loglikelihood(requests(PAIRS))] == pytest.approx(
        [p for p, _ in expected], abs=1e-4
    )


def test_rolling_likelihoods_equal_those_of_lm_evals_own_model(lm, reference):
    texts = [("short",), ("a text far longer than the model reads at once " * 5,), ("<s>begins itself",)]
    ours = lm.loglikelihood_rolling(requests(texts))
    assert ours == pytest.approx(
        reference.loglikelihood_rolling(requests(texts), disable_tqdm=True), rel=1e-4
    )


def test_written_answers_equal_those_of_lm_evals_own_model(lm, reference):
    settings = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    arguments = [
        ("Once upon", settings),
        ("A", settings),
        ("The hounds", {"max_gen_toks": 5, "until": ["\n"]}),
    ]
    ours = lm.generate_until(requests(arguments))
    assert ours == reference.generate_until(requests(arguments), disable_tqdm=True)


def test_sampled_answers_are_refused(lm):
    with pytest.raises(InputError, match="do_sample"):
        lm.generate(["Once"], {"do_sample": True, "temperature": 0.7})


def test_what_rows_begin_with_passes_the_head_once(lm, backend, monkeypatch):
    asked, at = [], backend.logits_at

    def counted(ids_BT, mask_BT, rows_N, columns_N, chunk):
        asked.append(len(rows_N))
        return at(ids_BT, mask_BT, rows_N, columns_N, chunk)

    monkeypatch.setattr(backend, "logits_at", counted)
    alone = [
        *lm.loglikelihood(requests([("", "Ships sail")])),
        *lm.loglikelihood(requests([("", "Ships sink")])),
    ]
    whole = sum(asked)
    asked.clear()
    together = lm.loglikelihood(requests([("", "Ships sail"), ("", "Ships sink")]))
    assert sum(asked) <= whole - len("Ships s")  # its tokens are letters
    assert [p for p, _ in together] == pytest.approx([p for p, _ in alone], abs=1e-4)


def test_progress_counts_rows(backend, tokenizer):
    reports = []
    BackendLM(backend, tokenizer, 4, lambda *counts: reports.append(counts)).loglikelihood(requests(PAIRS))
    assert reports[-1][0] == reports[-1][1] < len(PAIRS)


def test_one_token_options_of_a_question_share_one_row():
    question = (5, 6, 7)
    rows = shared_rows([Query((*question, option), 1) for option in (1, 2, 3, 4)])
    assert [(row.inputs, sorted(row.queries)) for row in rows] == [(question, [0, 1, 2, 3])]


def test_every_query_finds_a_row_that_begins_with_its_input():
    r = random.Random(0)
    queries = [Query(tuple(r.choices(range(2), k=r.randint(2, 7))), 1) for _ in range(300)]
    rows = shared_rows(queries)
    assert sorted(index for row in rows for index in row.queries) == list(range(300))
    assert all(row.inputs[: len(queries[i].inputs)] == queries[i].inputs for row in rows for i in row.queries)
    inputs = [row.inputs for row in rows]
    assert not any(a != b and b[: len(a)] == a for a in inputs for b in inputs)
    assert len(set(inputs)) == len(inputs)
    assert [len(i) for i in inputs] == sorted(map(len, inputs), reverse=True)


@pytest.mark.parametrize("length", [0, 1, 4, 5, 9, 12])
def test_windows_predict_every_token_once(length):
    windows = list(rolling_windows(0, list(range(1, length + 1)), num_positions=4))
    predicted = [token for window in windows for token in window.ids[-window.num_targets :]]
    assert predicted == list(range(1, length + 1))
    assert all(len(window.inputs) <= 4 for window in windows)


def test_rows_are_padded_on_the_asked_side():
    ids_BT, mask_BT = padded([(1, 2, 3), (4,)], left=True)
    assert ids_BT.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask_BT.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert padded([(1, 2), (4,)], left=False)[0].tolist() == [[1, 2], [4, 0]]


def test_text_ends_before_the_earliest_stop():
    assert before_first("one. two\nthree", ["\n", "."]) == "one"
    assert before_first("one", ["."]) == "one"


def appending_eos(tokenizer):
    """The same tokenizer with a post-processor that stands a text between BOS and EOS."""
    from tokenizers.processors import TemplateProcessing

    other = copy.deepcopy(tokenizer)
    bos, eos = other.bos_token, other.eos_token
    other.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, other.bos_token_id), (eos, other.eos_token_id)]
    )
    return other


def test_a_context_never_ends_in_the_end_of_a_text(lm, backend, tokenizer):
    """BOS and the words are what is read, whether or not the tokenizer would close them."""
    other = BackendLM(backend, appending_eos(tokenizer), batch_size=3)
    pairs = [pair for pair in PAIRS if pair[0] and not pair[0].startswith("<s>")]
    ids = tokenizer("One two", add_special_tokens=False)["input_ids"]
    assert other._encode(["One two"]) == [[tokenizer.bos_token_id, *ids]]
    (query,) = other._pairs([("One", " two")])
    assert (
        query.ids == (tokenizer.bos_token_id, *ids)
        and query.num_targets
        == 1 + len(ids) - len(tokenizer("One", add_special_tokens=False)["input_ids"]) - 1
    )
    if tokenizer("One")["input_ids"][0] == tokenizer.bos_token_id:
        assert other.loglikelihood(requests(pairs)) == lm.loglikelihood(requests(pairs))


def test_an_answer_ends_at_every_id_that_ends_one(backend, tokenizer, llama):
    """As `generate` of transformers does with a list of ids."""
    model = AutoModelForCausalLM.from_pretrained(llama.path)
    prompt = "The ship behind"
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])

    def written(ends):
        settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[
            0, ids.shape[1] :
        ].tolist()

    free = written(None)
    end = next(token for place, token in enumerate(free) if place >= 2 and token not in free[:place])
    stopped = written([tokenizer.eos_token_id, end])
    assert stopped[-1] == end and len(stopped) < len(free)
    (text,) = BackendLM(backend, tokenizer, 1, end_ids=[end]).generate([prompt], {"max_gen_toks": 12})
    assert text == tokenizer.decode(stopped[:-1], skip_special_tokens=True)


def test_special_tokens_are_no_part_of_an_answer():
    assert before_end([5, 6, 2, 7], {2}) == [5, 6]
    assert before_end([5, 6], {2}) == [5, 6]
    assert before_end([2, 5], {2}) == []
