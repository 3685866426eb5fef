import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import plugins
from compress.errors import InputError, StepFailed
from compress.export import onnx as step
from compress.export import onnx_check
from compress.export.onnx_check import _batch
from compress.models.spec import read_spec
from compress.quantize import rtn
from compress.quantize.grouped import dequantize, unpack
from compress.records import Artifact, ModelSpec, Outcome
from tests.fakes import FakeContext
from tests.models.tiny import DECODERS, ENCODERS, write_tiny


@dataclass(frozen=True)
class Exported:
    parent: Artifact
    config: step.Config
    folder: Path
    outcome: Outcome

    def initializers(self) -> dict[str, torch.Tensor]:
        graph = onnx.load(self.folder / "model.onnx").graph
        return {i.name: torch.from_numpy(onnx.numpy_helper.to_array(i).copy()) for i in graph.initializer}


def checkpoint(folder: Path, family: str, dtype: torch.dtype = torch.float32, **changes) -> Artifact:
    write_tiny(folder, family, num_hidden_layers=2, **changes)
    path = folder / "model.safetensors"
    save_file(
        {name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"}
    )
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return Artifact(key="parent", kind="hf", path=folder, spec=read_spec(folder))


def packed(folder: Path, parent: Artifact, **settings) -> Artifact:
    outcome = rtn.run(parent, rtn.Config(**settings), FakeContext(folder))
    return Artifact(key="packed", kind="packed", path=folder, spec=outcome.spec)


def export(parent: Artifact, folder: Path, **settings) -> Exported:
    config = step.Config(**settings)
    return Exported(parent, config, folder, step.run(parent, config, FakeContext(folder)))


def make(name: str, folder: Path) -> Exported:
    """Each case is the cheapest that shows its point; exporting takes seconds."""
    if name == "float, tied head":
        return export(checkpoint(folder / "a", "llama", tie_word_embeddings=True), folder / "b")
    if name == "packed 4 bits, bf16":
        parent = checkpoint(folder / "a", "qwen3", torch.bfloat16, intermediate_size=192)
        return export(packed(folder / "p", parent, bits=4, group_size=16), folder / "b", accuracy_level=0)
    if name == "packed 8 bits, groups of 96, biases":
        parent = checkpoint(
            folder / "a", "qwen2", hidden_size=96, num_attention_heads=6, num_key_value_heads=3
        )
        return export(
            packed(folder / "p", parent, bits=8, group_size=96, skip=("lm_head", "o_proj")), folder / "b"
        )
    assert name == "float to int8, bf16, sliding window"
    return export(
        checkpoint(folder / "a", "mistral", torch.bfloat16, sliding_window=8), folder / "b", precision="int8"
    )


CASES = ["float, tied head", "packed 4 bits, bf16"]
SLOW = ["packed 8 bits, groups of 96, biases", "float to int8, bf16, sliding window"]


@pytest.fixture(
    scope="module", params=[*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)]
)
def exported(request, tmp_path_factory) -> Exported:
    return make(request.param, tmp_path_factory.mktemp("export"))


def test_what_was_predicted_is_what_the_file_holds(exported):
    predicted = step.predict(exported.parent.spec, exported.config)
    assert exported.outcome.spec == predicted
    stored = {name: tuple(tensor.shape) for name, tensor in exported.initializers().items()}
    assert {name: tensor.shape for name, tensor in predicted.tensors.items()}.items() <= stored.items()
    others = sum(t.nbytes for name, t in exported.initializers().items() if name not in predicted.tensors)
    assert others < 1000
    assert predicted.num_parameters == exported.parent.spec.num_parameters


def test_the_logits_are_the_parents(exported):
    facts = exported.outcome.facts
    assert facts["logit_spread"] > 0.5  # not flat: a wrong layer would show
    rounds = exported.config.precision == "int8" or (
        exported.parent.kind == "packed" and exported.config.accuracy_level == 4
    )
    if rounds:
        assert facts["mean_logit_difference"] < 0.05 * facts["logit_spread"]
    else:
        assert facts["max_logit_difference"] < 1e-4
        assert facts["same_top_token_rate"] == 1.0


def test_a_packed_parents_integers_and_scales_are_kept(exported):
    if exported.parent.kind != "packed":
        assert not any(name.endswith("_shape") for name in exported.initializers())
        return
    bits, _ = rtn_packing(exported.parent.spec)
    stored = load_file(exported.parent.path / "model.safetensors")
    kept = exported.initializers()
    packed_names = [name for name in stored if name.endswith("weight_packed")]
    assert packed_names
    for name in packed_names:
        scale = name.replace("_packed", "_scale")
        integers = unpack(stored[name], bits)
        blocks = kept[name]  # [N, blocks, bytes of a block]: the words' own bytes
        assert torch.equal(unpack(blocks.flatten(1).view(torch.int32), bits), integers)
        expected = dequantize(integers, stored[scale].float())
        assert torch.equal(dequantize(integers, kept[scale]), expected)


def rtn_packing(spec: ModelSpec) -> tuple[int, int]:
    weights = spec.config["quantization_config"]["config_groups"]["group_0"]["weights"]
    return weights["num_bits"], weights["group_size"]


def test_every_integer_layer_computes_on_its_integers(exported):
    graph = onnx.load(exported.folder / "model.onnx").graph
    products = {node.input[1] for node in graph.node if node.op_type == "MatMulNBits"}
    assert products == {name for name in exported.outcome.spec.tensors if name.endswith("_packed")}


