import re
from collections import Counter
from functools import cache
from itertools import islice

import pytest

from compress.data import world
from compress.data.world import agreement, facts, recall, sums, wordings

TASKS = sorted(world.DEMO_TASKS)
CLAUSES = {
    "world_facts": list(facts.CLAUSES.values()),
    "world_agreement": [agreement.CLAUSES],
    "world_sums": [sums.PLUS, sums.MINUS, sums.THREE],
    "world_recall": [recall.AGAIN],
}


def texts(split: world.Split, seed: int, n: int) -> list[str]:
    return list(islice(world.documents(split, seed), n))


@cache
def corpus(split: world.Split) -> str:
    return "\n".join(texts(split, 0, 4000))


@cache
def frequencies() -> Counter[str]:
    return Counter(re.findall(r"[^ .\n]+\.?", corpus("train")))


@pytest.mark.parametrize("split", world.SPLITS)
def test_a_split_and_a_seed_give_the_same_texts_again(split):
    assert texts(split, 3, 50) == texts(split, 3, 50)
    assert texts(split, 3, 50) != texts(split, 4, 50)


def test_no_two_splits_share_a_document():
    drawn = [set(texts(split, 0, 2000)) for split in world.SPLITS]
    assert not drawn[0] & drawn[1]
    assert not drawn[0] & drawn[2]
    assert not drawn[1] & drawn[2]


def test_the_perplexity_texts_occur_in_no_split():
    held_out = set(world.texts())
    assert len(held_out) >= 500
    for split in world.SPLITS:
        assert not held_out & set(texts(split, 0, 2000))


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_enough_distinct_items_and_the_same_again(task):
    items = world.items(task)
    assert len({item.prompt for item in items}) == len(items) >= 500
    assert items == world.items(task)


@pytest.mark.parametrize("task", TASKS)
def test_chance_is_what_the_number_of_options_says(task):
    items = world.items(task)
    assert {len(item.options) for item in items} == {round(1 / world.DEMO_TASKS[task])}
    assert all(len(set(item.options)) == len(item.options) for item in items)


def test_mean_chance_is_low_enough_to_see_damage():
    assert sum(world.DEMO_TASKS.values()) / len(world.DEMO_TASKS) <= 0.35


@pytest.mark.parametrize("task", TASKS)
def test_the_true_option_stands_equally_often_in_every_place(task):
    counts = Counter(item.gold for item in world.items(task))
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("pick", [min, max], ids=["least", "most"])
def test_neither_length_nor_frequency_nor_order_guesses_the_answer(task, pick):
    items = world.items(task)
    for score in (len, frequencies().__getitem__, lambda option: (len(option), option)):
        right = [pick(item.options, key=score) == item.options[item.gold] for item in items]
        assert sum(right) / len(items) <= world.DEMO_TASKS[task] + 0.08


@pytest.mark.parametrize("task", TASKS)
def test_the_wordings_of_a_task_occur_in_no_text(task):
    told = "\n".join(corpus(split) for split in world.SPLITS)
    for clauses in CLAUSES[task]:
        reserved = wordings.wordings(clauses, reserved=True)
        assert reserved
        for wording in reserved:
            assert not re.search(_pattern(wording) + r" \w+\.", told, re.MULTILINE), wording


@pytest.mark.parametrize("task", TASKS)
def test_every_item_is_in_a_reserved_wording(task):
    patterns = [_pattern(w) for c in CLAUSES[task] for w in wordings.wordings(c, reserved=True)]
    for item in world.items(task):
        assert any(re.search(f"{pattern}$", item.prompt) for pattern in patterns), item.prompt


@pytest.mark.parametrize("task", TASKS)
def test_every_frame_and_every_clause_of_a_task_is_met_in_texts(task):
    for clauses in CLAUSES[task]:
        met = wordings.wordings(clauses, reserved=False)
        assert all(any(wording.startswith(frame) for wording in met) for frame in wordings.FRAMES)
        assert all(any(wording.endswith(clause) for wording in met) for clause in clauses)


def test_facts_are_told_as_they_are():
    told = facts.facts()
    person = facts.people()[0]
    assert f"{person} lives in {told[person, 'home']}." in corpus("train")


def test_sums_are_right():
    for text in texts("train", 0, 2000):
        for a, b, total in re.findall(r"(?<!plus )\b(\d+) plus (\d+) is (\d+)\.", text):
            assert int(a) + int(b) == int(total)
        for a, b, rest in re.findall(r"(\d+) minus (\d+) is (\d+)\.", text):
            assert int(a) - int(b) == int(rest)


def _pattern(wording: str) -> str:
    """A sentence in this wording from its beginning up to the answer, whatever fills its parts."""
    parts = (_FILLED.get(part, re.escape(part)) for part in re.split(r"(\{\w+\})", wording))
    return r"(?:^|\. )(?i:" + "".join(parts) + ")"


_FILLED = {f"{{{name}}}": r"\w+" for name in "abcdent"}
_FILLED |= {"{s}": r"(?:the town of )?\w+", "{song}": r"\w+(?: \w+)*"}
