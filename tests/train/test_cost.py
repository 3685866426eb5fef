import pytest

from compress.models.checkpoint import load_model
from compress.train import step
from compress.train.cost import num_trained, training_work
from compress.train.lora import add_adapters
from compress.train.settings import Lora
from tests.models.tiny import TRAINABLE
from tests.train.inputs import parent

WHOLE = step.Config(tokens=1024)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")], ids=["all", "some"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_adapters_are_counted_as_they_are_made(family, targets, tmp_path):
    spec = parent(tmp_path, family).spec
    settings = WHOLE.model_copy(update={"lora": Lora(rank=4, targets=targets)})
    model = load_model(tmp_path)
    add_adapters(model, settings.lora, seed=0)
    assert num_trained(spec, settings) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", TRAINABLE)
def test_without_adapters_all_parameters_learn_and_with_them_less_is_kept(family, tmp_path):
    spec = parent(tmp_path, family).spec
    adapted = training_work(spec, WHOLE.model_copy(update={"lora": Lora(rank=1)}))
    whole = training_work(spec, WHOLE)
    assert num_trained(spec, WHOLE) == spec.num_parameters
    assert adapted.peak_memory_bytes < whole.peak_memory_bytes and adapted.disk_bytes < whole.disk_bytes
