"""Searching for a shape: trials tell what pruning would give, and the search never does worse than the even shape."""

import json

import numpy as np
import pytest
import torch

from compress import plugins
from compress.data.tokens import PackedTokens, order
from compress.digests import DigestMemo
from compress.engine.plan_table import plan_table
from compress.engine.store import Store
from compress.errors import InputError
from compress.models.checkpoint import load_model
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline
from compress.prune import probe, search, trials
from compress.prune.directions import directions
from compress.prune.foretelling import corrections, loss_along
from compress.prune.shapes import length
from compress.prune.target import Target, costs_of, shape_for
from compress.records import Artifact
from tests.fakes import FakeContext, Stopped
from tests.models.tiny import tiny_config
from tests.pipeline.test_planner import PIPELINE
from tests.prune.checkpoints import prepared_context, tiny_parent

FEW = {"tokens": 96, "trial_tokens": 64}
"""Of the calibration's six sequences of 16 tokens: all score, four refit, one judges."""

GRID = {"align": {"ffn": 48, "hidden": 16}}


def probed(parent, folder, *shapes, **settings):
    config = probe.Config(shapes=shapes, **{**FEW, **settings})
    context = prepared_context(probe, config, parent, folder)
    return [each["divergence"] for each in probe.run(parent, config, context).facts["shapes"]], context


def searched(parent, folder, **settings):
    config = search.Config(**{**FEW, **GRID, **settings})
    context = prepared_context(search, config, parent, folder)
    context.inputs = {**context.inputs, "teacher": parent}
    return search.run(parent, config, context), context


def divergence(student, teacher, rows_BT, dtype):
    with torch.no_grad():
        log_q, log_p = (
            load_model(f, dtype=dtype)(rows_BT).logits.double().log_softmax(-1) for f in (student, teacher)
        )
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize(
    ("family", "lengths", "changes"),
    [
        ("llama", {"layers": 3, "ffn": 96}, {}),
        ("llama", {"hidden": 48, "kv_groups": 2}, {"tie_word_embeddings": True}),
        ("qwen3_moe", {"experts": 3, "layers": 3}, {}),
        ("gpt2", {"hidden": 32, "kv_groups": 4}, {}),
        ("bert", {"ffn": 64}, {}),
    ],
)
@pytest.mark.parametrize("compensate", [True, False])
def test_a_trial_is_as_far_off_as_the_checkpoint_that_pruning_writes(
    family, lengths, changes, compensate, tmp_path
):
    """The refit sees the same text: `prune` reads as many tokens as the trial."""
    parent = tiny_parent(tmp_path / "parent", family, **changes)
    [found], context = probed(parent, tmp_path / "probe", lengths, tokens=64, compensate=compensate)
    kept = {"layers": "layers", "hidden": "hidden_size", "ffn": "intermediate_size"}
    kept |= {"kv_groups": "num_key_value_heads", "experts": "num_experts"}
    step = plugins.step("prune")
    target = {kept[axis]: size for axis, size in lengths.items()}
    config = step.Config(target=target, tokens=64, compensate=compensate)
    step.run(parent, config, FakeContext(tmp_path / "pruned", inputs=context.inputs))
    packed = PackedTokens.open(context.inputs["calibration"].path)
    last = order(packed.num_sequences, 0, epoch=0)[-1:].tolist()
    # transformers has no experts in fp64; a small divergence of fp32 predictions is rounded.
    dtype, close = (torch.float32, 1e-2) if family == "qwen3_moe" else (torch.float64, 1e-6)
    expected = divergence(tmp_path / "pruned", parent.path, packed.batch(last), dtype)
    assert found == pytest.approx(expected, rel=close) and found > 1e-5


def test_a_streamed_trial_is_the_same_to_the_bit(tmp_path):
    parent = tiny_parent(tmp_path / "parent", "llama")
    shapes = ({"layers": 3, "ffn": 96}, {"hidden": 48})
    in_memory, _ = probed(parent, tmp_path / "a", *shapes, memory="ram")
    streamed, context = probed(parent, tmp_path / "b", *shapes, memory="stream")
    assert streamed == in_memory
    assert [path.name for path in context.partial.iterdir()] == ["measured.json"]


def test_trials_leave_no_weights(tmp_path):
    _, context = probed(tiny_parent(tmp_path / "parent", "llama"), tmp_path / "probe", {"ffn": 96})
    assert not list(context.folder.iterdir()) and not list(context.partial.rglob("*.safetensors"))


