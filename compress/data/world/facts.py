"""What is true in the world: people, their towns and what both are known for.

A fact takes one step (*Mira lives in Arlen*) or two (*the town of Mira lies on the river Dove*): the second
kind is said of the town that another fact leads to. Values are dealt evenly, none is likelier than another.
"""

from functools import cache
from itertools import accumulate
from random import Random

from compress.data.world.wordings import Question, invented_name, worded

NUM_PEOPLE = 24

TOWNS = ("Arlen", "Bost", "Carth", "Dunmor", "Elmet", "Farrow", "Gant", "Holm")
VALUES: dict[str, tuple[str, ...]] = {
    "home": TOWNS,
    "work": ("baker", "smith", "teacher", "doctor", "farmer", "sailor", "weaver", "painter"),
    "pet": ("cat", "dog", "horse", "parrot", "turtle", "goat", "rabbit", "fox"),
    "food": ("bread", "soup", "cheese", "cake", "fish", "rice", "honey", "pears"),
    "river": ("Aven", "Brith", "Calder", "Dove"),
    "goods": ("salt", "wool", "glass", "iron"),
}
CLAUSES: dict[str, tuple[str, ...]] = {
    "home": ("{s} lives in", "the home of {s} is in", "{s} has a house in", "you can meet {s} in"),
    "work": (
        "{s} works as a",
        "the trade of {s} is that of a",
        "{s} earns a living as a",
        "{s} was always a",
    ),
    "pet": ("{s} keeps a", "the pet of {s} is a", "{s} takes good care of a", "{s} feeds a"),
    "food": ("{s} likes to eat", "the favourite food of {s} is", "{s} often cooks", "{s} never tires of"),
    "river": (
        "{s} lies on the river",
        "the river of {s} is the",
        "{s} has a bridge over the",
        "{s} gets its water from the",
    ),
    "goods": ("{s} is known for its", "the pride of {s} is its", "people buy from {s} its", "{s} sells its"),
}
OF_PEOPLE = ("home", "work", "pet", "food")
OF_TOWNS = ("river", "goods")


@cache
def people() -> tuple[str, ...]:
    """Return the names of everyone who lives in the world."""
    r = Random("people of the demo world")
    names: dict[str, None] = {}
    while len(names) < NUM_PEOPLE:
        names[invented_name(r)] = None
    return tuple(names)


@cache
def facts() -> dict[tuple[str, str], str]:
    """Return the value of every (subject, relation)."""
    r = Random("facts of the demo world")
    known: dict[tuple[str, str], str] = {}
    for subjects, relations in ((people(), OF_PEOPLE), (TOWNS, OF_TOWNS)):
        for relation in relations:
            values = VALUES[relation] * (len(subjects) // len(VALUES[relation]))
            dealt = r.sample(values, len(subjects))
            known |= {(subject, relation): value for subject, value in zip(subjects, dealt, strict=True)}
    return known


def ask(r: Random, reserved: bool) -> Question:
    """Draw a fact of a person, of a town, or of a person's town."""
    person, about = r.choices(people(), cum_weights=_fame())[0], r.random()
    if about < 0.7:
        return _about(r, person, r.choice(OF_PEOPLE), reserved, person)
    town, relation = facts()[person, "home"], r.choice(OF_TOWNS)
    return _about(r, town, relation, reserved, f"the town of {person}" if about < 0.9 else town)


@cache
def _fame() -> tuple[float, ...]:
    """How often people are spoken of, summed up: the first four times as often as the last.

    Facts dealt out evenly are learned late and all at once; the talked-about ones start the learning.
    """
    return tuple(accumulate(4 ** -(rank / (NUM_PEOPLE - 1)) for rank in range(NUM_PEOPLE)))


def _about(r: Random, subject: str, relation: str, reserved: bool, called: str) -> Question:
    answer = facts()[subject, relation]
    others = [value for value in VALUES[relation] if value != answer]
    return Question(worded(r, CLAUSES[relation], reserved, s=called), answer, tuple(r.sample(others, 3)))
