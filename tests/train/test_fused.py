"""The fused head against dense fp64, with and without rounding.

Shapes: N tokens, D hidden size, V vocabulary.
"""

import math
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional

from compress import plugins
from compress.distill.divergences import named
from compress.train import fused, projection
from compress.train.distribution import Distribution, cross_entropy
from compress.train.fused import GroupJudge, fused_loss
from compress.train.projection import Projection
from tests.distill.test_losses import setting

N, D, V = 70, 6, 11


@pytest.fixture
def small_pieces(monkeypatch):
    """Groups of 16 tokens in tiles of 3: five groups, the last one shorter, and so is each group's last tile."""
    monkeypatch.setattr(fused, "GROUP_BYTES", {"cpu": 1})
    monkeypatch.setattr(fused, "TILE_BYTES", {"cpu": 3 * 4 * V})


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("bias", [False, True])
def test_a_fused_loss_and_its_gradients_are_those_of_the_whole(small_pieces, bias, softcap):
    torch.manual_seed(0)
    layer = nn.Linear(D, V, bias=bias, dtype=torch.float64)
    hidden_ND = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    targets_N, weights_N = torch.randint(0, V, (N,)), torch.rand(N, dtype=torch.float64)
    inputs = [hidden_ND, *layer.parameters()]
    seen = []

    def judge(student, tokens):
        seen.append((tokens.start, tokens.stop))
        loss_n, slope_nV = cross_entropy(student, targets_N[tokens])
        return loss_n * weights_N[tokens], slope_nV * weights_N[tokens, None]

    ours = fused_loss(hidden_ND, layer.weight, layer.bias, lambda *_: judge, softcap)
    logits_NV = layer(hidden_ND)
    if softcap:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    whole = (weights_N * functional.cross_entropy(logits_NV, targets_N, reduction="none")).sum()
    assert seen[:7] == [(0, 3), (3, 6), (6, 9), (9, 12), (12, 15), (15, 16), (16, 19)] and seen[-1] == (
        67,
        70,
    )
    torch.testing.assert_close(ours, whole)
    pairs = zip(torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * whole, inputs), strict=True)
    for our, their in pairs:
        torch.testing.assert_close(our, their)


def test_without_gradients_the_loss_is_the_same():
    layer, hidden_ND, targets_N = nn.Linear(D, V), torch.randn(N, D), torch.randint(0, V, (N,))
    with torch.no_grad():
        ours = fused_loss(
            hidden_ND,
            layer.weight,
            layer.bias,
            lambda *_: lambda student, tokens: cross_entropy(student, targets_N[tokens]),
        )
        torch.testing.assert_close(
            ours, functional.cross_entropy(layer(hidden_ND), targets_N, reduction="sum")
        )


def test_no_token_at_all_is_no_loss_and_no_gradient():
    layer, hidden_ND = nn.Linear(D, V), torch.randn(0, D, requires_grad=True)
    total = fused_loss(hidden_ND, layer.weight, layer.bias, lambda *_: pytest.fail("nothing to judge"))
    total.backward()
    assert float(total.detach()) == 0
    assert not layer.weight.grad.any() and layer.weight.grad.shape == (V, D)


