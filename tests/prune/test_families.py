"""What every family's table promises of pruning, whichever units stay."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear

from compress import plugins
from compress.models.checkpoint import auto_class, load_model
from compress.models.family import option
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.prune.kept import Kept
from compress.prune.planning import pruned_spec
from compress.prune.slicing import write_pruned
from tests.models.tiny import (
    DECODERS,
    FAMILIES,
    VARIANTS,
    tiny_config,
    tiny_model,
    token_ids,
    variant_name,
    write_tiny,
)
from tests.prune.checkpoints import parent_of, pruned

SMALLER = {"hidden": 48, "ffn": 100, "kv_groups": 2, "heads": 1, "experts": 4, "expert_ffn": 20}


def narrowings(family, **changes):
    """One axis at a time (with what it is bound to), and all of them."""
    model = layout(tiny_config(family, **changes))
    if not (model.heads_fill_hidden or "qk_layernorm" in changes):
        single = [{axis: SMALLER[axis]} for axis in model.width_axes]
        return [*single, {axis: SMALLER[axis] for axis in model.width_axes}]
    groups = model.num_kv_heads * 3 // 4  # heads times their dimensions are the hidden size
    single = [
        {axis: SMALLER[axis]} for axis in model.width_axes if axis not in ("hidden", "kv_groups", "heads")
    ]
    cases = [*single, {"hidden": 48, "kv_groups": groups}]
    if "heads" in model.width_axes:
        cases.append({"hidden": 32, "heads": 1})
    return [*cases, {"hidden": 48, "kv_groups": groups} | {k: v for case in single for k, v in case.items()}]


def random_kept(before, lengths, layers, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def choose(shape, total, count):
        scores = torch.rand((*shape, total), generator=generator)
        return scores.argsort(-1)[..., :count].sort(-1).values

    shapes = {
        "hidden": (),
        "heads": (before.num_layers, lengths.get("kv_groups", before.num_kv_heads)),
        "expert_ffn": (before.num_layers, before.num_experts),
    }
    units = {
        axis: choose(shapes.get(axis, (before.num_layers,)), before.length(axis), count)
        for axis, count in lengths.items()
    }
    return Kept(layers, units)


def prune(source, target, lengths, layers=(0, 1, 2, 3)):
    target.mkdir()
    before = layout(read_spec(source).config)
    after = before.to_lengths(lengths).with_layers(layers)
    kept = random_kept(before, lengths, layers)
    write_pruned(source, target, before, after, kept)
    assert read_spec(target) == pruned_spec(read_spec(source), after)
    return before, kept


def loaded_plainly(folder):
    """What a user gets who has only transformers."""
    config = json.loads((folder / "config.json").read_text())
    model, info = auto_class(config).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def in_fp64(folder):
    model = load_model(folder, dtype=torch.float64)
    if layout(read_spec(folder).config).num_experts:
        model.set_experts_implementation("eager")  # the fused one has no fp64
    return model


def logits(folder):
    with torch.no_grad():
        return in_fp64(folder)(token_ids()).logits


def change_stored(folder, change):
    """Store the checkpoint in fp64 with its tensors passed through `change(tensors, layout)`."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.double() for name, tensor in load_file(path).items()}
    change(tensors, layout(read_spec(folder).config))
    save_file(tensors, path, metadata={"format": "pt"})


def case_name(value):
    return "all" if isinstance(value, dict) and len(value) > 3 else variant_name(value)


CASES = [
    *((family, {}, lengths) for family in FAMILIES for lengths in narrowings(family)),
    *((family, changes, narrowings(family, **changes)[-1]) for family, changes in VARIANTS if changes),
]


@pytest.mark.parametrize(("family", "changes", "lengths"), CASES, ids=case_name)
def test_the_result_loads_plainly_and_is_as_large_as_predicted(family, changes, lengths, tmp_path):
    prune(write_tiny(tmp_path / "parent", family, **changes), tmp_path / "pruned", lengths, layers=(0, 2, 3))
    model = loaded_plainly(tmp_path / "pruned")
    with torch.no_grad():
        assert bool(model(token_ids()).logits.isfinite().all())
        if family in DECODERS:
            settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
            cached, again = (
                model.generate(token_ids(), use_cache=use_cache, **settings) for use_cache in (True, False)
            )
            assert torch.equal(cached, again)


