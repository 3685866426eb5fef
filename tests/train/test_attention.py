"""Shapes: B rows, T positions, H heads, D size of a head or of hidden states, N documents' tokens end to end."""

import inspect
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import varlen
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from compress.data.batch import Batch
from compress.distill.cached_objective import CachedDistillation
from compress.distill.divergences import named
from compress.distill.hidden import NOTHING, Matching
from compress.distill.objective import Distillation, Recipe
from compress.distill.signals import About
from compress.distill.targets import sparse_targets
from compress.models.checkpoint import quiet
from compress.train import attention
from compress.train.attention import PACKED, as_mask, implementation, packed_attention
from compress.train.head import hidden_states
from compress.train.memory import recompute_activations
from compress.train.objective import NextToken
from tests.models.tiny import TRAINABLE, tiny_model, token_ids

LENGTHS = [[7, 13], [4, 5, 11]]
IDS_BT = token_ids(2, 20)
POSITIONS_BT = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
BATCH = Batch(IDS_BT, POSITIONS_BT)
ENDS = [0, 7, 20, 24, 29, 40]

WINDOWED = {
    "mistral": {"sliding_window": 4},
    "phi3": {"sliding_window": 3},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": 4, "sliding_window_pattern": 2},
}
FAMILIES = [name for name in TRAINABLE if name != "gemma2"]
CASES = [*((name, {}) for name in FAMILIES), *WINDOWED.items()]


@pytest.fixture(autouse=True)
def _no_row_is_short(monkeypatch):
    """Rows here are of 20 tokens, and most tests are about longer ones."""
    monkeypatch.setattr(attention, "SHORT_ROW", 0)


def model_of(family, seed=0, **changes):
    model = tiny_model(family, seed=seed, **changes)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def packed(family, seed=0, **changes):
    model = model_of(family, seed, **changes)
    model.set_attn_implementation(PACKED)
    return model


def alone(model, ids_BT):
    """The hidden states of each document by itself, by transformers' plain products."""
    model.set_attn_implementation("eager")
    ids_N = ids_BT.flatten()
    parts = [
        model.base_model(input_ids=ids_N[None, a:b], use_cache=False).last_hidden_state[0, :-1]
        for a, b in pairwise(ENDS)
    ]
    return torch.cat(parts)


