"""The contract of every step in the folder, on every setting that changes what it writes."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress import plugins
from compress.backends.opening import open_artifact
from compress.errors import InputError
from compress.models.checkpoint import load_model, quiet
from compress.models.spec import read_spec
from compress.quantize import rtn
from compress.quantize.grouped import dequantize, unpack
from compress.quantize.packed import packing_of
from compress.records import Artifact
from tests.fakes import FakeContext
from tests.models.tiny import FAMILIES, token_ids, write_tiny

SETTINGS = {
    "quantize.rtn": [
        {"bits": 4, "group_size": 16},
        {"bits": 8, "group_size": 32},
        {"group_size": 16, "skip": ()},
    ],
    "quantize.bitsandbytes": [{"bits": 8}, {"bits": 4}, {"bits": 4, "double_quant": True}],
}
STEPS = [name for name in plugins.step_names() if name.startswith("quantize")]
CASES = [(name, settings) for name in STEPS for settings in SETTINGS.get(name, [{}])]
MODELS = {
    "llama": {},
    "qwen3 tied": {"tie_word_embeddings": True},
    "qwen2 bf16": {},
}

# The library asks for a kernel it can do without.
pytestmark = pytest.mark.filterwarnings("ignore:Failed to load CPU gemm_4bit_forward")


@pytest.fixture(scope="module", params=MODELS)
def parent(request, tmp_path_factory) -> Artifact:
    folder = write_tiny(tmp_path_factory.mktemp("parent"), request.param.split()[0], **MODELS[request.param])
    if request.param.endswith("bf16"):
        path = folder / "model.safetensors"
        halved = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
        save_file(halved, path, metadata={"format": "pt"})
    return Artifact(key="parent", kind="hf", path=folder, spec=read_spec(folder))


def quantized(parent: Artifact, name: str, settings: dict, folder) -> tuple[Artifact, FakeContext]:
    step = plugins.step(name)
    context = FakeContext(folder)
    outcome = step.run(parent, step.Config(**settings), context)
    return Artifact(key="student", kind=step.PRODUCES, path=folder, spec=outcome.spec), context


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_what_was_predicted_is_what_was_written(name, settings, parent, tmp_path):
    step = plugins.step(name)
    student, _ = quantized(parent, name, settings, tmp_path / "student")
    predicted = step.predict(parent.spec, step.Config(**settings))
    assert student.spec == predicted == read_spec(student.path)
    assert predicted.num_parameters == parent.spec.num_parameters
    assert predicted.weight_bytes < parent.spec.weight_bytes


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_plain_transformers_loads_the_result_and_generates(name, settings, parent, tmp_path):
    student, _ = quantized(parent, name, settings, tmp_path / "student")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(student.path)
    tokens = model.generate(token_ids(1, 8), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, 12)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_the_quantized_model_still_resembles_its_parent(name, settings, parent, tmp_path):
    student, _ = quantized(parent, name, settings, tmp_path / "student")
    with torch.no_grad():
        expected = load_model(parent.path)(token_ids()).logits.float()
        actual = load_model(student.path)(token_ids()).logits.float()
    # Unrelated logits would be off by 1.4 of their norm.
    limit = 0.1 if settings.get("bits") == 8 else 0.6
    assert (actual - expected).norm() < limit * expected.norm()


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_the_same_settings_give_the_same_bytes(name, settings, parent, tmp_path):
    first, _ = quantized(parent, name, settings, tmp_path / "first")
    second, _ = quantized(parent, name, settings, tmp_path / "second")
    files = sorted(path.name for path in first.path.iterdir())
    assert files == sorted(path.name for path in second.path.iterdir())
    for file in files:
        assert (first.path / file).read_bytes() == (second.path / file).read_bytes()


@pytest.mark.parametrize("name", STEPS)
def test_rehearsal_settings_fit_a_rehearsal_model(name, parent):
    step = plugins.step(name)
    rehearsed = step.rehearse(step.Config())
    assert step.predict(parent.spec, rehearsed).weight_bytes < parent.spec.weight_bytes
    assert step.estimate(parent.spec, rehearsed, {}).disk_bytes > 0


@pytest.mark.parametrize("bits", [4, 8])
def test_transformers_expands_packed_weights_to_exactly_our_own(bits, parent, tmp_path):
    student, _ = quantized(parent, "quantize.rtn", {"bits": bits, "group_size": 16}, tmp_path / "student")
    stored = load_file(student.path / "model.safetensors")
    model = load_model(student.path)
    model(token_ids(1, 2))  # transformers expands on first use
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.3.mlp.down_proj"):
        integers = unpack(stored[f"{name}.weight_packed"], bits)
        expected = dequantize(integers, stored[f"{name}.weight_scale"])
        assert torch.equal(model.get_submodule(name).weight, expected)


def test_packing_keeps_the_parents_files_apart(tmp_path):
    folder = write_tiny(tmp_path / "parent", "llama", shard="100KB")
    parent = Artifact(key="parent", kind="hf", path=folder, spec=read_spec(folder))
    student, context = quantized(parent, "quantize.rtn", {"group_size": 16}, tmp_path / "student")
    weights = [path.name for path in folder.glob("*.safetensors")]
    assert len(weights) > 1
    assert sorted(weights) == sorted(path.name for path in student.path.glob("*.safetensors"))
    assert context.reports[-1][0] == context.reports[-1][1]
    load_model(student.path)


def test_a_group_that_does_not_fill_a_layer_names_sizes_that_do(parent):
    with pytest.raises(
        InputError, match=r"group_size: 128 does not divide .* every quantized layer: 64, 32, 16"
    ):
        rtn.predict(parent.spec, rtn.Config(group_size=128))


def test_skipped_layers_stay_in_floating_point(parent):
    spec = rtn.predict(parent.spec, rtn.Config(group_size=16, skip=("lm_head", "down_proj", "layers.0")))
    packed = {name for name in spec.tensors if name.endswith("weight_packed")}
    assert packed
    assert not any("down_proj" in name or ".layers.0." in name for name in packed)


def test_a_misspelled_skip_is_refused_with_the_nearest_name(parent):
    with pytest.raises(InputError, match="did you mean 'down_proj'"):
        rtn.predict(parent.spec, rtn.Config(group_size=16, skip=("down_prj",)))


def test_double_quantization_of_eight_bits_is_refused():
    with pytest.raises(ValueError, match="double_quant is for bits: 4"):
        plugins.step("quantize.bitsandbytes").Config(bits=8, double_quant=True)


NOT_LINEAR = {
    "gpt2": "its weights are Conv1D",
    "olmoe": "experts of a layer in one tensor",
    "qwen3_moe": "experts",
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("quantize.rtn", {"bits": 8, "group_size": 16}), ("quantize.bitsandbytes", {"bits": 8})],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_quantized_but_its_embeddings_and_head_or_refused(family, name, settings, tmp_path):
    folder = write_tiny(tmp_path / "parent", family)
    whole, step = Artifact(key="p", kind="hf", path=folder, spec=read_spec(folder)), plugins.step(name)
    if family in NOT_LINEAR:
        with pytest.raises(InputError, match=NOT_LINEAR[family]):
            step.predict(whole.spec, step.Config(**settings))
        return
    student, _ = quantized(whole, name, settings, tmp_path / "student")
    assert student.spec == step.predict(whole.spec, step.Config(**settings))
    model, reference = (open_artifact(a).model for a in (student, whole))
    with torch.no_grad():
        logits, expected = (m(token_ids()).logits.float() for m in (model, reference))
    assert 0 < float((logits - expected).std() / expected.std()) < 0.1
    for get in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(model, get)().weight, getattr(reference, get)().weight)


@pytest.mark.parametrize(
    ("hidden", "ffn", "expected"), [(256, 512, 128), (320, 512, 64), (96, 160, 32), (48, 80, 16)]
)
def test_left_out_a_group_is_the_largest_that_every_layer_divides(tmp_path, hidden, ffn, expected):
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    spec = read_spec(write_tiny(tmp_path / "model", "qwen3", head_dim=hidden, **sizes))
    packed = rtn.predict(spec, rtn.Config())
    assert packing_of(packed.config) == (4, expected)


def test_widths_that_no_group_divides_are_refused(tmp_path):
    spec = read_spec(write_tiny(tmp_path / "model", "qwen3", intermediate_size=136))
    with pytest.raises(InputError, match="group_size: 16 does not divide the 136 inputs"):
        rtn.predict(spec, rtn.Config())
