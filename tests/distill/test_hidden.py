"""Shapes: B sequences, T positions, D hidden size."""

import pytest
import torch
from pydantic import ValidationError

from compress.data.batch import Batch
from compress.distill import step
from compress.distill.divergences import named
from compress.distill.hidden import HiddenDistance, Matching, matching
from compress.distill.objective import Distillation, Recipe
from compress.errors import InputError
from compress.models.checkpoint import load_model
from compress.models.layout import layout
from compress.models.pruning_map import Part, write_map
from compress.train import checkpoint
from tests.distill.test_step import SETTINGS
from tests.fakes import FakeContext, Stopped
from tests.models.tiny import TRAINABLE, tiny_config, tiny_model, token_ids, variant_name, write_tiny
from tests.prune.checkpoints import parent_of, pruned, tiny_parent
from tests.prune.test_depth import make_identities
from tests.prune.test_vocab import parent as tokenized
from tests.prune.test_vocab import pruned as without_tokens
from tests.prune.test_width import kill_channels, kill_neurons_and_groups
from tests.train.inputs import context, parent, payload, tokens

IDS_BT = token_ids()

# Where the head is tied and norms have no weights, the stream itself grows.
STREAMS = [*((family, {}) for family in TRAINABLE), ("olmo", {"tie_word_embeddings": True})]


def distance(student, teacher, ids_BT=IDS_BT) -> float:
    """The mean over tokens, of two folders."""
    objective = HiddenDistance(matching(student, teacher))
    models = [load_model(folder, dtype=torch.float32) for folder in (student, teacher)]
    with torch.no_grad(), objective.of_student(models[0]) as ours, objective.of_teacher(models[1]) as theirs:
        for model in models:
            model(input_ids=ids_BT)
    return float(objective(Batch(ids_BT), ours, theirs)) / ids_BT[:, 1:].numel()


def test_a_model_is_not_far_from_itself(tmp_path):
    write_tiny(tmp_path, "llama")
    assert distance(tmp_path, tmp_path) == 0


def make_dead(model):
    kill_channels(model)
    kill_neurons_and_groups(model)
    make_identities(0, 2)(model)


def test_a_student_without_what_did_nothing_has_its_teachers_states(tmp_path):
    teacher = tiny_parent(tmp_path / "teacher", "llama", make_dead)
    pruned("prune.depth", teacher, tmp_path / "short", target={"layers": 2})
    target = {"hidden_size": 56, "intermediate_size": 189, "num_key_value_heads": 2}
    pruned("prune.width", parent_of(tmp_path / "short"), tmp_path / "student", target=target)
    assert matching(tmp_path / "student", teacher.path).teacher_layers == ["model.layers.2", "model.layers.3"]
    # transformers computes norms in fp32.
    assert distance(tmp_path / "student", teacher.path) < 1e-10
    pruned("prune.width", parent_of(tmp_path / "short"), tmp_path / "less", target={"hidden_size": 40})
    assert distance(tmp_path / "less", teacher.path) > 1e-3


@pytest.mark.parametrize(("family", "changes"), STREAMS, ids=variant_name)
def test_the_stream_of_every_family_has_its_teachers_scale(family, changes, tmp_path):
    """With layers that add nothing, the states are the embeddings."""
    where = layout(tiny_config(family, **changes))

    def silence(model):
        for name, parameter in model.named_parameters():
            if where.layer_of(name) is not None:
                parameter.zero_()

    teacher = tiny_parent(tmp_path / "teacher", family, silence, **changes)
    axes = [axis for axis in ("hidden", "kv_groups") if axis in where.width_axes]
    settings = {"target": {"params": "70%"}, "axes": axes, "importance": "random"}
    pruned("prune.width", teacher, tmp_path / "student", **settings)
    assert layout(parent_of(tmp_path / "student").spec.config).hidden < where.hidden
    assert distance(tmp_path / "student", teacher.path) < 1e-10