def test_removing_what_does_nothing_costs_nothing(tmp_path):
    def half_dead(model):
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[:, ::2] = 0

    parent = tiny_parent(tmp_path / "parent", "llama", half_dead)
    (free, dear), _ = probed(parent, tmp_path / "probe", {"ffn": 96}, {"ffn": 48})
    assert free < 1e-12 < 1e-4 < dear


def test_what_was_measured_before_a_kill_is_not_measured_again(tmp_path, monkeypatch):
    parent = tiny_parent(tmp_path / "parent", "llama")
    whole, _ = probed(parent, tmp_path / "whole", {"ffn": 96}, {"ffn": 48})
    config = probe.Config(shapes=({"ffn": 96}, {"ffn": 48}), **FEW)
    context = prepared_context(probe, config, parent, tmp_path / "cut short")
    measure = trials.Trials.divergence
    calls = []

    def stop_at_second(self, after):
        calls.append(after.ffn)
        if len(calls) == 2:
            raise Stopped
        return measure(self, after)

    monkeypatch.setattr(trials.Trials, "divergence", stop_at_second)
    with pytest.raises(Stopped):
        probe.run(parent, config, context)
    facts = probe.run(parent, config, context).facts["shapes"]
    assert calls == [96, 48, 48]
    assert [each["divergence"] for each in facts] == whole


def test_the_text_that_judges_is_not_the_text_that_refits(tmp_path):
    context = prepared_context(probe, probe.Config(shapes=()), None, tmp_path / "x")
    for tokens in (16, 64, 80, 10_000):
        refit, judged = trials.read_parts(context, tokens, "cpu")
        rows = [tuple(row) for row in torch.cat([*refit, *judged]).tolist()]
        assert len(set(rows)) == len(rows) <= 6 and judged


def test_one_sequence_of_calibration_is_refused(tmp_path):
    context = FakeContext(
        tmp_path / "x", inputs={"calibration": Artifact(key="c", kind="tokens", path=tmp_path)}
    )
    np.zeros(16, "<u2").tofile(tmp_path / "tokens.bin")
    (tmp_path / "tokens.json").write_text(
        json.dumps({"num_sequences": 1, "sequence_length": 16, "dtype": "<u2"})
    )
    with pytest.raises(InputError, match="two sequences at least"):
        trials.read_parts(context, 64, "cpu")


def test_the_best_measured_candidate_is_pruned_and_the_even_shape_is_among_them(tmp_path):
    def no_use_for_neurons(model):
        for layer in model.model.layers:
            layer.mlp.down_proj.weight *= 0.01

    parent = tiny_parent(tmp_path / "parent", "llama", no_use_for_neurons)
    outcome, _ = searched(parent, tmp_path / "out", target={"params": "60%"}, candidates=4)
    found = outcome.facts["search"]
    [chosen] = [each for each in found["candidates"] if each["is_chosen"]]
    [even] = [each for each in found["candidates"] if each["is_even"]]
    assert chosen["divergence"] == min(each["divergence"] for each in found["candidates"])
    assert chosen["divergence"] < even["divergence"], "all it had to do was take neurons"
    before = layout(parent.spec.config)
    planned = shape_for(Target(params="60%"), before, ("layers", *before.width_axes[:3]), GRID["align"])
    assert even["num_parameters"] == planned.num_parameters
    assert outcome.spec == read_spec(tmp_path / "out")
    assert outcome.spec.num_parameters == chosen["num_parameters"] <= 0.606 * parent.spec.num_parameters
    assert {key: outcome.facts[key] for key in chosen["sizes"]} == chosen["sizes"]
    assert len({json.dumps(each["sizes"]) for each in found["candidates"]}) == 4


def test_no_candidate_keeps_less_of_everything_than_one_before_it(tmp_path):
    parent = tiny_parent(tmp_path / "parent", "llama")
    outcome, _ = searched(parent, tmp_path / "out", target={"params": "60%"}, candidates=6)
    sizes = [list(each["sizes"].values()) for each in outcome.facts["search"]["candidates"]]
    assert len(sizes) > 3
    for number, later in enumerate(sizes):
        for earlier in sizes[:number]:
            assert any(a > b for a, b in zip(later, earlier, strict=True)), "it can only be worse"


