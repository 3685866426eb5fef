"""`use: prune`: several axes at once, to a budget of any kind or to exact sizes."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from compress import plugins
from compress.errors import InputError
from compress.models.layout import layout, spec_from_config
from compress.models.spec import read_spec
from compress.prune import step
from compress.prune.kept import Kept
from compress.prune.pruning import choose
from compress.prune.shapes import KEYS, Shapes, default_axes
from tests.models.tiny import DECODERS, FAMILIES, tiny_config, token_ids, variant_name, write_tiny
from tests.prune.checkpoints import logits, parent_of, pruned, tiny_parent
from tests.prune.test_families import loaded_plainly

CHEAP = {"importance": "weight", "layer_importance": "block_influence"}
BUDGETS = [{"params": "60%"}, {"memory": "60%", "context": 64}, {"flops": "60%", "context": 64}]
RUNS = [
    *((family, {"params": "50%"}) for family in FAMILIES),
    *((family, budget) for family in ("llama", "gpt2", "qwen3_moe") for budget in BUDGETS[1:]),
    ("llama", {"layers": 3, "num_attention_heads": 4}),
    ("llama", {"layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3, "hidden_size": 48}),
    ("qwen3", {"layers": 1, "intermediate_size": 10, "hidden_size": 50}),
    ("gpt2", {"layers": 3, "num_attention_heads": 6, "hidden_size": 48}),
    ("qwen3_moe", {"layers": 2, "num_experts": 4, "moe_intermediate_size": 24}),
    ("olmoe", {"num_experts": 2, "layers": 3}),
]


@pytest.mark.parametrize(("family", "target"), RUNS, ids=variant_name)
def test_the_prediction_is_what_is_written(family, target, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", family))
    outcome, config = pruned("prune", parent, tmp_path / "pruned", target=target, **CHEAP)
    predicted = step.predict(parent.spec, config)
    assert outcome.spec == read_spec(tmp_path / "pruned")
    assert outcome.spec.tensors == predicted.tensors and outcome.spec.size == predicted.size
    model, after = loaded_plainly(tmp_path / "pruned"), layout(outcome.spec.config)
    assert sum(p.numel() for p in model.parameters()) == outcome.spec.num_parameters
    with torch.no_grad():
        assert bool(model(token_ids()).logits.isfinite().all())
    for axis in ("layers", *layout(parent.spec.config).width_axes):
        size = {"layers": after.num_layers, "heads": after.num_heads}.get(axis)
        assert outcome.facts[KEYS[axis]] == (after.length(axis) if size is None else size)
    for key, size in target.items():
        assert outcome.facts.get(key, size) == size


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe"])
@pytest.mark.parametrize("budget", BUDGETS, ids=variant_name)
def test_the_result_costs_what_was_asked_at_most_and_nearly(family, budget):
    spec = parent_spec(family)
    config = step.Config(target=budget, align={"ffn": 8, "expert_ffn": 8, "hidden": 8})
    after = layout(step.predict(spec, config).config)
    name, context = next(iter(budget)), budget.get("context", 0)

    def cost(model):
        weights = Shapes(model, {"layers": [model.num_layers]})
        return {
            "params": lambda: model.num_parameters,
            "memory": lambda: (
                4 * model.num_parameters
                + 4 * context * model.num_layers * model.num_kv_heads * model.head_dim
            ),
            "flops": lambda: weights.flops(context)[0],  # as counted in test_shapes
        }[name]()

    assert 0.57 < cost(after) / cost(layout(spec.config)) <= 0.606


def parent_spec(family):
    return spec_from_config(tiny_config(family), "F32")


def test_a_context_is_no_budget_and_the_size_of_layers_is_none_of_width():
    with pytest.raises(ValidationError, match="give either one of"):
        step.Config(target={"context": 4096})
    spec = parent_spec("llama")
    longer = [step.predict(spec, step.Config(target={"memory": "50%", "context": c})) for c in (16, 100_000)]
    caches = [layout(s.config).num_kv_heads * layout(s.config).num_layers for s in longer]
    assert caches[1] < caches[0]  # where the cache is what takes memory, it is what shrinks


def test_only_what_may_shrink_is_scored_and_shrinks():
    everything = step.prepare(step.Config(target={"params": "50%"}))
    assert {name: node.config.importance for name, node in everything.items()} == {
        "scores": "compensated", "layer_scores": "iterative_loss",
    }  # fmt: skip
    for settings, names in (
        ({"target": {"layers": 2}}, {"layer_scores"}),
        ({"target": {"params": "80%"}, "axes": ["layers"]}, {"layer_scores"}),
        ({"target": {"params": "80%"}, "axes": ["ffn", "hidden"]}, {"scores"}),
        ({"target": {"hidden_size": 48}}, {"scores"}),
        ({"target": {"hidden_size": 48, "layers": 3}}, {"scores", "layer_scores"}),
    ):
        assert set(step.prepare(step.Config(**settings))) == names
    for family in ("llama", "qwen3_moe"):
        spec = parent_spec(family)
        for axis in ("layers", *default_axes(layout(spec.config))):
            config = step.Config(target={"params": "97%" if axis == "kv_groups" else "93%"}, axes=[axis])
            before, after = layout(spec.config), layout(step.predict(spec, config).config)
            shrunk = {a for a in before.width_axes if after.length(a) < before.length(a)}
            shrunk |= {"layers"} if after.num_layers < before.num_layers else set()
            assert shrunk == {axis}


def test_of_every_unit_the_best_stay_and_heads_only_against_their_own_group():
    before = layout(tiny_config("qwen3_moe"))
    lengths = {"hidden": 40, "kv_groups": 2, "heads": 1, "experts": 3, "expert_ffn": 10}
    after = before.to_lengths(lengths).with_layers(range(3))
    generator = torch.Generator().manual_seed(0)

    def chance(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    scores = {
        "layers": torch.tensor([0.4, 0.1, 0.3, 0.2]), "hidden": chance(64), "kv_groups": chance(4, 4),
        "heads": chance(4, 4, 2), "experts": chance(4, 6), "expert_ffn": chance(4, 6, 48),
    }  # fmt: skip
    kept = choose(before, after, scores)

    def best(row, count):
        return sorted(sorted(range(len(row)), key=lambda unit: -float(row[unit]))[:count])

    assert kept.layers == [0, 2, 3]
    assert kept.units["hidden"].tolist() == best(scores["hidden"], 40)
    for layer in range(4):
        groups = best(scores["kv_groups"][layer], 2)
        assert kept.units["kv_groups"][layer].tolist() == groups
        inside = [best(scores["heads"][layer, group], 1) for group in groups]
        assert kept.units["heads"][layer].tolist() == inside
        assert kept.units["experts"][layer].tolist() == best(scores["experts"][layer], 3)
        for expert in range(6):
            neurons = best(scores["expert_ffn"][layer, expert], 10)
            assert kept.units["expert_ffn"][layer, expert].tolist() == neurons
    same = choose(before, before, scores)
    assert same == Kept(range(4), {})


def test_query_heads_that_do_nothing_are_found_and_removing_them_changes_nothing(tmp_path):
    silent = [[1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]]

    def silence(model):
        for layer, heads in zip(model.model.layers, silent, strict=True):
            for group, head in enumerate(heads):
                place = 8 * (2 * group + head)
                layer.self_attn.o_proj.weight[:, place : place + 8] = 0

    parent = tiny_parent(tmp_path / "parent", "llama", silence)
    target = {"num_attention_heads": 4}
    outcome, _ = pruned("prune", parent, tmp_path / "pruned", target=target, importance="output_energy")
    assert outcome.facts["num_attention_heads"] == outcome.facts["num_key_value_heads"] == 4
    content = json.loads((tmp_path / "pruned/pruning_map.json").read_text())
    assert set(content) == {"heads"}
    assert content["heads"]["kept"] == [[[1 - head] for head in heads] for heads in silent]
    torch.testing.assert_close(logits(tmp_path / "pruned"), logits(parent.path), rtol=1e-9, atol=1e-9)


def test_the_map_says_what_stayed_of_everything_that_shrank_and_what_it_scored(tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", "qwen3_moe"))
    target = {
        "layers": 3,
        "hidden_size": 40,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "num_experts": 4,
    }
    outcome, _ = pruned("prune", parent, tmp_path / "pruned", target=target, **CHEAP)
    content = json.loads((tmp_path / "pruned/pruning_map.json").read_text())
    sizes = {
        "layers": ([3], [4]), "hidden": ([40], [64]), "kv_groups": ([3, 3], [4, 4]),
        "heads": ([3, 3, 1], [4, 4, 2]), "experts": ([3, 4], [4, 6]),
    }  # fmt: skip
    assert set(content) == set(sizes)
    for unit, (kept, scored) in sizes.items():
        assert list(torch.tensor(content[unit]["kept"]).shape) == kept
        assert list(np.array(content[unit]["scores"], dtype=float).shape) == scored
    gone = set(range(4)) - set(content["layers"]["kept"])
    assert outcome.facts["removed_layers"] == sorted(gone) and len(gone) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": {"params": "2%"}}, r"leaves at least \S+ parameters"),
        ({"target": {"memory": "1%"}}, r"leaves at least \S+ GB"),
        ({"target": {"flops": "1%"}}, r"leaves at least \S+ FLOPs"),
        ({"target": {"memory": "6GB"}}, "more than the parent's"),
        ({"target": {"layers": 5}}, "target layers: 5 is more than the parent's 4"),
        ({"target": {"num_experts": 2}}, "target num_experts: llama models have none of their own"),
        ({"target": {"params": "50%"}, "axes": ["expert_ffn"]}, "llama models have no expert_ffn to prune"),
        ({"target": {"params": "50%"}, "importance": "block_influence"}, "scores layers, not hidden"),
        ({"target": {"params": "50%"}, "layer_importance": "activation"}, "scores hidden, .*, not layers"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_running(settings, message):
    with pytest.raises(InputError, match=message):
        step.predict(parent_spec("llama"), step.Config(**settings))


@pytest.mark.parametrize("family", DECODERS)
def test_a_rehearsal_fits_the_tiny_model_of_every_family(family):
    config = step.rehearse(step.Config(target={"params": "4.0B"}, align={"hidden": 256}))
    spec = parent_spec(family)
    assert 0.6 < step.predict(spec, config).num_parameters / spec.num_parameters <= 0.707


def test_the_step_fulfils_the_contract():
    spec = parent_spec("llama")
    config = step.Config(target={"params": "60%"})
    assert plugins.references(step.Config) == {"calibration": "data"}
    work = step.estimate(spec, config, {})
    assert work.flops > 0 and work.peak_memory_bytes > spec.weight_bytes
    assert work.disk_bytes == step.predict(spec, config).weight_bytes
    assert step.estimate(spec, config.model_copy(update={"compensate": False}), {}).flops == 0
    assert all(field.description for field in step.Config.model_fields.values())