def test_two_models_pruned_from_one_are_matched_by_its_numbers(tmp_path):
    for name in ("student", "teacher"):
        write_tiny(
            tmp_path / name, "llama", hidden_size={"student": 16, "teacher": 32}[name], num_hidden_layers=2
        )
    write_map(
        tmp_path, tmp_path / "student", [1, 3], {"layers": Part([1, 3], 6), "hidden": Part([*range(16)], 64)}
    )
    write_map(
        tmp_path,
        tmp_path / "teacher",
        [1, 3],
        {"layers": Part([1, 3], 6), "hidden": Part([*range(16), *range(30, 46)], 64)},
    )
    assert matching(tmp_path / "student", tmp_path / "teacher").channels == [*range(16)]
    write_map(
        tmp_path, tmp_path / "teacher", [1, 3], {"layers": Part([1, 4], 6), "hidden": Part([*range(32)], 64)}
    )
    with pytest.raises(InputError, match="lacks 1 of the student's 2 layers, the first of them number 3"):
        matching(tmp_path / "student", tmp_path / "teacher")


def objective_of(student, teacher, hidden_weight=0.5, label_weight=0.0):
    states = Matching([f"model.layers.{n}" for n in range(2)], ["model.layers.1", "model.layers.3"], CHANNELS)
    recipe = Recipe(named("forward_kl"), 1.0, label_weight, hidden_weight)
    return Distillation(student, teacher, recipe, 259, matching=states)


CHANNELS = [*range(1, 64, 2)]


def models():
    student = tiny_model("llama", seed=1, num_hidden_layers=2, hidden_size=32)
    return student, tiny_model("llama", seed=2)


def slow_distance(student, teacher) -> torch.Tensor:
    """The formula, on what transformers calls hidden states: the embeddings and what every layer but the last gives.

    The last entry has gone through the last norm, so only the first layer is compared.
    """
    our_BTD = student(input_ids=IDS_BT, output_hidden_states=True).hidden_states[1]
    with torch.no_grad():
        their_BTD = teacher(input_ids=IDS_BT, output_hidden_states=True).hidden_states[2][..., CHANNELS]
    total = torch.zeros(())
    for ours_TD, theirs_TD in zip(our_BTD, their_BTD, strict=True):
        for ours_D, theirs_D in list(zip(ours_TD, theirs_TD, strict=True))[:-1]:
            total = total + (ours_D - theirs_D).square().sum() / theirs_D.square().sum()
    return total


@pytest.mark.parametrize("label_weight", [0.0, 1.0])
def test_loss_and_gradients_are_those_of_the_formula(label_weight):
    student, teacher = models()
    first = Matching(["model.layers.0"], ["model.layers.1"], CHANNELS)
    without, with_states = (Recipe(named("forward_kl"), 1.0, label_weight, weight) for weight in (0.0, 0.5))
    plain, _ = Distillation(student, teacher, without, 259)(Batch(IDS_BT))
    total, num_tokens = Distillation(student, teacher, with_states, 259, matching=first)(Batch(IDS_BT))
    expected = 0.5 * slow_distance(student, teacher)
    torch.testing.assert_close(total, plain + expected, rtol=1e-5, atol=1e-5)
    assert num_tokens == IDS_BT[:, 1:].numel()
    weights = list(student.parameters())
    gradients = [torch.autograd.grad(loss, weights, allow_unused=True) for loss in (total, plain, expected)]
    for whole, without, hidden in zip(*gradients, strict=True):
        torch.testing.assert_close(
            whole, without if hidden is None else without + hidden, rtol=1e-4, atol=1e-4
        )