def test_a_search_again_submits_the_same_work(tmp_path):
    parent = tiny_parent(tmp_path / "parent", "llama")
    settings = {"target": {"params": "70%"}, "candidates": 3, "axes": ("layers", "ffn")}
    first, context = searched(parent, tmp_path / "out", **settings)
    second, other = searched(parent, tmp_path / "again", **settings)
    assert context.submitted.keys() == other.submitted.keys() and len(context.submitted) == 2 + 3
    assert first.facts == second.facts


def test_slack_takes_a_cheaper_shape_that_is_good_enough(tmp_path):
    parent = tiny_parent(tmp_path / "parent", "llama")
    settings = {"target": {"params": "80%"}, "candidates": 6}
    best, _ = searched(parent, tmp_path / "best", **settings)
    thrifty, _ = searched(parent, tmp_path / "thrifty", slack=0.5, **settings)
    least = min(each["divergence"] for each in thrifty.facts["search"]["candidates"])
    [chosen] = [each for each in thrifty.facts["search"]["candidates"] if each["is_chosen"]]
    good = [e for e in thrifty.facts["search"]["candidates"] if e["divergence"] <= 1.5 * least]
    assert chosen["cost"] == min(each["cost"] for each in good)
    assert thrifty.spec.num_parameters < best.spec.num_parameters


def test_candidates_are_distilled_before_they_are_judged_when_asked(tmp_path):
    parent = tiny_parent(tmp_path / "parent", "llama")
    _byte_tokenizer(parent.path)
    config = search.Config(
        target={"params": "70%"},
        candidates=2,
        axes=("layers", "ffn"),
        data="calibration",
        recover_tokens=64,
        **FEW,
        **GRID,
    )
    context = prepared_context(search, config, parent, tmp_path / "out")
    context.inputs = {**context.inputs, "teacher": parent, "data": context.inputs["calibration"]}
    found = search.run(parent, config, context).facts["search"]
    assert found["compared_with"] == "teacher"
    recovered = [each["recovered"] for each in found["candidates"]]
    assert recovered != [each["divergence"] for each in found["candidates"]]
    assert min(found["candidates"], key=lambda each: each["recovered"])["is_chosen"]
    kinds = [artifact.kind for artifact in context.submitted.values()]
    assert kinds.count("hf") == 4, "each candidate pruned and distilled"


@pytest.mark.parametrize(
    "family",
    ["gpt2", "qwen3_moe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gemma", "phi", "bert"))],
)
def test_any_family_can_be_searched(family, tmp_path):
    parent = tiny_parent(tmp_path / "parent", family)
    outcome, _ = searched(parent, tmp_path / "out", target={"params": "75%"}, candidates=2, align={})
    assert outcome.spec.num_parameters <= 0.7575 * parent.spec.num_parameters
    assert outcome.facts["search"]["probes"]
    load_model(tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": {"layers": 3}}, "exact sizes leave nothing to search for"),
        ({"target": {"params": "50%"}, "recover_tokens": "1M"}, "say `data: recovery`"),
        ({"target": {"params": "50%"}, "data": "recovery"}, "recover_tokens: 1M"),
    ],
)
def test_settings_that_make_no_search_are_refused_with_a_reason(settings, said):
    with pytest.raises(ValueError, match=said):
        search.Config(**settings)


def test_a_loss_goes_through_what_was_measured_and_rises():
    removed, measured = [0.25, 0.5, 0.75], [0.02, 0.1, 0.09]
    wanted = np.array([0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9])
    losses = loss_along(removed, measured, wanted)
    assert losses[0] == 0.0
    assert losses[[2, 4, 6]] == pytest.approx([0.02, 0.1, 0.1]), "less lost for more removed is noise"
    assert (np.diff(losses) >= 0).all()
    exact = loss_along([0.25, 0.5], [0.25**2, 0.5**2], np.array([0.1, 0.4]))
    assert exact == pytest.approx([0.01, 0.16]), "a power law is met exactly, beyond the first point too"


def test_one_measured_size_is_enough_and_a_loss_of_zero_is_allowed():
    losses = loss_along([0.5], [0.1], np.array([0.0, 0.25, 0.5]))
    assert losses == pytest.approx([0.0, 0.1 * 0.5**1.5, 0.1])
    assert np.isfinite(loss_along([0.25, 0.5], [0.0, 0.1], np.linspace(0, 1, 5))).all()


