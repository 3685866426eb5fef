"""Work with gradients in it, on GPUs in one order where that is possible."""

import pytest
import torch

from compress.models.determinism import in_one_order

REFUSED = "scan_backward does not have a deterministic implementation"


def modes(*refusals):
    """Work that notes under which mode it is done, and is refused at first."""
    seen, left = [], list(refusals)

    def work():
        seen.append((
            torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        ))  # fmt: skip
        if left:
            raise RuntimeError(left.pop())
        return "done"

    return work, seen


def test_a_processor_has_one_order_anyway():
    work, seen = modes()
    assert in_one_order("cpu", work) == "done" and seen == [(False, False)]


def test_no_other_algorithms_are_allowed_on_a_gpu():
    work, seen = modes()
    assert in_one_order("cuda", work) == "done" and seen == [(True, False)]
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_has_no_deterministic_algorithm_is_done_again_with_another():
    work, seen = modes(REFUSED)
    assert in_one_order("cuda", work) == "done" and seen == [(True, False), (True, True)]


def test_any_other_error_is_passed_on():
    work, seen = modes("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        in_one_order("cuda", work)
    assert len(seen) == 1 and not torch.are_deterministic_algorithms_enabled()
