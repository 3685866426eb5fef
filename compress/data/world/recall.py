"""Reading back: someone sings words in no order to be known, and another sings them again. All to copy."""

from random import Random

from compress.data.world.facts import people
from compress.data.world.wordings import Question, worded

NUM_WORDS = 5
WORDS = tuple(
    "key lamp cup rope book coat knife spoon basket mirror candle ladder wheel stone feather ribbon".split()  # noqa: SIM905
)
SUNG = ("{a} sings:", "the song of {a} is", "{a} hums the tune")
AGAIN = ("{b} repeats:", "{b} sings with {a}:", "and {b} sings again:")


def ask(r: Random, reserved: bool) -> Question:
    """Draw a song and how far it is sung again. Texts sing it to the end."""
    a, b = r.sample(people(), 2)
    song = r.sample(WORDS, NUM_WORDS)
    last = r.randrange(1, NUM_WORDS) if reserved else NUM_WORDS - 1
    begun = worded(r, SUNG, False, a=a)
    again = worded(r, AGAIN, reserved, a=a, b=b)
    prompt = f"{begun} {' '.join(song)}. {again} {' '.join(song[:last])}"
    wrong = r.sample([word for word in song if word != song[last]], 3)
    return Question(prompt, song[last], tuple(wrong))