def test_corrections_are_one_where_the_sum_is_right_and_move_towards_what_is_measured():
    losses = np.array([[0.1, 0.2], [0.3, 0.1]])
    assert corrections(losses, losses.sum(1)) == pytest.approx([1.0, 1.0])
    up = corrections(losses, np.array([0.3 + 0.1, 0.4]))
    assert up[1] > 1.0
    assert (corrections(losses, 1e6 * losses.sum(1)) > 0).all()


def costs(before, target):
    return lambda shapes: costs_of(target, shapes, 2)


def test_every_axis_is_tried_from_near_the_whole_to_what_the_budget_could_need():
    before = layout(tiny_config("llama"))
    target, axes = Target(params="60%"), ("layers", "ffn", "kv_groups")
    even = shape_for(target, before, axes, {})
    by_axis = {d.axis: d for d in directions(before, axes, {}, even, costs(before, target))}
    assert set(by_axis) == set(axes)
    for axis, direction in by_axis.items():
        sizes = [lengths[axis] for lengths in direction.probes]
        assert sizes == sorted(set(sizes), reverse=True) and len(sizes) <= 3
        assert all(list(lengths) == [axis] for lengths in direction.probes)
    layers = by_axis["layers"].smallest
    alone = [
        before.with_layers(range(n)).num_parameters / before.num_parameters for n in (layers, layers + 1)
    ]
    assert alone[0] <= 0.606 < alone[1], "fewer layers than meet the budget alone are no use"


def test_where_heads_make_up_the_hidden_size_it_follows_them():
    before = layout(tiny_config("gpt2"))
    target, axes = Target(params="60%"), ("layers", "ffn", "kv_groups", "hidden")
    even = shape_for(target, before, axes, {})
    found = {d.axis: d for d in directions(before, axes, {}, even, costs(before, target))}
    assert "hidden" not in found
    for lengths in found["kv_groups"].probes:
        assert lengths["hidden"] == lengths["kv_groups"] * before.head_dim
    assert length(before, "hidden") > found["kv_groups"].probes[0]["hidden"]


SEARCH = """
  - {name: found, use: prune.search, target: {params: 60%}, axes: [layers, ffn], align: {ffn: 16}}
  - {name: recover, use: distill, data: calibration, tokens: 1k}
  - {name: exact, use: prune.width, target: {intermediate_size: 64}, from: original}
"""


def planned(tmp_path, steps=SEARCH):
    path = tmp_path / "small.yaml"
    path.write_text(PIPELINE + steps)
    return make_plan(load_pipeline(path), DigestMemo(tmp_path / "memo.json"))


def test_the_plan_says_about_of_a_searched_shape_and_of_what_is_built_on_it(tmp_path):
    plan = planned(tmp_path)
    assert [plan[name].is_about for name in ("original", "found", "recover", "exact")] == [
        False,
        True,
        True,
        False,
    ]
    lines = {line.split()[0]: line for line in plan_table(plan, "small", Store(tmp_path)).splitlines()}
    count = f"{plan['found'].spec.num_parameters:,}"
    assert f"~{count}" in lines["found"] and f"~{count}" in lines["recover"]
    assert f" {plan['exact'].spec.num_parameters:,}" in lines["exact"]


def test_data_is_an_input_of_a_search_only_when_candidates_recover(tmp_path):
    assert "data" not in planned(tmp_path)["found"].inputs
    recovering = SEARCH.replace("axes:", "recover_tokens: 1k, data: other, axes:", 1)
    assert planned(tmp_path, recovering)["found"].inputs["data"] == "data/other"
    with pytest.raises(InputError, match="no data is called 'others'"):
        planned(tmp_path, recovering.replace("data: other,", "data: others,"))


def test_recovering_candidates_counts_in_the_estimate(tmp_path):
    plain = planned(tmp_path)["found"].work
    recovering = planned(tmp_path, SEARCH.replace("axes:", "recover_tokens: 1M, data: other, axes:", 1))[
        "found"
    ].work
    assert recovering.flops > plain.flops and recovering.disk_bytes > 10 * plain.disk_bytes


def _byte_tokenizer(folder):
    from compress.data import tokenizer

    context = FakeContext(folder.with_name("tokenizer"))
    tokenizer.run(None, tokenizer.Config(kind="bytes"), context)
    for file in context.folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
