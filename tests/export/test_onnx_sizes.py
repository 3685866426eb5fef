"""A graph traced at fixed sizes is one for all sizes, and computes what transformers does."""

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from compress.export import onnx_graph
from compress.export.onnx_sizes import CHOICES, NotUnderstood, Sizes, free_sizes, sizes_for
from tests.models.tiny import DECODERS, write_tiny

WRITTEN = sorted(set(DECODERS) - {"gpt2", "gpt_neox", "olmoe", "qwen3_moe"})
SIZES = Sizes(1009, 10_006, 100_057)


def values(*numbers):
    return ir.node("Constant", [], {"value_ints": list(numbers)})


def scalar(number, dtype=np.int64):
    return ir.node("Constant", [], {"value": ir.tensor(np.array(number, dtype=dtype))})


def model_of(*nodes):
    """A graph with the inputs of a decoder that outputs what its last node does."""
    shapes = {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "past_key_values.0.key": ["batch_size", 2, "past_sequence_length", 4],
    }
    inputs = [ir.val(name, ir.DataType.INT64, shape) for name, shape in shapes.items()]
    output = nodes[-1].outputs[0]
    output.name, output.dtype = "out", ir.DataType.INT64
    graph = ir.Graph(inputs, [output], nodes=nodes, opset_imports={"": 18}, name="small")
    return ir.Model(graph, ir_version=10)


def run(model, batch, new, past):
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString())
    shapes = {
        "input_ids": (batch, new),
        "attention_mask": (batch, past + new),
        "past_key_values.0.key": (batch, 2, past, 4),
    }
    return session.run(None, {name: np.zeros(shape, dtype=np.int64) for name, shape in shapes.items()})[0]


def test_an_integer_made_of_sizes_is_computed_from_the_inputs():
    constant = values(1009 * 8, 10_006, -1, 100_057, 110_063, 7, 1009 * 10_006)
    model = model_of(constant, ir.node("Identity", [constant.outputs[0]]))
    free_sizes(model, SIZES)
    assert run(model, batch=3, new=5, past=11).tolist() == [24, 5, -1, 11, 16, 7, 15]
    assert run(model, batch=1, new=1, past=0).tolist() == [8, 1, -1, 0, 1, 7, 1]


def test_a_scalar_stays_one():
    start, limit, step = scalar(100_057), scalar(110_063), scalar(1)
    model = model_of(start, limit, step, ir.node("Range", [n.outputs[0] for n in (start, limit, step)]))
    free_sizes(model, SIZES)
    assert run(model, batch=2, new=3, past=4).tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    "constant",
    [
        values(100_057 - 1),  # the last place of the cache
        values(100_057 - 1009),
        values(10_006 // 2),
        scalar(110_063, np.int32),
        scalar(10_006, np.float32),
        ir.node("Constant", [], {"value_float": 1009.0}),
    ],
    ids=["last of the cache", "difference", "half", "of 32 bits", "rounded", "float"],
)
def test_what_may_come_of_sizes_in_another_way_is_not_understood(constant):
    with pytest.raises(NotUnderstood, match="sizes"):
        free_sizes(model_of(constant, ir.node("Identity", [constant.outputs[0]])), SIZES)


def test_sizes_in_an_attribute_are_not_understood():
    constant = values(4, 4)
    split = ir.node("ReduceSum", [constant.outputs[0]], {"keepdims": 1009})
    with pytest.raises(NotUnderstood, match="1009"):
        free_sizes(model_of(constant, split), SIZES)


def test_everyday_numbers_are_no_sizes():
    constants = [
        values(0, 1, -1, 64, 127, 128, 256, 1000, 1024, 4096, 8192, 2**31 - 1, 2**63 - 1),
        scalar(50.0, np.float32),
    ]
    free_sizes(model_of(*constants, ir.node("Identity", [constants[0].outputs[0]])), SIZES)


def test_the_sizes_are_in_no_number_of_the_model():
    assert sizes_for({"hidden_size": 64, "layers": [1, 2]}) == CHOICES[0]
    assert sizes_for({"rope": {"original": 2018}}) == CHOICES[1]
    assert sizes_for({"odd": [sizes.batch for sizes in CHOICES]}) is None
    for sizes in CHOICES:
        assert all(all(prime % n for n in range(2, int(prime**0.5) + 1)) for prime in sizes.primes)
        assert len(sizes.primes) == 4


def test_what_is_not_understood_is_traced_with_symbols(tmp_path, monkeypatch):
    def refuse(model, sizes):
        raise NotUnderstood("strange")

    write_tiny(tmp_path, "llama", num_hidden_layers=1)
    config = json.loads((tmp_path / "config.json").read_text())
    monkeypatch.setattr(onnx_graph, "free_sizes", refuse)
    seen = []
    traced = onnx_graph._traced
    monkeypatch.setattr(
        onnx_graph,
        "_traced",
        lambda *given, **named: seen.append(named["is_free"]) or traced(*given, **named),
    )
    onnx_graph.trace(config)
    assert seen == [False, True]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", WRITTEN)
def test_a_graph_is_understood_and_computes_what_transformers_does_at_any_size(family, tmp_path, monkeypatch):
    """Beyond a sliding window, without a cache and after one, padded on the left and not."""
    write_tiny(tmp_path, family, num_hidden_layers=2)
    config = json.loads((tmp_path / "config.json").read_text())
    monkeypatch.setattr(onnx_graph, "SYMBOLIC", None)  # tracing with symbols would fail
    graph = onnx_graph.trace(config)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
    stored = dict(model.state_dict())
    for name, value in graph.graph.initializers.items():
        if name in stored:
            value.const_value = ir.tensor(stored[name].numpy(), name=name)
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(graph).SerializeToString())
    for batch, new, past, padding in (
        (1, 1, 0, 0),
        (1, 1, 9, 0),
        (2, 40, 0, 7),
        (3, 5, 60, 11),
        (2, 61, 3, 2),
    ):
        ids_BS = torch.randint(config["vocab_size"], (batch, past + new))
        mask_BS = torch.ones_like(ids_BS)
        mask_BS[1:, :padding] = 0
        places_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache()  # without the configuration: it keeps what lies outside of a window
        with torch.inference_mode():
            if past:
                model(ids_BS[:, :past], attention_mask=mask_BS[:, :past], position_ids=places_BS[:, :past],
                      past_key_values=cache, use_cache=True)  # fmt: skip
            layers = cache.layers or [None] * config["num_hidden_layers"]
            given = _given(session, ids_BS[:, past:], mask_BS, places_BS[:, past:], layers)
            expected_BTV = model(
                ids_BS[:, past:], attention_mask=mask_BS, position_ids=places_BS[:, past:],
                past_key_values=cache, use_cache=True,
            ).logits  # fmt: skip
        logits_BTV = torch.from_numpy(session.run(None, given)[0])
        real_BT = mask_BS[:, past:].bool()
        assert torch.allclose(logits_BTV[real_BT], expected_BTV[real_BT], atol=1e-4), (batch, new, past)


def _given(session, ids_BT, mask_BS, places_BT, layers):
    given = {"input_ids": ids_BT, "attention_mask": mask_BS, "position_ids": places_BT}
    for index, layer in enumerate(layers):
        for side in ("key", "value"):
            name = f"past_key_values.{index}.{side}"
            shape = next(each.shape for each in session.get_inputs() if each.name == name)
            empty = torch.zeros(len(ids_BT), shape[1], 0, shape[3])
            given[name] = getattr(layer, f"{side}s") if layer is not None else empty
    return {name: tensor.numpy() for name, tensor in given.items()}
