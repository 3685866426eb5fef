import time

import numpy as np

from compress.meters.memory import (
    AnonymousPeak,
    anonymous_bytes,
    fit_together,
    peak_resident_bytes,
    resident_bytes,
)
from compress.records import Artifact, ModelSpec


def test_the_peak_is_no_less_than_now():
    now = resident_bytes()
    assert anonymous_bytes() > 0
    assert now <= peak_resident_bytes()


def test_sampling_sees_memory_that_is_gone_again():
    size = 64 * 2**20
    before = anonymous_bytes()
    with AnonymousPeak(interval_seconds=0.001) as peak:
        block = np.ones(size, dtype=np.uint8)
        time.sleep(0.05)
        del block
    assert peak.bytes - before > 0.9 * size


def test_models_fit_together_only_where_memory_is_enough(tmp_path):
    (tmp_path / "weights").write_bytes(b"0" * 1000)
    small = Artifact(key="small", kind="hf", path=tmp_path)
    spec = ModelSpec(config={}, tensors={}, num_parameters=2**50)
    huge = Artifact(key="huge", kind="packed", path=tmp_path, spec=spec)
    assert fit_together([small, small], "cpu")
    assert not fit_together([small, huge], "cpu")
