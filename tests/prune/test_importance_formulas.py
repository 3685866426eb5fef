"""Every metric against its formula, written out slowly over the whole model in plain transformers.

B sequences, T tokens, N of all sequences, C channels, O outputs, F neurons.
"""

from itertools import pairwise

import pytest
import torch

from compress.models.checkpoint import load_model
from compress.prune import backward
from compress.prune.importance import compensated
from tests.models.tiny import token_ids
from tests.prune.checkpoints import observed, scored, tiny_parent

SMALL = {"hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = token_ids(4, 12, seed=5)
CLOSE = {"rtol": 1e-5, "atol": 1e-10}
"""transformers computes RMSNorm in fp32."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_parent(tmp_path_factory.mktemp("llama") / "model", "llama", **SMALL).path


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moe") / "model"
    return tiny_parent(folder, "qwen3_moe", **SMALL, moe_intermediate_size=20).path


def scores(name, folder):
    return scored(name, observed(folder))


class Watched:
    """A whole model that has read the text, and what its modules were given and gave: ``[B, T, C]`` each."""

    def __init__(self, folder):
        self.model = load_model(folder)
        if hasattr(self.model.config, "num_experts"):
            self.model.set_experts_implementation("eager")
        self.given, self.gave = {}, {}
        for name, module in self.model.named_modules():
            module.register_forward_hook(self._note(name))
        with torch.no_grad():
            self.model(IDS)
        self.layers = self.model.model.layers
        self.weights = {name: p.detach() for name, p in self.model.named_parameters()}

    def _note(self, name):
        def hook(_, inputs, output):
            if inputs and isinstance(inputs[0], torch.Tensor):
                self.given[name] = inputs[0].detach()
            self.gave[name] = output

        return hook

    def states(self):
        """What enters every layer, and what leaves the last."""
        count = len(self.layers)
        return [self.given[f"model.layers.{i}"] for i in range(count)] + [self.given["model.norm"]]

    def rows(self, name):
        """What a module was given, token after token: ``[N, C]``."""
        return self.given[name].flatten(0, 1)


class Expert:
    """What one expert of a layer does to the tokens routed to it."""

    def __init__(self, watched, layer, expert):
        config, block = watched.model.config, f"model.layers.{layer}.mlp"
        x = watched.given[block].flatten(0, 1)
        probabilities = (x @ watched.weights[f"{block}.gate.weight"].T).softmax(-1)
        best, chosen = probabilities.topk(config.num_experts_per_tok, -1)
        if config.norm_topk_prob:
            best = best / best.sum(-1, keepdim=True)
        token, place = torch.where(chosen == expert)
        gate, up = (x[token] @ watched.weights[f"{block}.experts.gate_up_proj"][expert].T).chunk(2, -1)
        self.weights = best[token, place]
        self.neurons = torch.nn.functional.silu(gate) * up
        self.down = watched.weights[f"{block}.experts.down_proj"][expert]


def channel_use(activation_BTC):
    """``Σ_samples (mean_positions |a|)²`` of every channel."""
    return sum(sample.abs().mean(0) ** 2 for sample in activation_BTC)


def test_activation_is_minitrons_formula(llama):
    watched, found = Watched(llama), scores("activation", llama)
    for layer in range(4):
        ffn = channel_use(watched.given[f"model.layers.{layer}.mlp.down_proj"]).sqrt()
        torch.testing.assert_close(found["ffn"][layer], ffn, **CLOSE)
        query = channel_use(watched.given[f"model.layers.{layer}.self_attn.o_proj"])
        for group in range(2):
            own = query[16 * group : 16 * (group + 1)]
            assert float(found["kv_groups"][layer, group]) == pytest.approx(float(own.sum()) ** 0.5, rel=1e-5)
            for head in range(2):
                expected = float(own[8 * head : 8 * (head + 1)].sum()) ** 0.5
                assert float(found["heads"][layer, group, head]) == pytest.approx(expected, rel=1e-5)
    norms = [name for name in watched.gave if name.endswith("norm")]
    assert len(norms) == 9
    hidden = sum(channel_use(watched.gave[name]).sqrt() for name in norms)
    torch.testing.assert_close(found["hidden"], hidden, **CLOSE)


def test_activation_of_experts_is_how_much_they_are_used(moe):
    watched, found = Watched(moe), scores("activation", moe)
    for layer in range(4):
        for number in range(6):
            expert = Expert(watched, layer, number)
            assert float(found["experts"][layer, number]) == pytest.approx(float(expert.weights.sum()))
            neurons = (expert.neurons * expert.weights[:, None]).norm(dim=0)
            torch.testing.assert_close(found["expert_ffn"][layer, number], neurons, **CLOSE)


def test_output_energy_is_what_a_unit_adds_to_the_output_of_the_map_that_reads_it(llama):
    watched, found = Watched(llama), scores("output_energy", llama)

    def added(module, columns):
        given = watched.rows(module)[:, columns]
        return float((given @ watched.weights[f"{module}.weight"][:, columns].T).square().sum(1).mean())

    for layer in range(4):
        for neuron in range(24):
            energy = added(f"model.layers.{layer}.mlp.down_proj", [neuron])
            assert float(found["ffn"][layer, neuron]) == pytest.approx(energy, rel=1e-5)
        for group in range(2):
            heads = [range(8 * head, 8 * head + 8) for head in (2 * group, 2 * group + 1)]
            energies = [added(f"model.layers.{layer}.self_attn.o_proj", list(head)) for head in heads]
            assert found["heads"][layer, group].tolist() == pytest.approx(energies, rel=1e-5)
            assert float(found["kv_groups"][layer, group]) == pytest.approx(sum(energies), rel=1e-5)


@pytest.mark.parametrize("metric", ["output_energy", "compensated"])
def test_a_channels_energy_is_its_share_of_every_map_that_reads_it(metric, llama):
    watched, found = Watched(llama), scores(metric, llama)
    readers = [f"model.layers.{i}.{name}" for i in range(4) for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"
    )]  # fmt: skip
    expected = torch.zeros(32, dtype=torch.float64)
    for module in [*readers, "lm_head"]:
        weight, given = watched.weights[f"{module}.weight"], watched.rows(module)
        energies = torch.stack([torch.outer(given[:, c], weight[:, c]).square().sum() for c in range(32)])
        expected += energies / energies.sum()
    torch.testing.assert_close(found["hidden"], expected, **CLOSE)


@pytest.mark.parametrize("metric", ["output_energy", "compensated"])
def test_an_expert_scores_the_energy_of_what_it_adds(metric, moe):
    watched, found = Watched(moe), scores(metric, moe)
    for layer in range(4):
        energies, neurons = [], []
        for number in range(6):
            expert = Expert(watched, layer, number)
            weighted = expert.neurons * expert.weights[:, None]
            energies.append((weighted @ expert.down.T).square().sum() / IDS.numel())
            neurons.append(weighted.square().sum(0) * expert.down.square().sum(0) / IDS.numel())
        torch.testing.assert_close(found["experts"][layer], torch.stack(energies), **CLOSE)
        torch.testing.assert_close(found["expert_ffn"][layer], torch.stack(neurons), **CLOSE)


def eliminated(given_NC, weight_OC, width):
    """Remove blocks of inputs one by one, refitting what stays on the data each time.

    Damping is data too: an observation of every input alone, worth `DAMPING` of a mean input's energy.
    """
    x = given_NC / len(given_NC) ** 0.5
    strength = (compensated.DAMPING * x.square().sum(0).mean()) ** 0.5
    damped = torch.cat([x, strength * torch.eye(x.shape[1], dtype=x.dtype)])
    wanted, whole = damped @ weight_OC.T, float((x @ weight_OC.T).square().sum())

    def error(blocks):
        columns = [width * block + i for block in blocks for i in range(width)]
        if not columns:
            return float(wanted.square().sum())
        fitted = torch.linalg.lstsq(damped[:, columns], wanted, driver="gelsd").solution
        return float((wanted - damped[:, columns] @ fitted).square().sum())

    left, result = list(range(x.shape[1] // width)), {}
    while left:
        costs = {block: error([b for b in left if b != block]) for block in left}
        least = min(costs, key=costs.get)
        left.remove(least)
        result[least] = costs[least] / whole
    return torch.tensor([result[block] for block in range(len(result))], dtype=torch.float64)


def test_compensated_is_the_energy_lost_when_units_go_one_by_one_and_the_rest_is_refitted(llama):
    watched, found = Watched(llama), scores("compensated", llama)
    for layer in range(4):
        for unit, module, width in (
            ("ffn", f"model.layers.{layer}.mlp.down_proj", 1),
            ("kv_groups", f"model.layers.{layer}.self_attn.o_proj", 16),
            ("heads", f"model.layers.{layer}.self_attn.o_proj", 8),
        ):
            expected = eliminated(watched.rows(module), watched.weights[f"{module}.weight"], width)
            torch.testing.assert_close(found[unit][layer].flatten(), expected, rtol=1e-4, atol=1e-8)


def test_block_influence_is_one_minus_the_mean_cosine(llama):
    states, found = Watched(llama).states(), scores("block_influence", llama)["layers"]
    for layer, (before, after) in enumerate(pairwise(states)):
        pairs = zip(before.flatten(0, 1), after.flatten(0, 1), strict=True)
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
        assert float(found[layer]) == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-4)


def test_a_block_of_layers_scores_the_mean_angle_across_it(llama):
    states, found = Watched(llama).states(), scores("contiguous_block", llama)["layers"]
    for start in range(4):
        for stop in range(start + 1, 5):
            pairs = zip(states[start].flatten(0, 1), states[stop].flatten(0, 1), strict=True)
            angles = [float((a @ b / (a.norm() * b.norm())).arccos()) for a, b in pairs]
            expected = sum(angles) / len(angles) / torch.pi
            assert float(found[start, stop - start - 1]) == pytest.approx(expected, rel=1e-6)


def test_iterative_loss_removes_the_layer_whose_absence_changes_predictions_least(llama):
    model, found = load_model(llama), scores("iterative_loss", llama)["layers"]
    every = list(model.model.layers)

    @torch.no_grad()
    def log_probs(left):
        model.model.layers = torch.nn.ModuleList([every[number] for number in left])
        return model(IDS, use_cache=False).logits.log_softmax(-1)

    whole, left, highest = log_probs(range(4)), [0, 1, 2, 3], 0.0
    while len(left) > 1:
        trials = {gone: log_probs([number for number in left if number != gone]) for gone in left}
        hurts = {gone: float((whole.exp() * (whole - q)).sum(-1).mean()) for gone, q in trials.items()}
        gone = min(hurts, key=hurts.get)
        left.remove(gone)
        highest = max(highest, hurts[gone])
        assert float(found[gone]) == pytest.approx(highest, rel=1e-6)
    assert found[left[0]] == torch.inf


def loss_changes(model, ids):
    """``w · ∂L/∂w`` of every parameter of a whole model, by its live name."""
    logits = model.requires_grad_(True)(ids).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    return {name: (p * p.grad).detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_gradient_is_the_first_order_change_of_the_loss(tied, tmp_path):
    changes = {"tie_word_embeddings": tied, "attention_bias": True, "mlp_bias": True}
    folder = tiny_parent(tmp_path / "model", "llama", **SMALL, **changes).path
    change, found = loss_changes(load_model(folder), IDS), scores("gradient", folder)
    assert set(found) == {"layers", "hidden", "ffn", "kv_groups", "heads"}
    hidden = torch.zeros(32, dtype=torch.float64)
    for name, values in change.items():
        if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias", "gate_proj.bias", "up_proj.bias")):
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        hidden += values.sum(1) if writes else values.reshape(-1, 32).sum(0)
    torch.testing.assert_close(found["hidden"], hidden.abs(), **CLOSE)
    for layer in range(4):
        own = {n.split(".", 3)[3]: v for n, v in change.items() if n.startswith(f"model.layers.{layer}.")}
        assert float(found["layers"][layer]) == pytest.approx(abs(sum(float(v.sum()) for v in own.values())))
        ffn = own["mlp.down_proj.weight"].sum(0)
        for name in ("gate_proj", "up_proj"):
            ffn = ffn + own[f"mlp.{name}.weight"].sum(1) + own[f"mlp.{name}.bias"]
        torch.testing.assert_close(found["ffn"][layer], ffn.abs(), **CLOSE)
        query = own["self_attn.q_proj.weight"].sum(1) + own["self_attn.q_proj.bias"]
        query = query + own["self_attn.o_proj.weight"].sum(0)
        heads = query.view(2, 2, 8).sum(-1)
        torch.testing.assert_close(found["heads"][layer], heads.abs(), **CLOSE)
        shared = sum(
            own[f"self_attn.{name}.weight"].sum(1) + own[f"self_attn.{name}.bias"]
            for name in ("k_proj", "v_proj")
        )
        groups = heads.sum(-1) + shared.view(2, 8).sum(-1)
        torch.testing.assert_close(found["kv_groups"][layer], groups.abs(), **CLOSE)


def test_gradient_of_experts_is_taken_expert_by_expert(moe):
    model = load_model(moe)
    model.set_experts_implementation("eager")
    change, found = loss_changes(model, IDS), scores("gradient", moe)
    for layer in range(4):
        block = f"model.layers.{layer}.mlp"
        neurons = change[f"{block}.experts.down_proj"].sum(1)
        neurons = neurons + change[f"{block}.experts.gate_up_proj"].sum(2).view(6, 2, 20).sum(1)
        torch.testing.assert_close(found["expert_ffn"][layer], neurons.abs(), **CLOSE)
        experts = neurons.sum(1) + change[f"{block}.gate.weight"].sum(1)
        torch.testing.assert_close(found["experts"][layer], experts.abs(), **CLOSE)


def test_the_gradient_of_an_encoder_is_that_of_giving_back_what_it_sees(tmp_path):
    folder = tiny_parent(tmp_path / "model", "bert").path
    model = load_model(folder).requires_grad_(True)
    logits = model(IDS).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten()).backward()
    found = scores("gradient", folder)
    for number, layer in enumerate(model.bert.encoder.layer):
        expected = abs(sum(float((p.detach() * p.grad).sum()) for p in layer.parameters()))
        assert float(found["layers"][number]) == pytest.approx(expected, rel=1e-6)


def test_long_vocabularies_are_differentiated_a_chunk_at_a_time(llama, monkeypatch):
    whole = scores("gradient", llama)
    monkeypatch.setattr(backward, "CHUNK_ELEMENTS", 2 * 259 * 5)
    for unit, values in scores("gradient", llama).items():
        torch.testing.assert_close(values, whole[unit], **CLOSE)


def test_weight_is_the_norm_of_all_that_belongs_to_a_unit(tmp_path):
    folder = tiny_parent(tmp_path / "model", "llama", attention_bias=True, mlp_bias=True).path
    model, found = load_model(folder), scores("weight", folder)
    mlp, attention = model.model.layers[2].mlp, model.model.layers[2].self_attn

    def norm(*parts):
        return pytest.approx(float(torch.cat([part.detach().flatten() for part in parts]).norm()), rel=1e-6)

    neuron = [mlp.gate_proj.weight[5], mlp.up_proj.weight[5], mlp.down_proj.weight[:, 5]]
    assert float(found["ffn"][2, 5]) == norm(*neuron, mlp.gate_proj.bias[5], mlp.up_proj.bias[5])
    q, kv = slice(16, 32), slice(8, 16)
    own = [module.weight[kv] for module in (attention.k_proj, attention.v_proj)]
    own += [module.bias[kv] for module in (attention.k_proj, attention.v_proj)]
    group = [attention.q_proj.weight[q], attention.q_proj.bias[q], attention.o_proj.weight[:, q], *own]
    assert float(found["kv_groups"][2, 1]) == norm(*group)
    head = slice(24, 32)
    parts = [attention.q_proj.weight[head], attention.q_proj.bias[head], attention.o_proj.weight[:, head]]
    assert float(found["heads"][2, 1, 1]) == norm(*parts)
    assert float(found["layers"][2]) == norm(*model.model.layers[2].parameters())
    hidden = [
        p.movedim(p.shape.index(64), 0)[9] for name, p in model.named_parameters() if "_proj" not in name
    ]
    for name, p in model.named_parameters():
        if "_proj.weight" in name:
            hidden.append(p[9] if name.endswith(("o_proj.weight", "down_proj.weight")) else p[:, 9])
        elif name.endswith(("o_proj.bias", "down_proj.bias")):
            hidden.append(p[9])
    assert float(found["hidden"][9]) == norm(*hidden)
