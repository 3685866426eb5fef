"""The pruning map leads from a pruned model to its original, through every step in between."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from compress import plugins
from compress.models.layout import layout
from compress.models.pruning_map import read_map
from compress.models.spec import read_spec
from compress.records import Artifact
from compress.train import initialize
from compress.train import step as train
from tests.fakes import FakeContext
from tests.models.tiny import write_tiny
from tests.prune.checkpoints import parent_of, pruned
from tests.train.inputs import context, parent

CHEAP = {"importance": "random", "layer_importance": "random"}


def kept(folder) -> dict:
    return {kind: (part.kept, part.of) for kind, part in read_map(folder).parts.items()}


def places(axis, layer, expert, parts, model) -> list[int]:
    """Where the places of a student's axis are in the original, spelt out from the file's description."""
    if axis == "hidden":
        return parts["hidden"]
    if axis in ("ffn", "experts"):
        return parts[axis][layer]
    if axis == "expert_ffn":
        return parts[axis][layer][expert]
    groups, width = parts["kv_groups"][layer], model.head_dim
    units = groups
    if axis == "query":
        inside = parts["heads"][layer]
        units = [model.heads_per_group * g + h for g, hs in zip(groups, inside, strict=True) for h in hs]
    return [unit * width + place for unit in units for place in range(width)]


def test_pruned_three_times_every_weight_is_the_originals_at_the_places_of_the_map(tmp_path):
    original = parent_of(write_tiny(tmp_path / "0", "qwen3_moe"))
    targets = [
        {"layers": 3, "num_attention_heads": 4, "num_experts": 5, "hidden_size": 56, "moe_intermediate_size": 24},
        {"num_key_value_heads": 2, "num_attention_heads": 2, "moe_intermediate_size": 16, "hidden_size": 48},
        {"layers": 2, "num_experts": 3},
    ]  # fmt: skip
    for number, target in enumerate(targets):
        before, after = (tmp_path / str(n) for n in (number, number + 1))
        pruned("prune", parent_of(before), after, target=target, seed=number, **CHEAP)
    parts = {kind: part.kept for kind, part in read_map(tmp_path / "3").parts.items()}
    assert set(parts) == {"layers", "hidden", "kv_groups", "heads", "experts", "expert_ffn"}
    before, after = layout(original.spec.config), layout(read_spec(tmp_path / "3").config)
    old, new = (load_file(tmp_path / number / "model.safetensors") for number in ("0", "3"))
    for name, axes in after.tensors.items():
        layer, expert, origin = after.layer_of(name), after.expert_of(name), name
        if layer is not None:
            origin = before.layers[parts["layers"][layer]] + name.removeprefix(after.layers[layer])
        if expert is not None:
            origin = origin.replace(f".experts.{expert}.", f".experts.{parts['experts'][layer][expert]}.")
        expected = old[origin]
        for dim, axis in enumerate(axes):
            if axis not in ("vocab", "head_dim"):
                index = torch.tensor(places(axis, layer, expert, parts, before))
                expected = expected.index_select(dim, index)
        gain = (64 / 48) ** 0.5 if axes == ("hidden",) else 1.0
        torch.testing.assert_close(new[name], expected * gain)


def test_depth_then_width_leaves_what_pruning_both_in_one_go_leaves(tmp_path):
    original = parent_of(write_tiny(tmp_path / "original", "llama"))
    sizes = {"intermediate_size": 100, "num_key_value_heads": 2}
    pruned("prune.depth", original, tmp_path / "short", target={"layers": 3}, importance="block_influence")
    pruned("prune.width", parent_of(tmp_path / "short"), tmp_path / "both", target=sizes, importance="weight")
    metrics = {"importance": "weight", "layer_importance": "block_influence"}
    pruned("prune", original, tmp_path / "once", target={"layers": 3, **sizes}, **metrics)
    assert kept(tmp_path / "both") == kept(tmp_path / "once")
    assert kept(tmp_path / "both")["layers"] == kept(tmp_path / "short")["layers"]
    assert set(kept(tmp_path / "both")) == {"layers", "ffn", "kv_groups"}


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Artifact:
    """A pruned model with a tokenizer."""
    folder = tmp_path_factory.mktemp("student")
    original = parent(folder / "original")
    pruned("prune.width", original, folder / "pruned", target={"hidden_size": 16}, importance="random")
    return parent_of(folder / "pruned")


def after_training(student: Artifact, folder) -> None:
    settings = {"tokens": 16 * 4, "batch_tokens": 16 * 4}
    train.run(student, train.Config(**settings), context(folder))


def after_distilling(student: Artifact, folder) -> None:
    step = plugins.step("distill")
    config = step.Config(tokens=16 * 4, batch_tokens=16 * 4)
    step.run(student, config, context(folder, teacher=student))


def after_rounding(student: Artifact, folder) -> None:
    step = plugins.step("quantize.rtn")
    step.run(student, step.Config(group_size=16), FakeContext(folder))


def after_adopting(student: Artifact, folder) -> None:
    adopt = plugins.internal("models.adopt")
    bare = shutil.copytree(
        student.path, folder.with_name("bare"), ignore=shutil.ignore_patterns("tokenizer*")
    )
    inputs = {"tokenizer": Artifact(key="tokenizer", kind="tokenizer", path=student.path)}
    adopt.run(parent_of(bare), adopt.Config(), FakeContext(folder, inputs=inputs))


CARRIERS = [after_training, after_distilling, after_rounding, after_adopting]


@pytest.mark.parametrize("carrier", CARRIERS)
def test_steps_that_keep_the_structure_carry_the_map_on(carrier, student, tmp_path):
    carrier(student, tmp_path / "result")
    assert read_map(tmp_path / "result") == read_map(student.path) is not None


@pytest.mark.parametrize("target", [{"tokens": "100%"}, {"tokens": "75%"}], ids=str)
def test_pruning_the_vocabulary_carries_the_map_on(target, tmp_path):
    from tests.prune.test_vocab import parent as tokenized
    from tests.prune.test_vocab import pruned as without_tokens

    original = tokenized(tmp_path / "original", dtype=torch.float32)
    pruned("prune.depth", original, tmp_path / "short", target={"layers": 1}, importance="random")
    without_tokens(parent_of(tmp_path / "short"), tmp_path / "result", target=target)
    assert read_map(tmp_path / "result") == read_map(tmp_path / "short") is not None


def test_a_trained_model_that_is_pruned_again_is_numbered_by_the_original(student, tmp_path):
    after_training(student, tmp_path / "trained")
    pruned(
        "prune.depth",
        parent_of(tmp_path / "trained"),
        tmp_path / "short",
        target={"layers": 1},
        importance="random",
    )
    parts = read_map(tmp_path / "short").parts
    assert parts["hidden"] == read_map(student.path).parts["hidden"]
    assert len(parts["layers"].kept) == 1 and parts["layers"].of == 2


def test_random_weights_in_a_pruned_shape_are_no_parts_of_the_original(student, tmp_path):
    initialize.run(student, initialize.Config(), FakeContext(tmp_path / "random"))
    assert read_map(tmp_path / "random") is None
