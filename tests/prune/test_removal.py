"""Of a large vocabulary, layers are screened before whole predictions are compared: the same one goes, for less."""

import pytest
import torch

from compress.models.checkpoint import load_model
from compress.models.layerwise import LayerwiseModel
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.prune import removal, screening
from compress.prune.calibration import Calibration
from compress.prune.importance import iterative_loss
from compress.prune.judge import Judge, among, num_ids
from compress.prune.removal import Additions, LayerRemoval
from compress.prune.scratch import Scratch
from tests.models.tiny import token_ids, write_tiny
from tests.prune.checkpoints import tiny_parent
from tests.prune.test_depth import make_identities

DEEP = {"num_hidden_layers": 9}


@pytest.fixture
def screened(monkeypatch):
    """Have tiny vocabularies count as large, and little text as much."""
    monkeypatch.setattr(screening, "SMALL_VOCABULARY", 16)
    monkeypatch.setattr(screening, "JUDGED_TOKENS", 64)
    monkeypatch.setattr(removal, "NUM_IDS", 128)


def opened(folder, num=16, length=24, batch=8, report=lambda done, total: None, layers_left=1):
    shape = layout(read_spec(folder).config)
    ids = token_ids(num, length, seed=5)
    model = LayerwiseModel.open(folder, shape)
    return Calibration(model, ids.split(batch), Scratch(None), layers_left=layers_left, report=report)


@torch.inference_mode()
def order(calibration):
    found = LayerRemoval(calibration)
    return [found.remove_least() for _ in range(calibration.layout.num_layers - 1)]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_layers_that_do_nothing_are_screened_out_first(family, tmp_path, screened):
    parent = tiny_parent(tmp_path / "parent", family, make_identities(1, 4, 6), **_deep(family))
    went = order(opened(parent.path))
    assert {layer for layer, _ in went[:3]} == {1, 4, 6}
    assert all(divergence == pytest.approx(0, abs=1e-9) for _, divergence in went[:3])
    assert went[3][1] > 1e-3


def _deep(family):
    types = {"layer_types": ["sliding_attention"] * 8 + ["full_attention"]} if "gemma" in family else {}
    return {**DEEP, **types}


@pytest.mark.parametrize("seed", range(4))
def test_a_screened_choice_is_nearly_as_good_as_the_whole_one(seed, tmp_path, monkeypatch, screened):
    """Random layers all matter alike, so that the order may differ; what is lost with the layers must not."""
    parent = tiny_parent(tmp_path / "parent", "llama", _shaken(seed), **DEEP)
    some = [layer for layer, _ in order(opened(parent.path))[:4]]
    monkeypatch.undo()
    every = [layer for layer, _ in order(opened(parent.path))[:4]]
    assert _lost(parent.path, some) <= 1.1 * _lost(parent.path, every)


def _shaken(seed):
    def shake(model):
        generator = torch.Generator().manual_seed(seed)
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.mul_(float(torch.rand((), generator=generator)) + 0.1)
            layer.self_attn.o_proj.weight.mul_(float(torch.rand((), generator=generator)) + 0.1)

    return shake


@torch.no_grad()
def _lost(folder, without):
    model, ids = load_model(folder), token_ids(16, 24, seed=5)
    whole = model(ids, use_cache=False).logits.log_softmax(-1)
    layers = list(model.model.layers)
    model.model.layers = torch.nn.ModuleList([layer for n, layer in enumerate(layers) if n not in without])
    return float((whole.exp() * (whole - model(ids, use_cache=False).logits.log_softmax(-1))).sum(-1).mean())


def test_a_small_vocabulary_is_judged_whole(tmp_path, monkeypatch):
    folder = write_tiny(tmp_path / "model", "llama")
    judged = []
    divergence = Judge.divergence
    monkeypatch.setattr(
        Judge,
        "divergence",
        lambda self, model, leaving: judged.append(num_ids(model)) or divergence(self, model, leaving),
    )
    order(opened(folder))
    assert set(judged) == {layout(read_spec(folder).config).vocab}
    assert 4 + 2 + 2 <= len(judged) <= 4 + 3 + 2