def removed_heads(before, kept, layer):
    """Query heads that go, in plain arithmetic."""
    inside, groups = before.heads_per_group, range(before.num_kv_heads)
    if "kv_groups" in kept.units:
        groups = kept.units["kv_groups"][layer].tolist()
    stay = {
        inside * group + head
        for place, group in enumerate(groups)
        for head in (kept.units["heads"][layer][place].tolist() if "heads" in kept.units else range(inside))
    }
    return [head for head in range(before.num_heads) if head not in stay]


def places(heads, head_dim):
    return [place for head in heads for place in range(head_dim * head, head_dim * (head + 1))]


def gone(kept, unit, layer, total):
    stay = kept.units[unit][layer].tolist() if unit in kept.units else range(total)
    return sorted(set(range(total)) - set(stay))


def silence(tensors, before, kept):
    """Zero what reads removed units, and queries and keys that would be normed with those that stay."""
    for name, axes in before.tensors.items():
        layer, expert, out = before.layer_of(name), before.expert_of(name), before.out_dim(name)
        if layer is None or len(axes) != 2 or axes[out] != "hidden":
            continue
        reads, columns = axes[1 - out], []
        if reads == "query":
            columns = places(removed_heads(before, kept, layer), before.head_dim)
        elif reads in kept.units:
            where = layer if expert is None else (layer, expert)
            columns = gone(kept, reads, where, before.length(reads))
        tensors[name].index_fill_(1 - out, torch.tensor(columns, dtype=torch.long), 0)
    for layer in range(before.num_layers if norms_queries(before) else 0):
        heads = removed_heads(before, kept, layer)
        groups = gone(kept, "kv_groups", layer, before.num_kv_heads)
        for projection, rows in (("q_proj", heads), ("k_proj", groups)):
            name = f"model.layers.{layer}.self_attn.{projection}.weight"
            tensors[name][places(rows, before.head_dim)] = 0


def norms_queries(model):
    """Whether one norm runs over all heads' queries, as in OLMo 2."""
    return ("query",) in [axes for name, axes in model.tensors.items() if name.endswith("norm.weight")]


def without_hidden(family):
    """The narrowings that renormalize nothing, and heads inside groups that go themselves."""
    model = layout(tiny_config(family))
    cases = [case for case in narrowings(family) if not {"hidden", "experts"} & case.keys()]
    both = [] if model.heads_fill_hidden else [{"kv_groups": 2, "heads": 1}]
    return cases + both


SILENCED = [(family, lengths) for family in FAMILIES for lengths in without_hidden(family)]


