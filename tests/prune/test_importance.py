import pytest
import torch
from torch.nn.functional import silu

from compress import plugins
from compress.errors import InputError
from compress.models.layout import layout
from compress.prune.importance import activation, block_influence, weight
from compress.prune.interface import importance
from tests.models.tiny import LLAMA_LIKES, tiny_config, tiny_model, token_ids


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


SHAPES = {"layers": (4,), "hidden": (64,), "ffn": (4, 192), "kv_groups": (4, 4)}


@pytest.mark.parametrize("family", LLAMA_LIKES)
@pytest.mark.parametrize("name", plugins.available("prune.importance"))
def test_every_metric_scores_the_units_it_says(name, family):
    metric = importance(name, [])
    scores = metric.score(tiny_model(family), layout(tiny_config(family)), iter([token_ids()]))
    assert set(scores) == set(metric.UNITS)
    for unit, values in scores.items():
        assert values.shape == SHAPES[unit] and values.dtype == torch.float64
        assert bool((values >= 0).all())


@pytest.mark.parametrize("metric", [activation, block_influence])
def test_batching_does_not_matter(metric):
    model, where = tiny_model("llama"), layout(tiny_config("llama"))
    ids = token_ids(4)
    whole = metric.score(model, where, [ids])
    split = metric.score(model, where, [ids[:1], ids[1:4]])
    for unit in metric.UNITS:
        torch.testing.assert_close(whole[unit], split[unit], rtol=1e-5, atol=1e-7)


def plain_forward(model, ids):
    """The network written out for one sequence: hidden states between layers and what the scored modules see."""
    config, seen = model.config, {"norm": [], "ffn": [], "query": [], "hidden": []}

    def norm(module, x):
        y = x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * module.weight
        seen["norm"].append(y)
        return y

    x = model.model.embed_tokens(ids)
    cos, sin = model.model.rotary_emb(x, torch.arange(len(ids))[None])
    for layer in model.model.layers:
        seen["hidden"].append(x)
        attention, y = layer.self_attn, norm(layer.input_layernorm, x)
        heads = []
        for head in range(8):
            rows, group = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
            q, k = y @ attention.q_proj.weight[rows].T, y @ attention.k_proj.weight[group].T
            q, k = (z * cos[0] + torch.cat([-z[:, 4:], z[:, :4]], 1) * sin[0] for z in (q, k))
            mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
            heads.append((q @ k.T / 8**0.5 + mask).softmax(-1) @ (y @ attention.v_proj.weight[group].T))
        seen["query"].append(torch.cat(heads, 1))
        x = x + seen["query"][-1] @ attention.o_proj.weight.T
        y = norm(layer.post_attention_layernorm, x)
        seen["ffn"].append(silu(y @ layer.mlp.gate_proj.weight.T) * (y @ layer.mlp.up_proj.weight.T))
        x = x + seen["ffn"][-1] @ layer.mlp.down_proj.weight.T
    seen["hidden"].append(x)
    norm(model.model.norm, x)
    return seen


def test_activation_follows_minitrons_formula():
    model, ids = tiny_model("llama"), token_ids(3)
    runs = [plain_forward(model, row) for row in ids]
    scores = activation.score(model, layout(tiny_config("llama")), [ids])

    def channel(kind, index, c):
        return sum(float(run[kind][index][:, c].abs().mean()) ** 2 for run in runs) ** 0.5

    for layer, unit in ((0, 0), (1, 3), (3, 2)):
        assert float(scores["ffn"][layer, unit]) == pytest.approx(channel("ffn", layer, unit), rel=1e-4)
        group = sum(channel("query", layer, c) ** 2 for c in range(16 * unit, 16 * unit + 16)) ** 0.5
        assert float(scores["kv_groups"][layer, unit]) == pytest.approx(group, rel=1e-4)
        hidden = sum(channel("norm", index, unit) for index in range(9))
        assert float(scores["hidden"][unit]) == pytest.approx(hidden, rel=1e-4)


def test_block_influence_is_one_minus_the_mean_cosine():
    model, ids = tiny_model("llama"), token_ids(3)
    runs = [plain_forward(model, row)["hidden"] for row in ids]
    scores = block_influence.score(model, layout(tiny_config("llama")), [ids])["layers"]
    for layer in range(4):
        pairs = [(a, b) for run in runs for a, b in zip(run[layer], run[layer + 1], strict=True)]
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
        assert float(scores[layer]) == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-4)


def test_weight_is_the_norm_of_all_that_belongs_to_a_unit():
    changes = {"attention_bias": True, "mlp_bias": True}
    model = tiny_model("llama", **changes)
    scores = weight.score(model, layout(tiny_config("llama", **changes)), [])
    mlp, attention = model.model.layers[2].mlp, model.model.layers[2].self_attn
    neuron = [mlp.gate_proj.weight[5], mlp.up_proj.weight[5], mlp.down_proj.weight[:, 5]]
    neuron += [mlp.gate_proj.bias[5:6], mlp.up_proj.bias[5:6]]
    assert float(scores["ffn"][2, 5]) == pytest.approx(float(torch.cat(neuron).norm()), rel=1e-5)
    q, kv = slice(16, 32), slice(8, 16)
    group = [attention.q_proj.weight[q], attention.k_proj.weight[kv], attention.v_proj.weight[kv]]
    group += [attention.o_proj.weight[:, q], attention.q_proj.bias[q], attention.k_proj.bias[kv]]
    group += [attention.v_proj.bias[kv]]
    assert float(scores["kv_groups"][2, 1]) == pytest.approx(
        float(torch.cat([t.flatten() for t in group]).norm()), rel=1e-5
    )


def test_a_metric_for_other_units_is_refused_by_name():
    with pytest.raises(InputError, match="'block_influence' scores layers, not hidden"):
        importance("block_influence", ["hidden", "ffn"])
    with pytest.raises(InputError, match="did you mean 'activation'"):
        importance("activations", ["hidden"])
