"""Adapters: they start at the parent, only they change, and they end as part of plain weights."""

import pytest
import torch

from compress.errors import InputError
from compress.models.checkpoint import load_model
from compress.models.spec import read_spec
from compress.train import checkpoint, step
from compress.train.lora import add_adapters, merge
from compress.train.optimizer import adamw
from compress.train.settings import Lora
from tests.models.tiny import TRAINABLE, tiny_model
from tests.train.inputs import SMALL, context, countable_ids, parent, payload
from tests.train.test_resume import CONFIG, DiesAt, Killed, Stopped, StopsAt

IDS_BT = countable_ids(num=4)
LORA = CONFIG.model_copy(update={"lora": Lora(rank=4, alpha=8.0), "learning_rate": 1e-2})


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS_BT).logits


def trained_a_little(model) -> None:
    optimizer = adamw(model, CONFIG)
    for _ in range(5):
        model(input_ids=IDS_BT, labels=IDS_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", TRAINABLE)
def test_adapters_start_at_the_parent_and_end_in_its_matrices(family, tied):
    model = tiny_model(family, seed=0, tie_word_embeddings=tied)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start = logits(model)
    adapters = add_adapters(model, LORA.lora, seed=7)
    torch.testing.assert_close(logits(model), start, rtol=0, atol=0)
    trained_a_little(model)
    adapted = logits(model)
    assert (adapted - start).abs().max() > 1e-3
    merge(adapters)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-4, atol=1e-4)
    after = model.state_dict()
    assert list(after) == list(before)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and not any("embed" in name or "norm" in name or "lm_head" in name for name in changed)


def test_only_adapters_learn(tmp_path):
    model = tiny_model("llama", **SMALL)
    add_adapters(model, Lora(rank=4, targets=("q_proj", "down_proj")), seed=0)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(learning) == 2 * 2 * 2 and all("lora_" in name for name in learning)
    assert {name.split(".")[-4] for name in learning} == {"q_proj", "down_proj"}


@pytest.mark.parametrize(
    ("settings", "scale"), [({}, 2), ({"rank": 4}, 2), ({"rank": 16, "alpha": 8}, 0.5)], ids=str
)
def test_adapters_count_twice_whatever_their_rank_unless_asked(settings, scale):
    model = tiny_model("llama", **SMALL)
    add_adapters(model, Lora(**settings), seed=0)
    assert model.model.layers[0].mlp.up_proj.scaling == {"default": scale}


def test_the_seed_draws_the_adapters_and_nothing_else_is_drawn():
    def drawn(seed):
        model = tiny_model("llama", **SMALL)
        torch.manual_seed(1)
        add_adapters(model, Lora(), seed)
        return model.model.layers[0].mlp.up_proj.lora_A["default"].weight.detach(), torch.rand(1)

    (first, after), (again, after_again), (other, _) = drawn(7), drawn(7), drawn(8)
    assert torch.equal(first, again) and torch.equal(after, after_again) and not torch.equal(first, other)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return parent(tmp_path_factory.mktemp("lora") / "parent", attention_dropout=0.1, tie_word_embeddings=True)


@pytest.mark.parametrize(("kind", "end"), [(StopsAt, Stopped), (DiesAt, Killed)])
def test_an_interrupted_training_ends_in_the_same_bytes(model, tmp_path, monkeypatch, kind, end):
    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)
    step.run(model, LORA, context(tmp_path / "whole" / "result"))
    with pytest.raises(end):
        step.run(model, LORA, context(tmp_path / "cut" / "result", kind=kind))
    step.run(model, LORA, context(tmp_path / "cut" / "result"))
    assert payload(tmp_path / "cut" / "result") == payload(tmp_path / "whole" / "result")


def test_the_result_is_a_plain_model_that_learned(model, tmp_path):
    outcome = step.run(model, LORA.model_copy(update={"tokens": 16 * 4 * 40}), context(tmp_path / "result"))
    assert outcome.spec == step.predict(model.spec, LORA) == read_spec(tmp_path / "result")
    assert not list((tmp_path / "result").glob("adapter*"))
    before, after = (
        torch.nn.functional.cross_entropy(
            logits(load_model(folder))[:, :-1].flatten(0, 1), IDS_BT[:, 1:].flatten()
        )
        for folder in (model.path, tmp_path / "result")
    )
    assert after < before - 0.5


def test_a_checkpoint_holds_only_what_learns(model, tmp_path):
    sizes = {}
    for name, config in {"full": CONFIG, "lora": LORA}.items():
        given = context(tmp_path / name)
        outcome = step.run(model, config, given)
        sizes[name] = (given.partial / "checkpoint.pt").stat().st_size
        assert (outcome.facts["trained_parameters"] == model.spec.num_parameters) == (name == "full")
    state = torch.load(tmp_path / "lora.partial" / "checkpoint.pt", weights_only=True)
    assert state["student"] and all("lora_" in name for name in state["student"])
    assert sizes["lora"] < sizes["full"] / 2


def test_an_unknown_target_is_refused_with_what_there_is():
    with pytest.raises(
        InputError, match=r"no linear layer called 'q_porj'; did you mean 'q_proj'\?.*up_proj"
    ):
        add_adapters(tiny_model("llama", **SMALL), Lora(targets=("q_porj",)), seed=0)
    with pytest.raises(InputError, match="no linear layer called 'lm_head'"):
        add_adapters(tiny_model("llama", **SMALL), Lora(targets=("lm_head",)), seed=0)


def test_experts_that_no_adapter_reaches_are_told_of(tmp_path):
    experts = parent(tmp_path / "parent", "qwen3_moe")
    given = context(tmp_path / "result")
    step.run(experts, LORA, given)
    (warning,) = given.warnings
    assert "fused experts are in no linear layer" in warning