def peaked(vocabulary: int, width: int, shift: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states and an output matrix whose logits are a language model's: few likely ids, a long tail.

    `shift` is added to all logits of a token: the softmax does not see it, rounding does.
    """
    chance = torch.Generator().manual_seed(seed)
    weight_VD = 0.05 * torch.randn(vocabulary, width, generator=chance)
    likely_NK = torch.randint(0, vocabulary, (48, 12), generator=chance)
    share_NK = 14 * torch.rand(48, 12, generator=chance).square()
    hidden_ND = (weight_VD[likely_NK] * share_NK[..., None]).sum(1) + torch.randn(48, width, generator=chance)
    common_D = functional.normalize(torch.randn(width, generator=chance), dim=0)
    return hidden_ND + 2 * shift * common_D, weight_VD + 0.5 * common_D


@pytest.mark.parametrize("shift", [0.0, 10.0])
@pytest.mark.parametrize("name", plugins.available("distill.losses"))
def test_in_bf16_the_gradient_in_the_logits_is_within_one_per_cent(name, shift):
    """Of dense fp64 on the same inputs, for a student that is close to its teacher."""
    hidden_ND, weight_VD = (part.bfloat16() for part in peaked(8_000, 256, shift, seed=1))
    near_ND = hidden_ND.float() * (
        1 + 0.1 * torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(2))
    )
    student, teacher = (Projection.of(states, weight_VD) for states in (near_ND.bfloat16(), hidden_ND))
    divergence, tokens = named(setting(name)), slice(0, len(hidden_ND))

    found = [each.distribution(each.product(tokens), tokens) for each in (student, teacher)]
    exact = [Distribution.of(each.hidden.double() @ weight_VD.double().T) for each in (student, teacher)]
    rounded = [Distribution.of((each.hidden @ weight_VD.T).float()) for each in (student, teacher)]
    (loss_N, ours_NV), (exact_N, exact_NV), (_, rounded_NV) = (
        divergence(*each) for each in (found, exact, rounded)
    )
    error, plain_error = (float((each - exact_NV).norm() / exact_NV.norm()) for each in (ours_NV, rounded_NV))
    # Total variation's gradient jumps where both probabilities are equal.
    assert error < (0.05 if name == "total_variation" else 0.01) and error < plain_error / 4
    torch.testing.assert_close(loss_N.double().sum(), exact_N.sum(), rtol=0.01, atol=0)


@pytest.mark.parametrize("vocabulary", [2_000, 32_768])
def test_in_bf16_a_student_hardly_different_from_a_flat_teacher_has_its_gradient_within_one_per_cent(
    vocabulary,
):
    """Entropies of about 3 nats, a KL of about 0.007: the gradient is the small difference of large numbers."""
    chance, width = torch.Generator().manual_seed(0), 256

    def noise(*shape):
        return torch.randn(*shape, generator=chance)

    teacher_VD, size = noise(vocabulary, width) / width**0.5, (2 * math.log(vocabulary)) ** 0.5
    teacher_ND = size * functional.normalize(noise(32, width), dim=-1) * width**0.5
    pairs = [
        (
            teacher_ND * (1 + 0.02 * noise(32, width)),
            teacher_VD + 0.02 * noise(vocabulary, width) / width**0.5,
        ),
        (teacher_ND, teacher_VD),
    ]
    pairs, tokens = [(states.bfloat16(), matrix.bfloat16()) for states, matrix in pairs], slice(0, 32)
    ours = [Projection.of(*pair) for pair in pairs]
    _, ours_NV = named("forward_kl")(*(each.distribution(each.product(tokens), tokens) for each in ours))
    loss_N, exact_NV = named("forward_kl")(
        *(Distribution.of(states.double() @ matrix.double().T) for states, matrix in pairs)
    )
    assert 0.004 < float(loss_N.mean()) < 0.01
    assert float((ours_NV - exact_NV).norm() / exact_NV.norm()) < 0.01


@pytest.mark.parametrize("vocabulary", [259, 2_048])
@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0, 3.0, 30.0], ids=lambda size: f"times {size}")
def test_all_likely_ids_are_found_and_one_of_every_token(size, vocabulary):
    logits_NV = size * torch.randn(20, vocabulary, generator=torch.Generator().manual_seed(0))
    tokens_M, ids_M = projection._likely(logits_NV)
    found_NV = torch.zeros_like(logits_NV, dtype=torch.bool)
    found_NV[tokens_M, ids_M] = True
    assert found_NV[logits_NV.softmax(-1) > projection.REFINED_ABOVE].all()
    assert found_NV.any(-1).all() and torch.equal(tokens_M, tokens_M.sort().values)
    assert len(ids_M) == found_NV.sum()
    # Where all are alike there is nothing to compute again; elsewhere it is not much more than must be.
    if vocabulary == 2_048 and size > 0:
        assert len(ids_M) < 4 * int((logits_NV.softmax(-1) > projection.REFINED_ABOVE).sum()) + 25


@pytest.mark.parametrize("broken", [[0, 1, 2], [2]], ids=["all tokens", "the last"])
def test_in_bf16_logits_that_are_no_numbers_give_such_a_loss(broken):
    hidden_ND, weight_VD = (part.bfloat16() for part in peaked(640, 64, 0.0, seed=1))
    hidden_ND[broken] = torch.nan
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student = Projection.of(hidden_ND[:3], weight_VD)
    found = student.distribution(student.product(slice(0, 3)), slice(0, 3))
    assert found.log_normalizer.isnan().nonzero().flatten().tolist() == broken


def test_under_autocast_loss_and_gradients_are_close_to_the_exact_ones_and_products_are_fast(small_pieces):
    hidden_ND, weight_VD = peaked(2_000, 64, 0.0, seed=3)
    targets_N = torch.arange(len(hidden_ND))
    inputs = [hidden_ND.requires_grad_(), weight_VD.requires_grad_()]
    dtypes = set()

    def judge(student, tokens):
        dtypes.add(student.logits.dtype)
        return cross_entropy(student, targets_N[tokens])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fused_loss(hidden_ND, weight_VD, None, lambda *_: judge)
        assert Projection.of(hidden_ND, weight_VD).product(slice(0, 2)).dtype == torch.bfloat16
    whole = functional.cross_entropy(hidden_ND.double() @ weight_VD.double().T, targets_N, reduction="sum")
    assert ours.dtype == torch.float32 and dtypes == {torch.float32}
    torch.testing.assert_close(ours.double(), whole, rtol=1e-3, atol=0)
    for our, their in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(whole, inputs), strict=True):
        assert our.dtype == torch.float32
        assert float((our - their).norm() / their.norm()) < 0.01


def test_under_autocast_a_judge_sees_and_computes_what_it_does_without(small_pieces):
    """Autocast would multiply what a judge has in fp32, and the logits that are refined, in bf16."""
    hidden_ND, weight_VD = (part.bfloat16() for part in peaked(2_000, 64, 0.0, seed=3))

    def seen():
        found = []

        def judge(student, tokens):
            found.append(torch.linalg.vecdot(student.probs, student.logits))
            return each_is_one(student, tokens)

        fused_loss(hidden_ND, weight_VD, None, lambda *_: judge)
        return torch.cat(found)

    alone = seen()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(seen(), alone)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What a GPU does: products of bf16 come out in fp32, and the output matrix's gradient is summed in place."""
    monkeypatch.setattr(Projection, "is_rounded", False)
    monkeypatch.setattr(projection, "_wide_product", lambda left, right: left.float() @ right.float())
    monkeypatch.setattr(fused, "_sums_in_place", lambda device: True)
    monkeypatch.setattr(fused, "WEIGHT_ROWS", 300)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_as_on_a_gpu_loss_and_gradients_are_close_to_the_exact_ones(
    small_pieces, as_on_a_gpu, softcap, weight_dtype
):
    hidden_ND, weight_VD = (part.bfloat16() for part in peaked(2_000, 64, 0.0, seed=3))
    targets_N = torch.arange(len(hidden_ND))
    exact = [hidden_ND.double().requires_grad_(), weight_VD.double().requires_grad_()]
    inputs = [hidden_ND.requires_grad_(), weight_VD.to(weight_dtype).requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fused_loss(
            *inputs, None, lambda *_: lambda found, tile: cross_entropy(found, targets_N[tile]), softcap
        )
    logits_NV = exact[0] @ exact[1].T
    logits_NV = logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)
    whole = functional.cross_entropy(logits_NV, targets_N, reduction="sum")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), whole, rtol=1e-5, atol=0)
    found, expected = torch.autograd.grad(3 * ours, inputs), torch.autograd.grad(3 * whole, exact)
    for our, their, given in zip(found, expected, inputs, strict=True):
        assert our.dtype == given.dtype
        assert float((our - their).norm() / their.norm()) < 0.01


