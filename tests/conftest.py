"""One thread a test process: the suite runs in parallel, and tiny tensors are slower on two threads than on one.

What is tested of every family is tested of a few by default, and of all by ``make test-slow`` and CI.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from compress import plugins

FAMILIES = frozenset(plugins.available("models.families"))
REPRESENTATIVES = frozenset({"llama", "qwen3", "gemma3_text", "gpt2", "qwen3_moe", "bert"})
"""Between them: tied and untied heads, norms in and after attention, windows, biases, Conv1D, experts, an encoder."""

LONGEST_FIRST = (
    "tests/test_rehearsals.py",
    "tests/engine/test_launch.py",
    "tests/test_kill.py",
    "tests/test_gpu_minutes.py",
    "tests/export/test_onnx.py",
    "tests/measure/test_undisturbed.py",
    "tests/engine/test_stopping.py",
    "tests/distill/test_cached_pipeline.py",
)
"""A module is one process's (``--dist loadscope``): one that takes minutes and comes last leaves the other idle."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest modules first, and mark tests of the other families as slow, before marks are selected by."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
    for item in items:
        spec = getattr(item, "callspec", None)
        named = {value for value in spec.params.values() if isinstance(value, str)} if spec else set()
        if named & FAMILIES and not named & REPRESENTATIVES:
            item.add_marker(pytest.mark.slow)
