import os

import pytest

from compress import cores


@pytest.mark.parametrize(
    ("files", "bound", "expected"),
    [
        ({}, 8, 8),
        ({"cpu.max": "max 100000"}, 8, 8),
        ({"cpu.max": "350000 100000"}, 8, 3),
        ({"cpu.max": "50000 100000"}, 8, 1),
        ({"cpu.max": "900000 100000"}, 2, 2),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 8, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8, 8),
    ],
)
def test_cores_are_those_that_may_be_used(files, bound, expected, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(cores, "LIMITS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    assert cores.usable_cores() == expected


def test_a_plan_counts_on_the_cores_that_may_be_used(monkeypatch):
    from compress.machine import Machine
    from compress.records import Work
    from compress.speed import seconds_of

    taken = []
    for num in (1, 2):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, num=num: range(num))
        taken.append(seconds_of(Work(flops=1e15), Machine()))
    assert taken[0] == 2 * taken[1]
