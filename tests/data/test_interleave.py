from itertools import islice

import numpy as np
import pytest

from compress.data.encode import Encoded
from compress.data.interleave import Place, Stream, interleave
from compress.errors import InputError


def stream(name, weight, lengths, label):
    """Documents of these lengths whose ids all are the stream's label, plus ten for every time it was read before."""

    def read(passes, num_skipped):
        for number, length in islice(enumerate(lengths, start=1), num_skipped, None):
            ids, learned = np.full(length, label + 10 * passes), np.ones(length, dtype=bool)
            yield Encoded(ids, learned, length, number)

    return Stream(name, weight, read)


def test_each_stream_has_its_share_of_the_tokens_at_every_point():
    long, short = stream("long", 0.7, [30] * 10_000, 0), stream("short", 0.3, [1, 5] * 10_000, 1)
    taken = [0, 0]
    for number, document in enumerate(islice(interleave([long, short], repeat=False), 3_000)):
        taken[document.ids[0]] += len(document.ids)
        if number > 100:
            assert abs(taken[0] - 0.7 * sum(taken)) <= 30
    assert sum(taken) > 10_000


def test_it_stops_when_the_stream_whose_turn_it_is_has_ended():
    short, long = stream("short", 1, [2, 2], 0), stream("long", 1, [2] * 100, 1)
    drawn = [int(d.ids[0]) for d in interleave([short, long], repeat=False)]
    assert drawn == [0, 1, 0, 1]


def test_a_stream_that_is_repeated_begins_anew_while_the_others_go_on():
    short, long = stream("short", 1, [2, 2], 0), stream("long", 1, [2] * 100, 1)
    drawn = [int(d.ids[0]) for d in islice(interleave([short, long], repeat=True), 10)]
    assert drawn == [0, 1, 0, 1, 10, 1, 10, 1, 20, 1]


def test_a_stream_with_nothing_to_repeat_is_refused():
    with pytest.raises(InputError, match="the mixture's hollow holds no text to repeat"):
        list(islice(interleave([stream("hollow", 1, [], 0), stream("b", 1, [2], 1)], repeat=True), 5))


@pytest.mark.parametrize("num_before", [0, 1, 4, 7, 12])
def test_it_goes_on_where_another_reader_was(num_before):
    def streams():
        return [stream("short", 0.7, [2, 3], 0), stream("long", 0.3, [2, 7, 1] * 9, 1)]

    undisturbed = [d.ids.tolist() for d in islice(interleave(streams(), repeat=True), 30)]
    places = [Place(), Place()]
    before = [d.ids.tolist() for d in islice(interleave(streams(), True, places), num_before)]
    after = [d.ids.tolist() for d in islice(interleave(streams(), True, [*places]), 30 - num_before)]
    assert before + after == undisturbed
