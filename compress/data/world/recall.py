"""Reading back: someone sings words in no order to be known, and another sings them again. All to copy.

Songs differ in length and other sentences may stand between, so that how far back to look says nothing: a word
is found by the word before it.
"""

from random import Random

from compress.data.world import facts
from compress.data.world.wordings import Question, worded

NUM_WORDS = (5, 8)
WORDS = (
    *("key", "lamp", "cup", "rope", "book", "coat", "knife", "spoon"),
    *("basket", "mirror", "candle", "ladder", "wheel", "stone", "feather", "ribbon"),
)
SUNG = ("{a} sings: {song}", "the song of {a} is {song}", "{a} hums the tune {song}")
AGAIN = ("{b} repeats: {song}", "{b} sings with {a}: {song}", "and {b} sings again: {song}")


def ask(r: Random, reserved: bool) -> Question:
    """Draw a song, what is said in between, and how far it is sung again. Texts sing it to the end."""
    a, b = r.sample(facts.people(), 2)
    song = r.sample(WORDS, r.randint(*NUM_WORDS))
    last = r.randrange(1, len(song)) if reserved else len(song) - 1
    first = worded(r, SUNG, reserved=False, a=a, song=" ".join(song)) + "."
    between = [facts.ask(r, reserved=False).statement for _ in range(r.randrange(3))]
    again = worded(r, AGAIN, reserved, a=a, b=b, song=" ".join(song[:last]))
    wrong = r.sample([word for word in song if word != song[last]], 3)
    return Question(" ".join([first, *between, again]), song[last], tuple(wrong))