class OfTeacher(GroupJudge):
    """Holds a teacher's product, as a judge does; its losses are 2, and their gradient is 1 in every logit."""

    def __init__(self, products):
        self.theirs_gV = torch.zeros(16, V)
        self.products = products

    def judge_group(self, product_gV):
        self.products += [weakref.ref(product_gV), weakref.ref(self.theirs_gV)]
        return torch.full((len(product_gV),), 2.0), torch.ones_like(product_gV)


def test_whole_groups_can_be_judged_and_their_products_end_with_them(small_pieces):
    layer, hidden_ND = nn.Linear(D, V), torch.randn(N, D, requires_grad=True)
    products = []

    def criterion(_student, _group):
        # The student's product of this group is there by now; it is not yet in the list.
        assert all(product() is None for product in products)
        return OfTeacher(products)

    total = fused_loss(hidden_ND, layer.weight, layer.bias, criterion)
    total.backward()
    assert len(products) == 2 * 5 and float(total.detach()) == 2 * N
    torch.testing.assert_close(layer.weight.grad, hidden_ND.detach().sum(0).expand(V, D))
    torch.testing.assert_close(layer.bias.grad, torch.full((V,), float(N)))
    torch.testing.assert_close(hidden_ND.grad, layer.weight.detach().sum(0).expand(N, D))


def test_where_none_is_recorded_no_gradient_is_computed(monkeypatch):
    monkeypatch.setattr(
        fused, "_Gradients", lambda *arguments: pytest.fail("held-out text is not learned from")
    )
    layer, hidden_ND = nn.Linear(D, V), torch.randn(N, D, requires_grad=True)
    with torch.no_grad():
        total = fused_loss(hidden_ND.detach(), layer.weight, layer.bias, lambda *_: each_is_one)
    assert float(total) == N


def each_is_one(found, tile):
    return torch.ones(len(found.logits)), found.probs


def test_a_gpus_groups_fill_the_blocks_of_its_matrix_products():
    inputs = (torch.empty(0, 4096, device="meta", dtype=torch.bfloat16) for _ in range(2))
    group_tokens, tile_tokens = fused._sizes(Projection(*inputs), 128_256)
    assert group_tokens == 1024 and tile_tokens * 4 * 128_256 <= 128 * 2**20


def test_a_bf16_layers_loss_is_summed_in_fp32():
    """In bf16 the sum would stay at 256: half of a step there is 1."""
    layer, hidden_ND = nn.Linear(D, V, dtype=torch.bfloat16), torch.randn(N, D, dtype=torch.bfloat16)
    total = fused_loss(hidden_ND.repeat(10, 1), layer.weight, layer.bias, lambda *_: each_is_one)
    assert total.dtype == torch.float32 and float(total.detach()) == 10 * N
