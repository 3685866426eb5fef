"""What a pruning step's settings mean for its key."""

import pytest

from compress.pipeline.keys import ingredients
from compress.plugins import internal


@pytest.mark.parametrize("use", ["prune", "prune.width", "prune.depth"])
def test_where_weights_are_kept_does_not_make_another_result(use):
    config = internal(use).Config

    def key(**settings):
        asked = config(target={"params": "50%"}, **settings)
        return ingredients(use, asked, "parent", {"calibration": "data"}, seed=0)

    assert key(memory="stream") == key(memory="ram") == key()
    assert key(tokens=1000) != key()
