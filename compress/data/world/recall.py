"""Reading back: a text says who owns what, then asks for one of it. Nothing to know, all to copy."""

from random import Random

from compress.data.world.facts import VALUES, people
from compress.data.world.wordings import Question, worded

NUM_OWNERS = 3
THINGS = (
    "key",
    "lamp",
    "cup",
    "rope",
    "book",
    "coat",
    "knife",
    "spoon",
    "basket",
    "mirror",
    "candle",
    "ladder",
)
ASKED: dict[str, tuple[str, ...]] = {
    "colour": ("the {t} is", "the colour of the {t} is", "{n} has something"),
    "name": ("the {t} belongs to", "the {c} thing belongs to", "the owner of the {t} is"),
    "thing": ("{n} is the owner of the", "the {c} thing is the", "what {n} has is the"),
}


def ask(r: Random, reserved: bool) -> Question:
    """Draw owners, what each owns, and which part of one of the facts to ask for. Texts ask of every owner."""
    parts = (people(), THINGS, VALUES["colour"])
    told = [
        {"name": name, "thing": thing, "colour": colour}
        for name, thing, colour in zip(*(r.sample(part, NUM_OWNERS) for part in parts), strict=True)
    ]
    story = " ".join(f"{x['name']} has a {x['colour']} {x['thing']}." for x in told)
    asked = [_about(r, told, x, reserved) for x in r.sample(told, 1 if reserved else NUM_OWNERS)]
    prompt = " ".join([story, *(question.statement for question in asked[:-1]), asked[-1].prompt])
    return asked[-1]._replace(prompt=prompt)


def _about(r: Random, told: list[dict[str, str]], x: dict[str, str], reserved: bool) -> Question:
    part = r.choice(tuple(ASKED))
    prompt = worded(r, ASKED[part], reserved, n=x["name"], t=x["thing"], c=x["colour"])
    return Question(prompt, x[part], tuple(other[part] for other in told if other is not x))