def test_the_graph_is_named_as_other_runtimes_expect(exported):
    graph = onnx.load(exported.folder / "model.onnx").graph
    cached = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert [value.name for value in graph.input] == [
        "input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in cached)
    ]  # fmt: skip
    assert [value.name for value in graph.output] == ["logits", *(f"present.{name}" for name in cached)]
    sizes = [dim.dim_param or dim.dim_value for dim in graph.input[3].type.tensor_type.shape.dim]
    heads, head_dim = sizes[1], sizes[3]
    assert sizes == ["batch_size", heads, "past_sequence_length", head_dim]
    assert isinstance(heads, int) and isinstance(head_dim, int)


def test_the_folder_has_what_others_need_to_run_it(exported):
    assert {"model.onnx", "config.json", "generation_config.json", "tokenizer.json"} <= {
        path.name for path in exported.folder.iterdir()
    }
    assert "quantization_config" not in json.loads(
        (exported.folder / "config.json").read_text(encoding="utf-8")
    )


def test_a_graph_that_computes_something_else_fails_the_step(exported, tmp_path):
    other = checkpoint(tmp_path / "other", exported.parent.spec.model_type, **shape_of(exported.parent.spec))
    with pytest.raises(StepFailed, match="does not compute what its parent does"):
        onnx_check.check(other.model_copy(update={"kind": "hf"}), exported.folder, exact=False, seed=0)


def shape_of(spec: ModelSpec) -> dict:
    kept = (
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "tie_word_embeddings",
    )
    return {key: spec.config[key] for key in kept if key in spec.config} | {"seed": 1}


@pytest.mark.slow
def test_weights_past_protobufs_limit_go_to_a_file_beside_the_graph(tmp_path, monkeypatch):
    from compress.export import onnx_graph

    monkeypatch.setattr(onnx_graph, "EMBEDDED", 1000)
    parent = checkpoint(tmp_path / "a", "llama", num_attention_heads=2, num_key_value_heads=1)
    result = export(parent, tmp_path / "b")
    # Vectors of a few hundred bytes stay in the graph.
    assert (tmp_path / "b" / "model.onnx.data").stat().st_size > 0.9 * result.outcome.spec.weight_bytes
    assert result.outcome.facts["max_logit_difference"] < 1e-4


def test_a_precision_for_packed_integers_is_refused(tmp_path):
    parent = packed(tmp_path / "p", checkpoint(tmp_path / "a", "llama"), bits=4, group_size=16)
    with pytest.raises(InputError, match=r"precision: int8 is for float parents.*keeps its integers"):
        step.predict(parent.spec, step.Config(precision="int8"))


def test_inputs_no_block_divides_are_refused(tmp_path):
    parent = checkpoint(tmp_path / "a", "llama", intermediate_size=100)
    with pytest.raises(InputError, match=r"down_proj: blocks of 16 inputs do not divide 100"):
        step.predict(parent.spec, step.Config(precision="int8"))


def test_a_missing_extra_is_named_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=r"pip install 'compress\[onnx\]'"):
        step.predict(checkpoint(tmp_path / "a", "llama").spec, step.Config())


def test_a_bitsandbytes_parent_is_not_accepted():
    exports = [plugins.step(name) for name in plugins.step_names() if name.startswith("export")]
    assert exports
    assert not any("bitsandbytes" in export.ACCEPTS for export in exports)


NOT_WRITTEN = {
    **dict.fromkeys(ENCODERS, "it is an encoder"),
    "gpt2": "Conv1D",
    "gpt_neox": "head has another name",
    "olmoe": "it has experts",
    "qwen3_moe": "it has experts",
}


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in DECODERS if name not in NOT_WRITTEN])
def test_every_decoder_of_linear_layers_is_written(family, tmp_path):
    exported = export(checkpoint(tmp_path / "a", family), tmp_path / "b")  # compares logits with the parent's
    assert exported.outcome.spec == step.predict(exported.parent.spec, exported.config)


@pytest.mark.parametrize("family", NOT_WRITTEN)
def test_what_the_graph_has_no_place_for_is_refused_when_planned(family, tmp_path):
    with pytest.raises(InputError, match=f"cannot write {family}: .*{NOT_WRITTEN[family]}"):
        step.predict(checkpoint(tmp_path, family).spec, step.Config())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        ("phi3", {"rope_scaling": {"type": "su", "long_factor": [1.0], "short_factor": [1.0]}}),
        ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}}),
    ],
)
def test_positions_that_turn_by_the_length_read_are_refused_when_planned(family, changes, tmp_path):
    spec = checkpoint(tmp_path, family).spec
    spec = spec.model_copy(update={"config": {**spec.config, "rope_parameters": None, **changes}})
    with pytest.raises(InputError, match=f"cannot write {family}: it rotates positions by how many tokens"):
        step.predict(spec, step.Config())


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_positions_that_always_turn_alike_are_planned(kind, tmp_path):
    spec = checkpoint(tmp_path, "llama").spec
    rope = {"rope_parameters": {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4}}
    assert step.predict(spec.model_copy(update={"config": spec.config | rope}), step.Config())


@pytest.mark.parametrize(("start", "first"), [(7, [7, 7, 7]), (None, None), (10**6, None), ([7, 8], None)])
def test_what_is_compared_begins_as_texts_begin(start, first):
    ids, mask = _batch(SimpleNamespace(vocabulary=50, num_positions=64), start, seed=3)
    plain, _ = _batch(SimpleNamespace(vocabulary=50, num_positions=64), None, seed=3)
    beginnings = ids[torch.arange(3), mask.argmax(1)].tolist()
    assert beginnings == (first or plain[torch.arange(3), mask.argmax(1)].tolist())
    assert int((ids != plain).sum()) <= 3