@pytest.mark.parametrize(("family", "lengths"), SILENCED, ids=variant_name)
def test_a_pruned_model_is_its_parent_with_the_same_units_silenced(family, lengths, tmp_path):
    exact = not norms_queries(layout(tiny_config(family)))
    folder = write_tiny(tmp_path / "parent", family, **({} if exact else {"rms_norm_eps": 1e-12}))
    _, kept = prune(folder, tmp_path / "pruned", lengths)
    whole = logits(folder)
    change_stored(folder, lambda tensors, model: silence(tensors, model, kept))
    result, tolerance = logits(tmp_path / "pruned"), 1e-12 if exact else 1e-5  # norms are computed in fp32
    torch.testing.assert_close(result, logits(folder), rtol=tolerance, atol=tolerance)
    assert not torch.allclose(result, whole, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if "experts" in layout(tiny_config(name)).width_axes]
)
def test_removing_an_expert_is_never_choosing_it(family, tmp_path):
    folder = write_tiny(tmp_path / "parent", family)
    _, kept = prune(folder, tmp_path / "pruned", {"experts": 4})
    model = in_fp64(folder)
    for layer, block in enumerate(model.model.layers):
        block.mlp.gate.forward = without_experts(block.mlp.gate, gone(kept, "experts", layer, 6))
    with torch.no_grad():
        expected = model(token_ids()).logits
    torch.testing.assert_close(logits(tmp_path / "pruned"), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(logits(folder), expected, rtol=1e-2, atol=1e-2)


def without_experts(gate, removed):
    def forward(hidden):
        scores = linear(hidden.reshape(-1, gate.hidden_dim), gate.weight)
        scores[:, removed] = -torch.inf
        weights, chosen = scores.softmax(-1).topk(gate.top_k)
        if gate.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return scores, weights, chosen

    return forward


@pytest.mark.parametrize(("family", "tied"), [(f, t) for f in FAMILIES for t in (False, True)], ids=str)
def test_removing_dead_channels_changes_nothing(family, tied, tmp_path):
    folder = write_tiny(tmp_path / "parent", family, tie_word_embeddings=tied, **large_epsilon(family))
    lengths = next(case for case in narrowings(family) if "hidden" in case)
    before = layout(read_spec(folder).config)
    kept = random_kept(before, lengths, range(4))
    change_stored(folder, lambda tensors, model: (silence(tensors, model, kept), kill(tensors, model, kept)))
    prune(folder, tmp_path / "pruned", lengths)
    if family in DECODERS:
        pruned, whole = logits(tmp_path / "pruned"), logits(folder)
    else:  # the head's activation gives its norm channels whose mean is not zero
        pruned, whole = body(tmp_path / "pruned"), body(folder)[..., kept.units["hidden"]]
    error = float((pruned - whole).abs().max() / whole.abs().max())
    assert error < 1e-6, error  # transformers computes RMSNorm in fp32


def body(folder):
    with torch.no_grad():
        return load_model(folder, dtype=torch.float64).base_model(token_ids()).last_hidden_state


def large_epsilon(family):
    """An epsilon that would show a wrong one; a negligible one where norms over something else share it."""
    model, name = layout(tiny_config(family)), option(layout(tiny_config(family)).family, "EPSILON")
    shared = {("head_dim",), ("query",)} & set(model.tensors.values())
    return {name: 1e-12 if shared else 0.05} if name else {}


def kill(tensors, before, kept):
    """Let nothing write to the removed channels, and what is written to the others have mean zero if normed so."""
    live = kept.units["hidden"]
    gains = before.norms_over("hidden")
    centered = not gains or gains[0] + ".bias" in before.tensors
    post_norm = option(before.family, "ENCODER")
    for name, axes in before.tensors.items():
        dim = 1 if axes[0] in ("vocab", "positions", "segments") else before.out_dim(name)
        if len(axes) < dim + 1 or axes[dim] != "hidden" or name == before.head:
            continue
        tensor, module = tensors[name], name.rpartition(".")[0]
        if module in gains and name.endswith(".weight"):
            if post_norm:  # what it writes is what the next norm reads
                tensor.fill_(1.0)
            continue
        written = tensor.index_select(dim, live)
        if centered:
            written -= written.mean(dim, keepdim=True)
        if not gains:
            written *= 100  # far above the constant epsilon
        tensor.zero_().index_copy_(dim, live, written)


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_give_the_same_model_bit_for_bit(family, tmp_path):
    for name, shard in (("whole", "5GB"), ("shards", "150KB")):
        prune(
            write_tiny(tmp_path / name, family, shard=shard),
            tmp_path / f"{name}-pruned",
            narrowings(family)[-1],
        )
    files = [sorted((tmp_path / name).glob("*.safetensors")) for name in ("whole-pruned", "shards-pruned")]
    assert len(files[0]) == 1 and len(files[1]) > 2
    whole, shards = ({k: v for file in some for k, v in load_file(file).items()} for some in files)
    assert whole.keys() == shards.keys() and all(torch.equal(whole[name], shards[name]) for name in whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_module_names_lead_to_modules_of_the_live_model(family):
    model, where = tiny_model(family), layout(tiny_config(family))
    for name in [*where.layers, *where.norms, *where.readers("query"), *where.readers("ffn")]:
        model.get_submodule(where.live(name))
    assert len(where.readers("query")) == where.num_layers
    assert len(where.readers("ffn")) == (where.num_layers if "ffn" in where.width_axes else 0)
    head = model.get_output_embeddings()
    if where.head is not None:
        assert model.get_submodule(where.live(where.head.removesuffix(".weight"))) is head
    assert model.get_input_embeddings().weight is model.get_parameter(where.embedding)
    for name in where.readers("ffn"):
        weight = model.get_submodule(name).weight
        assert weight.shape[where.out_dim(f"{name}.weight")] == where.hidden


@pytest.mark.parametrize("importance", ["activation", "compensated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_step_scores_chooses_and_refits_every_family(family, importance, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", family))
    settings = {"target": {"params": "50%"}, "importance": importance, "compensate": True}
    outcome, config = pruned("prune", parent, tmp_path / "pruned", **settings)
    predicted = plugins.step("prune").predict(parent.spec, config)
    assert outcome.spec.tensors == predicted.tensors and outcome.spec.size == predicted.size
    loaded_plainly(tmp_path / "pruned")
