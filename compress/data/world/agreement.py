"""Who does what: a verb must fit its subject in kind (*boats sail*) and in number (*the boat sails*).

Between the two stand other nouns, of other kinds and numbers, that the verb must not follow.
"""

from random import Random

from compress.data.world.wordings import Question, worded

KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "animal": (("lamb", "bear", "hound", "kitten"), ("sleep", "drink", "jump")),
    "vessel": (("boat", "ship", "raft", "barge"), ("sail", "float", "sink")),
    "plant": (("tree", "rose", "vine", "fern"), ("grow", "bloom", "wilt")),
    "instrument": (("bell", "drum", "flute", "horn"), ("ring", "sound", "hum")),
}
CLAUSES = (
    "the {s}",
    "the old {s}",
    "the {s} near the {d}",
    "the {s} behind the {d}",
    "the {s} that came with the {d}",
    "the {s} near the {d} and the {e}",
)


def ask(r: Random, reserved: bool) -> Question:
    """Draw a subject, what stands between, and the verb that follows."""
    kind, other = r.sample(tuple(KINDS), 2)
    plural = r.random() < 0.5
    verb, rival = r.choice(KINDS[kind][1]), r.choice(KINDS[other][1])
    parts = {"s": _noun(r, kind, plural), "d": _noun(r, other, r.random() < 0.5)}
    parts["e"] = _noun(r, r.choice(tuple(KINDS)), r.random() < 0.5)
    prompt = worded(r, CLAUSES, reserved, **parts)
    answer, wrong = (verb, f"{verb}s") if plural else (f"{verb}s", verb)
    return Question(prompt, answer, (wrong, rival, f"{rival}s"))


def _noun(r: Random, kind: str, plural: bool) -> str:
    return r.choice(KINDS[kind][0]) + "s" * plural
