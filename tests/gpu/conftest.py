"""Tests that need a card: `make test-gpu` runs them, and fails where there is none; elsewhere they are left out."""

import pytest
import torch


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/gpu/" in str(item.path):
            needs = item.get_closest_marker("cards")
            # With one card the rest of these tests still tells much: only what needs more is left out, by name.
            if needs and torch.cuda.device_count() < needs.args[0]:
                item.add_marker(pytest.mark.skip(reason=f"needs {needs.args[0]} GPUs"))