@contextmanager
def inputs_of_kernels():
    """Note what reaches scaled_dot_product_attention."""
    seen, kernel = [], functional.scaled_dot_product_attention

    def noting(query, key, value, attn_mask=None, **rest):
        seen.append((query.shape, key.shape, attn_mask, rest))
        return kernel(query, key, value, attn_mask=attn_mask, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", noting)
        yield seen


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    ("family", "changes"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_documents_of_a_row_are_read_as_each_is_alone(family, changes, recompute):
    model = packed(family, **changes)
    weights = list(model.base_model.parameters())
    recompute_activations(model.train(), recompute)
    ours_ND = hidden_states(model, BATCH)
    slopes_ND = torch.randn(ours_ND.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((ours_ND * slopes_ND).sum(), weights, allow_unused=True)
    recompute_activations(model, False)
    theirs_ND = alone(model, IDS_BT)
    theirs = torch.autograd.grad((theirs_ND * slopes_ND).sum(), weights, allow_unused=True)
    ours_ND, theirs_ND = ours_ND.detach(), theirs_ND.detach()
    torch.testing.assert_close(ours_ND, theirs_ND, rtol=1e-5, atol=1e-5 * float(theirs_ND.abs().max()))
    for our, their in zip(ours, theirs, strict=True):
        assert (our is None) == (their is None)
        if our is not None and their is not None:
            torch.testing.assert_close(our, their, rtol=1e-4, atol=2e-5 * float(their.abs().max()))


@pytest.mark.parametrize(("family", "changes"), [("llama", {}), ("gpt2", {}), *WINDOWED.items()])
def test_short_rows_are_read_whole_under_a_mask_and_come_to_the_same(family, changes, monkeypatch):
    theirs_ND = alone(packed(family, **changes), IDS_BT).detach()
    monkeypatch.setattr(attention, "SHORT_ROW", 20)
    model = packed(family, **changes)
    with inputs_of_kernels() as seen:
        ours_ND = hidden_states(model, BATCH).detach()
    torch.testing.assert_close(ours_ND, theirs_ND, rtol=1e-5, atol=1e-5 * float(theirs_ND.abs().max()))
    assert [query[:1] + query[2:3] for query, *_ in seen] == [(2, 20)] * model.config.num_hidden_layers
    assert all(mask is not None for _, _, mask, _ in seen)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_mask_reaches_the_kernel_and_no_heads_are_copied(family):
    model = packed(family)
    with inputs_of_kernels() as seen:
        hidden_states(model, BATCH)
    lengths = [n for row in LENGTHS for n in row]
    assert [query[2] for query, *_ in seen] == lengths * model.config.num_hidden_layers
    assert all(mask is None and rest["is_causal"] for _, _, mask, rest in seen)
    kv_heads = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    assert {key[1] for _, key, *_ in seen} == {kv_heads}


def test_whole_rows_are_one_call_a_layer_without_a_mask():
    model = packed("llama")
    with inputs_of_kernels() as seen:
        hidden_states(model, Batch(IDS_BT))
    assert [query[:1] + query[2:3] for query, *_ in seen] == [(2, 20)] * model.config.num_hidden_layers
    assert all(mask is None and rest["is_causal"] for _, _, mask, rest in seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_rows_are_computed_bit_for_bit_as_by_sdpa(family):
    model = packed(family)
    ours = hidden_states(model, Batch(IDS_BT))
    model.set_attn_implementation("sdpa")
    assert torch.equal(ours, hidden_states(model, Batch(IDS_BT)))


def flops(model, batch):
    """Those of attention: in a step with this batch."""
    cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forward(query, key, value, *_, out_shape=None, **__):
        return sdpa_flop_count(query, key, value)

    def backward(slope, query, key, value, *_, out_shape=None, **__):
        return sdpa_backward_flop_count(slope, query, key, value)

    objective = NextToken(model)  # it tries the model
    with FlopCounterMode(display=False, custom_mapping={cpu: forward, back: backward}) as counter:
        loss, _ = objective(batch)
        loss.backward()
    counts = counter.get_flop_counts()["Global"]
    return counts[cpu], counts[back]


def test_a_step_costs_the_squares_of_its_documents_and_nothing_across_them():
    model = packed("llama")
    config = model.config
    head = config.hidden_size // config.num_attention_heads if config.head_dim is None else config.head_dim
    product = 2 * config.num_attention_heads * head * config.num_hidden_layers
    squares = sum(n * n for row in LENGTHS for n in row)
    assert flops(model, BATCH) == (2 * product * squares, 5 * product * squares)


def test_masks_cost_whole_rows():
    """What the count above is worth: the same step with transformers' masks."""
    model = packed("llama")
    model.set_attn_implementation("sdpa")
    assert flops(model, BATCH)[0] > 1.9 * flops(packed("llama"), BATCH)[0]


@pytest.mark.parametrize("objective", ["next token", "distillation", "hidden states too", "cached teacher"])
@pytest.mark.parametrize("batch", [BATCH, Batch(IDS_BT)], ids=["packed", "whole"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_step_looks_at_nothing_that_is_on_the_device(objective, batch, recompute, monkeypatch):
    """On ``meta`` there are no values: to ask for one fails, where on a GPU it would wait for all that was queued."""
    monkeypatch.setattr(attention, "_has_kernel", lambda *_: True)
    _without_autocast(monkeypatch)
    student, teacher = packed("llama"), packed("llama", seed=1)
    recompute_activations(student.train(), recompute)
    module = NextToken(student)
    if objective == "cached teacher":
        module = CachedDistillation(student, _Signals(), 0.3, 259)
    elif objective != "next token":
        weight = 0.5 if objective == "hidden states too" else 0.0
        matching = _same_layers(student) if weight else NOTHING
        recipe = Recipe(named("forward_kl"), 2.0, 0.3, weight)
        module = Distillation(student, teacher, recipe, 259, matching=matching)
    module.to("meta")
    learned_BT = torch.rand(IDS_BT.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    marked = Batch(batch.ids, batch.positions, learned_BT, torch.arange(2))
    _Signals.num_targets = len(marked.targets)
    loss, count = module(marked.to("meta"))
    loss.backward()
    assert 0 < count < IDS_BT.numel()
    assert all(p.grad is not None and p.grad.is_meta for p in student.parameters())


def test_transformers_masks_would_look(monkeypatch):
    """What the test above is worth."""
    _without_autocast(monkeypatch)
    model = packed("llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match=r"meta"):
        hidden_states(model.to("meta"), BATCH.to("meta"))


def _without_autocast(monkeypatch):
    """``meta`` is no device that autocast knows."""
    autocast = torch.autocast

    def none_for_meta(device, *args, **kwargs):
        return nullcontext() if device == "meta" else autocast(device, *args, **kwargs)

    monkeypatch.setattr(torch, "autocast", none_for_meta)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)


class _Signals:
    """Of a teacher that finds everything as likely."""

    num_targets = 0
    about = About(vocabulary=259, top_k=8, samples=4, temperature=2.0)

    def at(self, rows):
        assert rows == [0, 1]
        return sparse_targets(torch.zeros(self.num_targets, 259), 8, torch.zeros(self.num_targets), 4)


def _same_layers(model):
    names = [f"model.layers.{i}" for i in range(model.config.num_hidden_layers)]
    return Matching(names, names, range(model.config.hidden_size))


class PlainKernel:
    """What `torch.nn.attention.varlen.varlen_attn` says it computes, written out; it notes what it is given."""

    def __init__(self):
        self.calls = []

    def __call__(
        self, query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa
    ):
        assert query.dim() == key.dim() == value.dim() == 3
        assert all(state.stride(-1) == 1 for state in (query, key, value))
        for starts in (cu_seq_q, cu_seq_k):
            assert starts.dtype == torch.int32 and starts.is_contiguous()
            assert starts.diff().max() == max_q == max_k and starts[-1] == len(query)
        assert enable_gqa == (query.shape[1] != key.shape[1])
        self.calls.append((cu_seq_q.tolist(), window_size))
        left, right = window_size
        assert right == 0
        repeats = query.shape[1] // key.shape[1]
        outputs = []
        for a, b in pairwise(cu_seq_q.tolist()):
            keys, values = (state[a:b].repeat_interleave(repeats, 1) for state in (key, value))
            scores = torch.einsum("qhd,khd->hqk", query[a:b], keys) * scale
            back = torch.arange(b - a)[:, None] - torch.arange(b - a)
            seen = (back >= 0) & ((back <= left) | torch.tensor(left < 0))
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
            outputs.append(torch.einsum("hqk,khd->qhd", weights, values))
        return torch.cat(outputs)


@pytest.mark.parametrize(
    ("family", "changes"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_kernel_of_a_gpu_is_told_documents_windows_and_heads(family, changes, monkeypatch):
    kernel, model = PlainKernel(), packed(family, **changes)
    monkeypatch.setattr(attention, "_has_kernel", lambda *_: True)
    monkeypatch.setattr(attention, "KERNEL", kernel)
    with torch.no_grad():
        ours_ND, theirs_ND = hidden_states(model, BATCH), alone(model, IDS_BT)
    torch.testing.assert_close(ours_ND, theirs_ND, rtol=1e-5, atol=1e-5 * float(theirs_ND.abs().max()))
    assert len(kernel.calls) == model.config.num_hidden_layers
    assert all(starts == ENDS for starts, _ in kernel.calls)
    window = getattr(model.config, "sliding_window", None)
    window = None if window is None or window >= 13 else window  # as long as the longest document
    assert {left for _, (left, _) in kernel.calls} <= ({-1} if window is None else {-1, window - 1})
    assert window is None or any(left == window - 1 for _, (left, _) in kernel.calls)


def test_the_kernel_is_given_what_autocast_makes_of_its_inputs(monkeypatch):
    kernel, model = PlainKernel(), packed("llama")
    dtypes = []

    def noting(query, key, value, *args, **kwargs):
        dtypes.append({state.dtype for state in (query, key, value)})
        return kernel(query, key, value, *args, **kwargs)

    monkeypatch.setattr(attention, "_has_kernel", lambda *_: True)
    monkeypatch.setattr(attention, "KERNEL", noting)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden_states(model, BATCH)
    assert dtypes == [{torch.bfloat16}] * model.config.num_hidden_layers


def test_the_kernel_of_this_torch_takes_what_it_is_given():
    taken = inspect.signature(varlen.varlen_attn).parameters
    assert [*taken][:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= taken.keys() and attention.KERNEL is varlen.varlen_attn


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"dtype": torch.float32}, False),
        ({"size": 84}, False),
        ({"size": 264}, False),
        ({"value": 64}, False),
        ({"dropout": 0.1}, False),
        ({"is_cuda": False}, False),
    ],
    ids=str,
)
def test_the_kernel_is_taken_where_it_can(changes, expected, monkeypatch):
    wanted = {"dtype": torch.bfloat16, "size": 128, "value": None, "dropout": 0.0, "is_cuda": True} | changes
    monkeypatch.setattr(attention, "_has_flash", lambda _: True)
    query = SimpleNamespace(
        is_cuda=wanted["is_cuda"],
        dtype=wanted["dtype"],
        device=torch.device("cuda" if wanted["is_cuda"] else "cpu"),
        shape=(1, 4, 20, wanted["size"]),
    )
    value = SimpleNamespace(shape=(1, 2, 20, wanted["value"] or wanted["size"]))
    assert attention._has_kernel(query, value, wanted["dropout"]) is expected


@pytest.mark.parametrize(
    ("capability", "kernel", "expected"),
    [((8, 0), True, True), ((7, 5), True, False), ((9, 0), False, False)],
)
def test_where_torch_or_the_card_has_no_such_kernel_it_is_not_taken(
    capability, kernel, expected, monkeypatch
):
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if not kernel:
        monkeypatch.setattr(attention, "KERNEL", lambda query, key, value, is_causal: None)
    attention._has_flash.cache_clear()
    assert attention._has_flash(torch.device("cuda")) is expected
    attention._has_flash.cache_clear()


@pytest.mark.parametrize("window", [None, 4])
def test_what_the_kernel_cannot_do_a_mask_does(window):
    starts = torch.tensor(ENDS, dtype=torch.int32)
    query = torch.empty(2, 4, 20, 8)
    seen = attention._mask(starts, query, window)
    bands = [attention._band(b - a, window) for a, b in pairwise(ENDS)]
    expected = torch.stack([torch.block_diag(*bands[:2]), torch.block_diag(*bands[2:])]).bool()
    assert torch.equal(seen, expected[:, None])


def test_dropout_is_applied_inside_documents():
    module, states = nn.Module(), [torch.randn(2, 2, 20, 8) for _ in range(3)]
    mask = as_mask(BATCH.documents)
    torch.manual_seed(0)
    dropped, _ = packed_attention(module, *states, mask, dropout=0.5)
    kept, _ = packed_attention(module, *states, mask)
    assert not torch.equal(dropped, kept) and dropped.shape == kept.shape == (2, 20, 2, 8)


def test_what_would_be_left_out_is_refused():
    states = [torch.randn(2, 2, 20, 8) for _ in range(3)]
    with pytest.raises(ValueError, match="does not compute softcap"):
        packed_attention(nn.Module(), *states, as_mask(BATCH.documents), softcap=50.0)


def test_with_padding_and_a_cache_it_is_sdpa():
    model = packed("llama")
    ids_BT, mask_BT = IDS_BT[:, :6], torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    ours = model.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=4, do_sample=False, pad_token_id=0)
    model.set_attn_implementation("sdpa")
    theirs = model.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", TRAINABLE)
def test_models_of_all_families_are_told_documents_but_those_that_bend_scores(family):
    assert implementation(tiny_model(family), PACKED) == ("eager" if family == "gemma2" else PACKED)
    assert implementation(tiny_model(family), "eager") == "eager"


UNKNOWN = {
    "cohere2": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "exaone4": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo3": {"sliding_window": 4},
    "starcoder2": {"sliding_window": 4, "bos_token_id": 1, "eos_token_id": 2},
    "granite": {"attention_multiplier": 0.3},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}


@pytest.mark.parametrize("family", UNKNOWN)
def test_models_without_a_family_file_keep_to_documents_and_windows(family):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **UNKNOWN[family]})
    with quiet():
        model = AutoModelForCausalLM.from_config(config).eval()
    model.set_attn_implementation(implementation(model, PACKED))
    assert model.config._attn_implementation == PACKED
    with torch.no_grad():
        ours_ND, theirs_ND = hidden_states(model, BATCH), alone(model, IDS_BT)
    torch.testing.assert_close(ours_ND, theirs_ND, rtol=1e-5, atol=1e-5 * float(theirs_ND.abs().max()))


class _Reader:
    """As much of a model as is asked."""

    _supports_sdpa = _supports_flash_attn = True
    _is_stateful = False

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config

    def _can_set_attn_implementation(self):
        return True


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention", "chunked_attention"]},
        {"layer_types": ["full_attention", "linear_attention"]},
        {"is_causal": False},
        {"use_bidirectional_attention": True},
    ],
    ids=str,
)
def test_models_that_do_more_than_look_back_keep_their_masks(changes):
    config = LlamaConfig()
    assert implementation(_Reader(config), PACKED) == PACKED
    for name, value in changes.items():
        setattr(config, name, value)
    assert implementation(_Reader(config), PACKED) == "sdpa"
