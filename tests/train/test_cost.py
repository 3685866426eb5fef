import pytest

from compress.models.checkpoint import load_model
from compress.train import step
from compress.train.cost import PROCESS_BYTES, num_trained, training_work
from compress.train.launch import Launch
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


def launched(processes, nodes=1):
    meeting = "head:29400" if nodes > 1 else None
    return WHOLE.model_copy(update={"launch": Launch(processes=processes, nodes=nodes, rendezvous=meeting)})


@pytest.fixture
def on_cards(monkeypatch):
    monkeypatch.setattr("compress.train.cost.device_class", lambda: "NVIDIA H100")


@pytest.mark.usefixtures("on_cards")
def test_cards_share_weights_gradients_and_moments_and_each_has_activations(tmp_path):
    spec = parent(tmp_path, "llama").spec
    alone, two, sixteen = (training_work(spec, launched(*team)) for team in ((1,), (2,), (8, 2)))
    assert (alone.devices, two.devices, sixteen.devices) == (1, 2, 16)
    assert alone.flops == two.flops == sixteen.flops
    held = 16 * spec.num_parameters
    assert alone.peak_memory_bytes - two.peak_memory_bytes == held // 2
    assert alone.peak_memory_bytes - sixteen.peak_memory_bytes == held - held // 16


@pytest.mark.usefixtures("on_cards")
def test_a_teachers_embeddings_lie_whole_on_every_card(tmp_path):
    spec = parent(tmp_path, "llama").spec
    alone, beside = (training_work(spec, launched(1024), teacher) for teacher in (None, spec))
    embeddings = sum(tensor.num_bytes for name, tensor in spec.tensors.items() if "layers" not in name)
    shared = spec.weight_bytes // 1024
    assert beside.peak_memory_bytes - alone.peak_memory_bytes == pytest.approx(embeddings + shared, abs=1)


def test_processes_on_one_processor_take_memory_each_and_save_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.train.cost.device_class", lambda: "cpu")
    spec = parent(tmp_path, "llama").spec
    one, eight = (training_work(spec, launched(processes)) for processes in (1, 8))
    assert one.devices == eight.devices == 1
    assert eight.peak_memory_bytes - one.peak_memory_bytes >= 7 * PROCESS_BYTES


def test_machines_without_cards_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.train.cost.device_class", lambda: "cpu")
    assert training_work(parent(tmp_path, "llama").spec, launched(4, 2)).devices == 2
