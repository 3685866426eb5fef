"""Small arithmetic: sums and differences of two or three numbers, bare or told as a story."""

from random import Random

from compress.data.world.facts import people
from compress.data.world.wordings import Question, worded

SMALLEST, LARGEST = 3, 16
"""Results are drawn evenly from here, so that none is a better guess than another."""
THINGS = ("apples", "coins", "shells", "eggs")

PLUS = ("{a} plus {b} is", "adding {b} to {a} gives", "{n} had {a} {t}, found {b} more and now has")
MINUS = ("{a} minus {b} is", "taking {b} from {a} leaves", "{n} had {a} {t}, lost {b} and now has")
THREE = ("{a} plus {b} plus {c} is", "adding {b} and {c} to {a} gives", "{a} and {b} and {c} make")


def ask(r: Random, reserved: bool) -> Question:
    """Draw a result, then numbers that lead to it and a way to put them together."""
    clauses, total = r.choice((PLUS, MINUS, THREE)), r.randint(SMALLEST, LARGEST)
    cut, other = sorted(r.sample(range(1, total), 2))
    numbers = {
        PLUS: (cut, total - cut, 0),
        MINUS: (total + cut, cut, 0),
        THREE: (cut, other - cut, total - other),
    }
    a, b, c = numbers[clauses]
    prompt = worded(r, clauses, reserved, a=a, b=b, c=c, n=r.choice(people()), t=r.choice(THINGS))
    return Question(prompt, str(total), _beside(r, total))


def _beside(r: Random, total: int) -> tuple[str, ...]:
    """Three other results near the total, 0 to 3 of them smaller: neither an end nor the middle is a good guess."""
    fewest, most = max(0, 3 - (LARGEST - total)), min(3, total - SMALLEST)
    num_below = r.randint(fewest, most)
    below = r.sample(range(max(SMALLEST, total - 4), total), num_below)
    above = r.sample(range(total + 1, min(LARGEST, total + 4) + 1), 3 - num_below)
    return tuple(str(number) for number in below + above)
