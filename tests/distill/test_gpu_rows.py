"""The kernel against dense fp64: on a GPU as it is, elsewhere in triton's interpreter, and nowhere without triton.

The interpreter must be chosen before triton is imported, so without a GPU this file runs itself in another process.

Shapes: g tokens of a group, V vocabulary.
"""

import os
import subprocess
import sys

import pytest
import torch

from tests.distill.test_rows import slow_rows

pytest.importorskip("triton")

ON_GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if ON_GPU and not INTERPRETED else "cpu"
# Without a GPU these run in the process that `test_in_the_interpreter` starts, not in the one that collects them.
runs_here = pytest.mark.skipif(
    not (ON_GPU or INTERPRETED), reason="test_in_the_interpreter runs it in a process of its own"
)


# On a GPU, and in the process this test starts, the tests below run themselves.
@pytest.mark.slow
@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="all others run here already, on the GPU or interpreted")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    found = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0 and " passed" in found.stdout, found.stdout + found.stderr


def rows(seed: int, num_tokens: int, vocabulary: int, scale: float = 3.0) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_tokens, vocabulary, generator=chance)


def judged(student_gV, teacher_gV, targets_g, dtype=torch.bfloat16, **settings):
    """What the kernel finds, on this machine's processor again."""
    from compress.distill.gpu_rows import kl_of_rows

    biases = settings.pop("biases", (None, None))
    biases = tuple(None if bias_V is None else bias_V.to(DEVICE) for bias_V in biases)
    slopes_gV = torch.full(student_gV.shape, 9.0, dtype=dtype, device=DEVICE)
    parts = (part.to(DEVICE) for part in (student_gV, teacher_gV, targets_g))
    losses_g = kl_of_rows(*parts, slopes_gV, biases=biases, **settings)
    return losses_g.cpu(), slopes_gV.cpu()


@runs_here
@pytest.mark.parametrize("label_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("vocabulary", [7, 2048, 5003])
def test_losses_and_gradients_are_those_of_the_formula(vocabulary, has_bias, cap, temperature, label_weight):
    student_gV, teacher_gV = rows(0, 3, vocabulary), rows(1, 3, vocabulary)
    targets_g = torch.tensor([0, vocabulary - 1, vocabulary // 2])
    settings = {
        "biases": tuple(rows(seed, 1, vocabulary)[0] if has_bias else None for seed in (2, 3)),
        "softcaps": (None, None) if cap is None else (cap, cap + 1),
        "temperature": temperature,
        "label_weight": label_weight,
    }
    losses_g, slopes_gV = judged(student_gV, teacher_gV, targets_g, **settings)
    exact_g, exact_gV = slow_rows(student_gV, teacher_gV, targets_g, **settings)
    torch.testing.assert_close(losses_g.double(), exact_g, rtol=1e-5, atol=1e-5)
    # Of every row, and every id's is right but for its rounding to bf16.
    assert float(((slopes_gV - exact_gV).norm(dim=-1) / exact_gV.norm(dim=-1)).max()) < 0.01
    torch.testing.assert_close(slopes_gV.double(), exact_gV, rtol=0.01, atol=2e-6)


@runs_here
def test_the_gradient_is_as_exact_as_its_dtype():
    student_gV, teacher_gV, targets_g = rows(0, 2, 300), rows(1, 2, 300), torch.tensor([5, 299])
    _, slopes_gV = judged(student_gV, teacher_gV, targets_g, torch.float32, label_weight=0.5)
    _, exact_gV = slow_rows(student_gV, teacher_gV, targets_g, label_weight=0.5)
    torch.testing.assert_close(slopes_gV.double(), exact_gV, rtol=1e-5, atol=1e-7)


@runs_here
def test_a_student_close_to_its_teacher_and_far_from_zero_is_within_one_per_cent():
    """All logits near −100, as GPT-2's are, and a gradient that is a small difference."""
    teacher_gV = rows(1, 2, 5003) - 100
    student_gV, targets_g = teacher_gV + 0.05 * rows(0, 2, 5003), torch.tensor([1, 2])
    losses_g, slopes_gV = judged(student_gV, teacher_gV, targets_g)
    exact_g, exact_gV = slow_rows(student_gV, teacher_gV, targets_g)
    torch.testing.assert_close(losses_g.double(), exact_g, rtol=0.01, atol=1e-5)
    assert float((slopes_gV - exact_gV).norm() / exact_gV.norm()) < 0.01


@runs_here
def test_extreme_logits_make_no_infinity():
    student_gV, teacher_gV = rows(0, 2, 2049, scale=400), rows(1, 2, 2049, scale=400)
    targets_g = torch.tensor([3, 2048])
    settings = {"label_weight": 0.25, "temperature": 2.0}
    losses_g, slopes_gV = judged(student_gV, teacher_gV, targets_g, **settings)
    exact_g, exact_gV = slow_rows(student_gV, teacher_gV, targets_g, **settings)
    torch.testing.assert_close(losses_g.double(), exact_g, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(slopes_gV.double(), exact_gV, rtol=0.01, atol=1e-3)


@runs_here
def test_rows_may_lie_apart_and_nothing_is_written_between_them():
    """As in a product of more ids, and gradients whose rows begin at multiples of 16 bytes."""
    from compress.distill.gpu_rows import kl_of_rows

    wide_gV, teacher_gV, targets_g = rows(0, 3, 20), rows(1, 3, 13), torch.tensor([0, 5, 12])
    student_gV, slopes_gS = wide_gV[:, :13], torch.full((3, 16), 9.0, device=DEVICE)
    kl_of_rows(wide_gV.to(DEVICE)[:, :13], teacher_gV.to(DEVICE), targets_g.to(DEVICE), slopes_gS[:, :13])
    _, exact_gV = slow_rows(student_gV, teacher_gV, targets_g)
    torch.testing.assert_close(slopes_gS[:, :13].cpu().double(), exact_gV, rtol=1e-4, atol=1e-6)
    assert (slopes_gS[:, 13:] == 9).all()
