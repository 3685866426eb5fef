"""What the real model's pruning benchmark measures by: held-out figures, sizes at a share, ratios with intervals."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import cross_entropy, kl_div

from tests.benchmarks.pruning import heldout, real_methods
from tests.benchmarks.pruning.cutting import Shape
from tests.models.tiny import tiny_config, tiny_model

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(name="ratios")
def _ratios(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("pruning.real_ratios")


@pytest.fixture(name="models")
def _models(monkeypatch):
    monkeypatch.setattr(heldout, "CHUNK_ELEMENTS", 5 * 259)  # no divisor of the positions
    return tiny_model("gemma3_text"), tiny_model("gemma3_text", seed=1)


def test_excess_and_divergence_are_those_of_whole_logits(models):
    rows_NT = torch.randint(259, (3, 17), generator=torch.Generator().manual_seed(0))
    original, other = models
    figures = heldout.Heldout(original, rows_NT).excess(other)
    with torch.no_grad():
        log_p, log_q = (model(rows_NT).logits[:, :-1].double().log_softmax(-1) for model in models)
    loss_p, loss_q = (
        cross_entropy(log.transpose(1, 2), rows_NT[:, 1:], reduction="none").mean(1) for log in (log_p, log_q)
    )
    every = (kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1))[:, :: heldout.KL_EVERY]
    torch.testing.assert_close(torch.tensor(figures.loss), (loss_q - loss_p).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.tensor(figures.kl), every.mean(1).float(), rtol=1e-4, atol=1e-5)
    assert heldout.mean_loss(other, rows_NT) == pytest.approx(float(loss_q.mean()), rel=1e-5)


def test_what_the_original_made_of_the_rows_is_kept(models, tmp_path):
    rows_NT = torch.randint(259, (2, 9), generator=torch.Generator().manual_seed(0))
    original, other = models
    file = tmp_path / "original.pt"
    first = heldout.Heldout(original, rows_NT, file).excess(other)
    assert heldout.Heldout(original, rows_NT, file).excess(other) == first
    assert file.is_file()


def test_the_original_is_no_worse_than_itself(models):
    rows_NT = torch.randint(259, (2, 9), generator=torch.Generator().manual_seed(0))
    figures = heldout.Heldout(models[0], rows_NT).excess(models[0])
    assert figures.loss == [0.0, 0.0]
    assert figures.kl == pytest.approx([0.0, 0.0], abs=1e-6)


@pytest.mark.parametrize("axis", ["ffn", "hidden", "layers"])
def test_only_one_axis_shrinks_to_the_nearest_share_outside_the_embedding(axis):
    config = tiny_config("gemma3_text", tie_word_embeddings=True, num_hidden_layers=8)
    full, shape = Shape.of(config), real_methods.shape_at(config, axis, 0.5)
    changed = {name for name, size in vars(shape).items() if size != getattr(full, name)}
    assert changed == {axis}
    inside = real_methods.num_inside(shape, config) / real_methods.num_inside(full, config)
    assert inside == pytest.approx(0.5, abs=0.04)


def test_a_searchs_budget_leaves_the_embedding_out():
    config = tiny_config("gemma3_text", tie_word_embeddings=True)
    full, embedding = Shape.of(config), config["vocab_size"] * config["hidden_size"]
    inside = full.num_parameters(config) - embedding
    assert real_methods.budget(config, 0.75) == pytest.approx(embedding + 0.75 * inside, abs=1)


def test_the_ratio_of_seeds_is_that_of_their_mean_logarithm_with_students_interval(ratios):
    pairs = [(np.array([a]), np.array([b])) for a, b in ((0.5, 1.0), (0.6, 1.0), (0.4, 1.0))]
    found, logs = ratios.ratio(pairs), np.log([0.5, 0.6, 0.4])
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert (found.value, found.low, found.high) == pytest.approx(np.exp([logs.mean(), low, high]))


def test_one_seeds_interval_is_over_rows_and_paired(ratios):
    theirs_N = np.linspace(0.5, 3.0, 24)
    found = ratios.ratio([(0.7 * theirs_N, theirs_N)])
    assert (found.value, found.low, found.high) == pytest.approx((0.7, 0.7, 0.7))


def test_there_is_no_ratio_to_a_model_that_lost_nothing(ratios):
    assert ratios.ratio([(np.array([0.1]), np.array([-0.01]))]) is None
