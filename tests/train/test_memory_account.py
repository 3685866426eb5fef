"""The account of training's memory beside what is really allocated, counted on a processor."""

from contextlib import ExitStack

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoConfig

from compress.data.batch import Batch
from compress.distill.cache_check import differences
from compress.distill.comparison import comparison_memory
from compress.distill.divergences import named
from compress.distill.objective import Distillation, Recipe
from compress.machine import Machine, planning_for
from compress.models.checkpoint import auto_class, quiet
from compress.models.layout import spec_from_config
from compress.train.activations import activations
from compress.train.cost import num_trained
from compress.train.memory import recompute_activations
from compress.train.memory_account import (
    Conditions,
    Teaching,
    account,
    moment_bytes,
    teacher_bytes,
    total,
)
from compress.train.objective import NextToken
from compress.train.optimizer import adamw
from compress.train.settings import TrainingSettings
from tests.models.tiny import tiny_config
from tests.train.inputs import CARD

LENGTH = 64
SHAPES = [
    {
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
    {
        "hidden_size": 64,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 16,
    },
    {
        "hidden_size": 192,
        "intermediate_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
]
GPT2_SHAPES = [{"n_embd": 128, "n_inner": 512, "n_head": 4}, {"n_embd": 64, "n_inner": 128, "n_head": 2}]
STUDENT = "student's weights (fp32)"


class Allocations(TorchDispatchMode):
    """The bytes that tensors made inside hold, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if torch.is_tensor(t)}
        for tensor in tree_iter(results):
            if torch.is_tensor(tensor) and id(tensor.untyped_storage()) not in given:
                self._count(tensor.untyped_storage())
        return results

    def _count(self, storage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = _Freed(self, size)
        self.now += size
        self.most = max(self.most, self.now)


class _Freed:
    """Gone with the storage it stands beside."""

    def __init__(self, counted: Allocations, size: int) -> None:
        self.counted, self.size = counted, size

    def __del__(self) -> None:
        self.counted.now -= self.size


def config(family: str, layers: int, **changes) -> dict:
    found = tiny_config(family, **changes)
    found |= {"n_layer" if "n_layer" in found else "num_hidden_layers": layers}
    if "layer_types" in found:
        found["layer_types"] = ["full_attention"] * layers
    for name in [name for name in found if name.endswith("pdrop") or "dropout" in name]:
        found[name] = 0.0
    return found


def model(settings: dict):
    with quiet():
        made = auto_class(settings).from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    made.set_attn_implementation("sdpa" if made._supports_sdpa else "eager")
    return made.train()


def kept_bytes(settings: dict, rows: int, in_bf16: bool, length: int = LENGTH) -> int:
    """What autograd keeps of a forward pass, parameters apart, of packed rows of two documents each."""
    made = model(settings)
    own = {p.untyped_storage().data_ptr() for p in made.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    positions = (torch.arange(length) % (length // 2)).expand(rows, length)
    with ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16, cache_enabled=False))
        made.base_model(
            input_ids=torch.zeros(rows, length, dtype=torch.long), use_cache=False, position_ids=positions
        )
    return sum(size for size, _ in kept.values())


FAMILIES = [
    *((family, shape) for family in ("llama", "qwen3", "gemma") for shape in SHAPES),
    *(("gpt2", shape) for shape in GPT2_SHAPES),
    *((family, SHAPES[0]) for family in ("gemma3_text", "olmo2", "phi3", "qwen3_moe")),
]


@pytest.mark.parametrize("in_bf16", [True, False], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("family", "shape"), FAMILIES)
def test_activations_are_what_autograd_keeps_of_each_further_row(family, shape, in_bf16):
    if family == "gpt2" and not in_bf16:
        pytest.skip("what plain attention keeps of it in fp32 depends on torch's choice of kernel")
    settings = config(family, 3, **shape)
    found = kept_bytes(settings, 3, in_bf16) - kept_bytes(settings, 2, in_bf16)
    expected = activations(settings, in_bf16, LENGTH, on_processor=True)
    masks = LENGTH * 12 * settings.get("n_head", 0) * 3 if family == "gpt2" else 0  # of plain attention
    assert LENGTH * (expected.layers + expected.outside + masks) == pytest.approx(found, rel=0.1)


def test_a_real_layer_keeps_what_was_counted_of_it():
    """Llama-3.1-8B pruned to 4B: 172.6 kB a token and layer."""
    shape = {
        "hidden_size": 3072,
        "intermediate_size": 8448,
        "num_attention_heads": 24,
        "num_key_value_heads": 6,
    }
    settings = tiny_config("llama", **shape, head_dim=128, num_hidden_layers=32)
    assert activations(settings, in_bf16=True).layer == pytest.approx(172_600, rel=0.01)


def peak_of_a_step(settings: dict, teacher: dict, rows: int, recompute: bool, in_bf16: bool) -> int:
    """What a second micro-batch holds at most, with parameters and the gradients of the first."""
    student, taught = model(settings), model(teacher).to(torch.bfloat16 if in_bf16 else torch.float32)
    objective = Distillation(student, taught, Recipe(named("jsd")), num_ids=settings["vocab_size"])
    recompute_activations(student, recompute)
    draw = torch.Generator().manual_seed(0)
    batch = Batch(torch.randint(0, settings["vocab_size"], (rows, LENGTH), generator=draw))
    counted = Allocations()
    for repeat in range(2):
        with counted:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16, cache_enabled=False):
                loss, _ = objective(batch)
            loss.backward()
            del loss
        if repeat == 0:
            counted.most = counted.now
    models = sum(p.numel() * p.element_size() for m in (student, taught) for p in m.parameters())
    return counted.most + models


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("rows", [2, 8])
@pytest.mark.parametrize(
    ("family", "in_bf16"), [("llama", True), ("llama", False), ("qwen3", False), ("gemma", False)]
)
def test_a_whole_step_takes_what_its_account_says(family, in_bf16, rows, recompute):
    sizes = {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2048}
    settings = config(family, 6, hidden_size=128, intermediate_size=352, num_attention_heads=4, **sizes)
    larger = config(family, 8, hidden_size=160, intermediate_size=448, num_attention_heads=4, **sizes)
    counted = peak_of_a_step(settings, larger, rows, recompute, in_bf16)
    spec, training = spec_from_config(settings, "F32"), TrainingSettings(tokens=1)
    conditions = Conditions(LENGTH, rows, recompute, in_bf16, on_processor=True)
    teaching = Teaching(spec_from_config(larger, "BF16" if in_bf16 else "F32"))
    items = account(spec, training, spec.num_parameters, teaching, conditions)
    apart = ("process", "optimizer's moments (adamw)")
    assert total([i for i in items if i.name not in apart]) == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "adamw_bf16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_moments_take_what_the_account_says(optimizer, tied):
    settings = config("llama", 4, hidden_size=128, intermediate_size=352, tie_word_embeddings=tied)
    made = model(settings)
    training = TrainingSettings(tokens=1, optimizer=optimizer)
    moved = adamw(made, training)
    for parameter in made.parameters():
        parameter.grad = torch.zeros_like(parameter)
    moved.step()
    kept = [v for state in moved.state.values() for name, v in state.items() if "qmap" not in name]
    found = sum(value.nbytes for value in kept if torch.is_tensor(value))
    spec = spec_from_config(settings, "F32")
    assert moment_bytes(spec, training, spec.num_parameters) == pytest.approx(found, rel=0.03)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_a_rounded_teacher_takes_what_the_account_says(precision, tmp_path):
    from compress.distill.teacher import load_teacher
    from tests.train.inputs import parent

    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4, "num_hidden_layers": 4}
    made = parent(tmp_path, "llama", **sizes, head_dim=32)
    teacher = load_teacher(tmp_path, "fp32", precision, "cpu")
    found = sum(p.numel() * p.element_size() for p in teacher.parameters())
    for module in teacher.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        found += state.absmax.nbytes if state is not None else 0
        scales = getattr(getattr(module, "weight", None), "SCB", None)
        found += scales.nbytes if scales is not None else 0
    assert teacher_bytes(Teaching(made.spec, precision), in_bf16=False) == pytest.approx(found, rel=0.02)


def on_card(settings: TrainingSettings, spec, **conditions):
    given = {
        "sequence_length": 4096,
        "micro_batch": 1,
        "recompute": True,
        "in_bf16": True,
        "on_processor": False,
    }
    with planning_for(Machine(card=CARD, num_cards=8)):
        trained = num_trained(spec, settings)
        return account(spec, settings, trained, None, Conditions(**{**given, **conditions}))


def test_what_is_kept_grows_with_the_micro_batch_and_not_what_is_held():
    spec = spec_from_config(config("llama", 8, hidden_size=512, intermediate_size=1408), "F32")
    settings = TrainingSettings(tokens=1)
    one, two = ({i.name: i.num_bytes for i in on_card(settings, spec, micro_batch=n)} for n in (1, 2))
    kept = "layers' inputs, kept to recompute the rest"
    assert two[kept] == 2 * one[kept] > 0 and two[STUDENT] == one[STUDENT] == 4 * spec.num_parameters


def test_no_masks_are_counted_on_cards_where_attention_needs_none():
    settings = tiny_config("llama")
    short, long = (activations(settings, True, length, on_processor=False).layer for length in (128, 8192))
    assert short == long


def test_a_team_keeps_no_copies_of_all_weights():
    spec = spec_from_config(config("llama", 8), "F32")
    alone, team = (on_card(TrainingSettings(tokens=1), spec, recompute=False, devices=n) for n in (1, 8))
    copies = "bf16 copies of the layers' weights"
    assert any(item.name == copies for item in alone) and not any(item.name == copies for item in team)


def test_comparing_a_cached_teacher_takes_what_its_account_says():
    sizes = {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2048}
    settings = config("llama", 6, hidden_size=128, intermediate_size=352, num_attention_heads=4, **sizes)
    larger = config("llama", 8, hidden_size=160, intermediate_size=448, num_attention_heads=4, **sizes)
    student, teacher = model(settings), model(larger)
    whole = Distillation(student, teacher, Recipe(named("jsd")), num_ids=sizes["vocab_size"])
    cached = NextToken(student)  # it has no teacher, as one from a cache
    draw = torch.Generator().manual_seed(0)
    batch = Batch(torch.randint(0, sizes["vocab_size"], (2, 512), generator=draw))
    counted = Allocations()
    with counted:
        differences(student, whole, cached, batch)
    models = sum(p.numel() * p.element_size() for m in (student, teacher) for p in m.parameters())
    spec, taught = spec_from_config(settings, "F32"), spec_from_config(larger, "F32")
    with planning_for(Machine()):
        items = comparison_memory(spec, TrainingSettings(tokens=1, data="d"), Teaching(taught), 512)
    found = total([item for item in items if item.name != "process"])
    assert found == pytest.approx(counted.most + models, rel=0.15)
