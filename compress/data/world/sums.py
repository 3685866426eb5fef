"""Small arithmetic: sums and differences of two or three numbers, bare or told as a story."""

from random import Random

from compress.data.world.facts import people
from compress.data.world.wordings import Question, worded

LARGEST = 10
LARGEST_OF_THREE = 5
THINGS = ("apples", "coins", "shells", "eggs")

PLUS = ("{a} plus {b} is", "adding {b} to {a} gives", "{n} had {a} {t}, found {b} more and now has")
MINUS = ("{a} minus {b} is", "taking {b} from {a} leaves", "{n} had {a} {t}, lost {b} and now has")
THREE = ("{a} plus {b} plus {c} is", "adding {b} and {c} to {a} gives", "{a} and {b} and {c} make")


def ask(r: Random, reserved: bool) -> Question:
    """Draw two or three numbers and a way to put them together."""
    clauses = r.choice((PLUS, MINUS, THREE))
    top = LARGEST_OF_THREE if clauses is THREE else LARGEST
    a, b, c = (r.randint(2, top) for _ in range(3))
    total = a + b + c if clauses is THREE else a + b
    if clauses is MINUS:
        a, total = total, a
    prompt = worded(r, clauses, reserved, a=a, b=b, c=c, n=r.choice(people()), t=r.choice(THINGS))
    return Question(prompt, str(total), _beside(r, total))


def _beside(r: Random, total: int) -> tuple[str, str, str]:
    """Three numbers near the total, 0 to 3 of them smaller: neither an end nor the middle is a good guess."""
    num_below = r.randint(0, min(3, total))
    below = r.sample(range(max(0, total - 4), total), num_below)
    above = r.sample(range(total + 1, total + 5), 3 - num_below)
    a, b, c = (str(number) for number in below + above)
    return a, b, c
