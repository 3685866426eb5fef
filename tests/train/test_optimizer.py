import pytest
import torch

from compress.train.optimizer import adamw, average_and_clip
from compress.train.settings import TrainingSettings
from tests.models.tiny import tiny_model
from tests.train.inputs import SMALL


def test_only_matrices_decay():
    model = tiny_model("llama", attention_bias=True, **SMALL)
    decaying, others = adamw(model, TrainingSettings(tokens=1, weight_decay=0.3)).param_groups
    assert decaying["weight_decay"] == 0.3 and others["weight_decay"] == 0
    assert all(p.ndim == 2 for p in decaying["params"]) and all(p.ndim == 1 for p in others["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_a_tied_embedding_is_one_parameter_and_a_frozen_one_none():
    model = tiny_model("llama", tie_word_embeddings=True, **SMALL)
    model.model.norm.requires_grad_(False)
    groups = adamw(model, TrainingSettings(tokens=1)).param_groups
    trained = [id(p) for group in groups for p in group["params"]]
    assert len(trained) == len(set(trained)) == len(list(model.parameters())) - 1


@pytest.mark.parametrize(("limit", "length"), [(100.0, 2.5), (0.5, 0.5)])
def test_summed_gradients_become_the_mean_and_no_longer_than_the_limit(limit, length):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    parameters[0].grad, parameters[1].grad = torch.tensor([6.0]), torch.tensor([8.0])
    assert average_and_clip(parameters, num_tokens=4, max_norm=limit) == pytest.approx(2.5)
    after = torch.cat([p.grad for p in parameters])
    assert float(after.norm()) == pytest.approx(length, rel=1e-5)
    assert after[0] / after[1] == pytest.approx(0.75)
