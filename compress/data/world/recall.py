"""Reading back: someone sings words in no order to be known, and another sings them again. All to copy."""

from random import Random

from compress.data.world.facts import people
from compress.data.world.wordings import Question, worded

NUM_WORDS = 7
WORDS = (
    *("key", "lamp", "cup", "rope", "book", "coat", "knife", "spoon"),
    *("basket", "mirror", "candle", "ladder", "wheel", "stone", "feather", "ribbon"),
)
SUNG = ("{a} sings: {song}", "the song of {a} is {song}", "{a} hums the tune {song}")
AGAIN = ("{b} repeats: {song}", "{b} sings with {a}: {song}", "and {b} sings again: {song}")


def ask(r: Random, reserved: bool) -> Question:
    """Draw a song and how far it is sung again. Texts sing it to the end."""
    a, b = r.sample(people(), 2)
    song = r.sample(WORDS, NUM_WORDS)
    last = r.randrange(1, NUM_WORDS) if reserved else NUM_WORDS - 1
    first = worded(r, SUNG, reserved=False, a=a, song=" ".join(song))
    again = worded(r, AGAIN, reserved, a=a, b=b, song=" ".join(song[:last]))
    wrong = r.sample([word for word in song if word != song[last]], 3)
    return Question(f"{first}. {again}", song[last], tuple(wrong))