def test_every_layer_of_the_student_learns_and_none_of_the_teacher():
    student, teacher = models()
    ours, plain = (
        objective_of(student, teacher)(Batch(IDS_BT))[0],
        objective_of(student, teacher, 0.0)(Batch(IDS_BT))[0],
    )
    weights = list(student.model.layers.parameters())
    pairs = zip(*(torch.autograd.grad(loss, weights) for loss in (ours, plain)), strict=True)
    assert all(not torch.equal(*pair) for pair in pairs)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_the_loss_of_a_batch_is_the_sum_of_its_parts_whatever_was_noted_before():
    objective = objective_of(*models(), label_weight=0.5)
    whole, num_tokens = objective(Batch(IDS_BT))
    parts = [objective(part) for part in Batch(IDS_BT).split(1)]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    assert sum(count for _, count in parts) == num_tokens


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return parent(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def student(teacher, tmp_path):
    target = {"layers": 1, "hidden_size": 24}
    pruned(
        "prune", teacher, tmp_path / "student", target=target, importance="random", layer_importance="random"
    )
    return parent_of(tmp_path / "student")


def test_distilling_with_hidden_states_brings_them_closer_than_without(teacher, student, tmp_path):
    settings = {**SETTINGS, "tokens": 16 * 4 * 60, "learning_rate": 1e-2}
    for name, weight in (("without", 0.0), ("with", 2.0)):
        inputs = context(tmp_path / name, teacher=teacher)
        inputs.inputs["data"] = tokens(tmp_path / "random", token_ids(num=60, length=16, seed=1))
        step.run(student, step.Config(**settings, hidden_weight=weight), inputs)
    before, without, close = (
        distance(tmp_path / name, teacher.path) for name in ("student", "without", "with")
    )
    assert close < 0.8 * min(before, without)


def test_stopped_and_resumed_it_ends_in_the_same_bytes(teacher, student, tmp_path, monkeypatch):
    class StopsAfterThree(FakeContext):
        def progress(self, *arguments, **figures):
            super().progress(*arguments, **figures)
            self.stopping = len(self.reports) == 3

    monkeypatch.setattr(checkpoint, "WORK_PER_WRITE", 0)
    config = step.Config(**SETTINGS, checkpoint_seconds=0, hidden_weight=1.0)
    step.run(student, config, context(tmp_path / "whole" / "result", teacher=teacher))
    with pytest.raises(Stopped):
        step.run(student, config, context(tmp_path / "cut" / "result", kind=StopsAfterThree, teacher=teacher))
    step.run(student, config, context(tmp_path / "cut" / "result", teacher=teacher))
    assert payload(tmp_path / "whole" / "result") == payload(tmp_path / "cut" / "result")


def test_a_student_with_a_pruned_vocabulary_reads_the_same_tokens(tmp_path):
    original = tokenized(tmp_path / "original", dtype=torch.float32)
    without_tokens(original, tmp_path / "student", target={"tokens": "75%"})
    student = parent_of(tmp_path / "student")
    inputs = context(tmp_path / "result", teacher=original)
    inputs.inputs["data"] = tokens(tmp_path / "data", token_ids(num=8, length=16))
    settings = {"tokens": 16 * 4, "batch_tokens": 16 * 4, "label_weight": 1.0}
    runs = []
    for weight in (0.0, 1.0):
        runs.append(step.run(student, step.Config(**settings, hidden_weight=weight), inputs))
    # Nothing but ids was removed: the states are the original's, so they add nothing to the loss.
    assert runs[1].facts["loss"] == pytest.approx(runs[0].facts["loss"], abs=1e-5)


def refused(student, teacher, tmp_path, message):
    config = step.Config(**SETTINGS, hidden_weight=1.0)
    with pytest.raises(InputError, match=message):
        step.run(student, config, context(tmp_path / "result", teacher=teacher))


def test_without_a_map_other_sizes_are_refused_and_the_same_ones_are_not(teacher, student, tmp_path):
    (student.path / "pruning_map.json").unlink()
    refused(student, teacher, tmp_path, r"student has 1 layers, the teacher 2, .* has no pruning_map.json")
    narrow = parent(tmp_path / "narrow", hidden_size=16)
    refused(narrow, teacher, tmp_path, "student has 16 hidden channels, the teacher 32")
    step.run(student, step.Config(**SETTINGS), context(tmp_path / "without", teacher=teacher))
    other = parent(tmp_path / "other", "qwen3", seed=3)
    config = step.Config(**SETTINGS, hidden_weight=1.0)
    step.run(other, config, context(tmp_path / "result", teacher=teacher))


def test_a_teacher_the_student_was_not_pruned_from_is_refused(student, tmp_path):
    deep = parent(tmp_path / "deep", num_hidden_layers=3)
    refused(student, deep, tmp_path, "came from had 2 layers, and what the teacher came from 3")
    wide = parent(tmp_path / "wide", hidden_size=48)
    refused(student, wide, tmp_path, "came from had 32 hidden channels, and what the teacher came from 48")


def test_a_negative_weight_is_refused():
    with pytest.raises(ValidationError, match="hidden_weight"):
        step.Config(**SETTINGS, hidden_weight=-1)
