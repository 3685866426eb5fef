import pytest

from compress.machine import Machine, planning_for
from compress.models.checkpoint import load_model
from compress.models.layout import spec_from_config
from compress.quantities import format_memory
from compress.train import step
from compress.train.cost import PROCESS_BYTES, num_trained, training_work
from compress.train.launch import Launch
from compress.train.lora import add_adapters
from compress.train.memory_account import Teaching
from compress.train.settings import Lora
from tests.models.tiny import TRAINABLE, tiny_config
from tests.train.inputs import CARD, parent

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
def on_cards():
    with planning_for(Machine(card=CARD, num_cards=8)):
        yield


@pytest.fixture
def on_processors():
    with planning_for(Machine()):
        yield


def of(work, *starts):
    """The bytes of an account's items whose names start so."""
    return sum(item.num_bytes for item in work.memory if item.name.startswith(starts))


HELD = "student's weights", "gradients (", "optimizer's moments"


@pytest.mark.usefixtures("on_cards")
def test_cards_share_weights_gradients_and_moments_and_each_has_activations(tmp_path):
    spec = parent(tmp_path, "llama").spec
    alone, two, sixteen = (training_work(spec, launched(*team)) for team in ((1,), (2,), (8, 2)))
    assert (alone.devices, two.devices, sixteen.devices) == (1, 2, 16)
    assert alone.flops == two.flops == sixteen.flops
    held = 16 * spec.num_parameters
    assert (of(alone, *HELD), of(two, *HELD)) == (held, held // 2)
    assert of(sixteen, *HELD) == pytest.approx(held // 16, abs=3)
    assert of(alone, "activations") == of(two, "activations") == of(sixteen, "activations") > 0


@pytest.mark.usefixtures("on_cards")
def test_a_teachers_embeddings_lie_whole_on_every_card(tmp_path):
    spec = parent(tmp_path, "llama").spec
    beside = training_work(spec, launched(1024), Teaching(spec))
    embeddings = sum(tensor.num_bytes for name, tensor in spec.tensors.items() if "layers" not in name)
    divided = spec.weight_bytes // 1024
    expected = embeddings * (1 - 1 / 1024) + divided
    assert of(beside, "teacher's") == pytest.approx(expected, abs=2)


def of_8b(**settings):
    """The work of training 8 billion parameters on rows of 4,096 tokens."""
    shape = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    shape |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256}
    spec = spec_from_config(tiny_config("llama", **shape), "BF16")
    return training_work(spec, step.Config(tokens=10**9, **settings), Teaching(spec), 4096)


@pytest.mark.usefixtures("on_cards")
def test_an_account_adds_up_and_says_what_would_take_less():
    work = of_8b(micro_batch=8)
    assert work.peak_memory_bytes == sum(item.num_bytes for item in work.memory)
    assert all(item.num_bytes > 0 for item in work.memory)
    assert work.host_memory_bytes > 6 * 8 * 10**9
    assert any(remedy.startswith("`optimizer: adamw_8bit` (saves") for remedy in work.remedies)


@pytest.mark.usefixtures("on_cards")
def test_activations_are_recomputed_where_a_card_has_no_room_for_them():
    large, small = of_8b(), of_8b(launch=Launch(processes=8), micro_batch=1)
    assert of(large, "layers' inputs") and not of(large, "activations")
    assert of(small, "activations") and not of(small, "layers' inputs")
    larger = of_8b(launch=Launch(processes=8), micro_batch=4)
    assert of(larger, "layers' inputs") == 4 * 4096 * (4 * 32 + 10) * 4096


@pytest.mark.usefixtures("on_cards")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"optimizer": "adamw_8bit"}, "optimizer: adamw_8bit"),
        ({"launch": Launch(processes=2)}, "launch: {processes: 2}"),
        ({"lora": Lora()}, "lora: {}"),
    ],
)
def test_a_remedy_saves_what_it_says(changed, said):
    now, then = of_8b(), of_8b(**changed)
    saved = format_memory(now.peak_memory_bytes - then.peak_memory_bytes)
    assert f"`{said}` (saves {saved})" in now.remedies


@pytest.mark.usefixtures("on_processors")
def test_processes_on_one_processor_take_memory_each_and_save_no_time(tmp_path):
    spec = parent(tmp_path, "llama").spec
    one, eight = (training_work(spec, launched(processes)) for processes in (1, 8))
    assert one.devices == eight.devices == 1
    assert eight.peak_memory_bytes - one.peak_memory_bytes >= 7 * PROCESS_BYTES
    assert one.host_memory_bytes == 0


@pytest.mark.usefixtures("on_processors")
def test_machines_without_cards_share_the_work(tmp_path):
    assert training_work(parent(tmp_path, "llama").spec, launched(4, 2)).devices == 2
