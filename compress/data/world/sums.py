"""Small arithmetic: sums and differences of two or three numbers, bare or told as a story."""

from random import Random

from compress.data.world.facts import people
from compress.data.world.wordings import Question, worded

RESULTS = range(4, 17)
SPREAD = 6
"""The four results to choose from lie within so many numbers."""
THINGS = ("apples", "coins", "shells", "eggs")

PLUS = ("{a} plus {b} is", "adding {b} to {a} gives", "{n} had {a} {t}, found {b} more and now has")
MINUS = ("{a} minus {b} is", "taking {b} from {a} leaves", "{n} had {a} {t}, lost {b} and now has")
THREE = ("{a} plus {b} plus {c} is", "adding {b} and {c} to {a} gives", "{a} and {b} and {c} make")


def ask(r: Random, reserved: bool) -> Question:
    """Draw four results, which of them is true (so none looks likelier), and numbers that lead to it."""
    lowest = r.choice(RESULTS[: -SPREAD + 1])
    results = r.sample(range(lowest, lowest + SPREAD), 4)
    total, clauses = results[0], r.choice((PLUS, MINUS, THREE))
    cut, other = sorted(r.sample(range(1, total), 2))
    numbers = {
        PLUS: (cut, total - cut, 0),
        MINUS: (total + cut, cut, 0),
        THREE: (cut, other - cut, total - other),
    }
    a, b, c = numbers[clauses]
    prompt = worded(r, clauses, reserved, a=a, b=b, c=c, n=r.choice(people()), t=r.choice(THINGS))
    return Question(prompt, str(total), tuple(str(result) for result in results[1:]))
