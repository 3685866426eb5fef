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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of the other families as slow, before marks are selected by."""
    for item in items:
        spec = getattr(item, "callspec", None)
        named = {value for value in spec.params.values() if isinstance(value, str)} if spec else set()
        if named & FAMILIES and not named & REPRESENTATIVES:
            item.add_marker(pytest.mark.slow)