def test_whole_predictions_are_made_for_few_layers_at_few_places(tmp_path, monkeypatch, screened):
    parent = tiny_parent(tmp_path / "parent", "llama", **DEEP)
    vocabulary = layout(parent.spec.config).vocab
    made = {True: 0, False: 0}
    logits = LayerwiseModel.logits

    def counted(self, ids_BT, hidden_BTH):
        made[num_ids(self) == vocabulary] += ids_BT.numel()
        return logits(self, ids_BT, hidden_BTH)

    monkeypatch.setattr(LayerwiseModel, "logits", counted)
    text = opened(parent.path)
    order(text)
    every = screening.judged_every(vocabulary, text.num_tokens)
    places = text.num_tokens // every
    rounds = screening.rounds(9)
    judgments = screening.whole_judgments(rounds, screened=True)
    assert every == 6 and judgments == 8 * 2
    assert made[True] == places * (2 * judgments + 1)
    exhaustive = 2 * text.num_tokens * sum(rounds)
    assert made[True] < exhaustive / 10
    at_least, at_most = 9 + 6 * 2, sum(n for n in range(3, 10))
    assert at_least <= made[False] / (2 * (text.num_tokens // 4)) <= at_most


def test_progress_is_told_for_every_layer_that_is_tried(tmp_path, screened):
    folder, told = tiny_parent(tmp_path / "parent", "llama", **DEEP).path, []
    order(opened(folder, report=lambda done, total: told.append(done / total)))
    assert len(told) >= 9 + 6 * 2 + 8 * 2
    assert told == sorted(told) and told[-1] == pytest.approx(1.0)
    assert max(after - before for before, after in zip([0.0, *told], told, strict=False)) < 0.1


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2", "gpt2", "phi", "bert", "distilbert"])
def test_logits_among_some_ids_are_those_of_the_whole_head(family, tmp_path):
    folder = write_tiny(tmp_path / "model", family)
    ids_K = torch.tensor([3, 4, 9, 100, 7])
    with torch.inference_mode():
        text = opened(folder, num=2)
        model, ids = text.model, text.batches[0]
        states = model.embed(ids)
        whole = model.logits(ids, states)
        with among(model, ids_K):
            assert num_ids(model) == 5
            some = model.logits(ids, states)
        again = model.logits(ids, states)
    torch.testing.assert_close(some, whole[..., ids_K])
    assert torch.equal(again, whole) and num_ids(model) == layout(read_spec(folder).config).vocab


def test_the_likeliest_ids_are_those_of_the_teacher(tmp_path):
    folder = write_tiny(tmp_path / "model", "llama")
    text = opened(folder)
    found = Judge(text.model, text.batches, every=3).likeliest_ids(20)
    with torch.no_grad():
        mean_V = load_model(folder)(torch.cat(list(text.batches))).logits[:, ::3].softmax(-1).mean((0, 1))
    assert found.tolist() == sorted(mean_V.topk(20).indices.tolist())


def test_the_estimate_knows_of_screening():
    from compress.models.layout import spec_from_config

    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 640, "intermediate_size": 2048,
        "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
    }  # fmt: skip
    large, small = (spec_from_config({**config, "vocab_size": size}, "F32") for size in (262_144, 4096))
    assert iterative_loss.passes(large) < 0.75 * iterative_loss.passes(small)
    tried = 1 + sum(screening.num_tried(screening.rounds(18)))
    assert 18 + 16 * 2 < tried < 0.6 * 171
    whole = tried * 8192 * 2 * 640 * 262_144
    assert iterative_loss.beside(large, 8192).flops < whole / 10
    assert iterative_loss.beside(small, 8192).flops == pytest.approx(tried * 8192 * 2 * 640 * 4096)


def test_a_small_cut_takes_the_first_rounds_only(tmp_path):
    folder = tiny_parent(tmp_path / "parent", "llama", _shaken(0), **DEEP).path
    whole, some = opened(folder), opened(folder, layers_left=6)
    with torch.inference_mode():
        every, few = (iterative_loss.score(text)["layers"] for text in (whole, some))
    assert int(every.isinf().sum()) == 1 and int(few.isinf().sum()) == 6
    went = few.isfinite()
    assert torch.equal(few[went], every[went]) and float(every[~went].min()) > float(every[went].max())
    assert iterative_loss.passes(read_spec(folder), 6) < 0.8 * iterative_loss.passes(read_spec(folder))


def divergence_without(layers, weights):
    """Return a divergence that every layer adds to, and that some pairs add to once more."""
    pairs = 0.003 * sum((3 * a * b) % 7 for a in layers for b in layers if a < b)
    return sum(weights[layer] for layer in layers) + pairs


@pytest.mark.parametrize("seed", range(3))
def test_layers_are_not_tried_again_that_cannot_be_the_least(seed):
    weights = torch.randn(12, generator=torch.Generator().manual_seed(seed)).mul(2).exp().tolist()
    lazily, left, gone, num_tried = Additions(), list(range(12)), [], 0
    while len(left) > 1:
        every = {layer: divergence_without([*gone, layer], weights) for layer in left}
        found = lazily.tried(left, every.__getitem__)
        num_tried += len(found)
        least = min(found, key=found.get)
        assert least == min(every, key=every.get)
        lazily.gone(least)
        left.remove(least)
        gone.append(least)
    assert num_tried < 0.75 * sum(range(2, 13))
