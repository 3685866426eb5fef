"""Shapes: N tokens, V vocabulary."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from compress.data.tokens import PackedTokens
from compress.distill import cache_check, cache_teacher, caching, step
from compress.distill.cache_teacher import CacheSettings, Config
from compress.distill.cached_objective import CachedDistillation
from compress.distill.divergences import named
from compress.distill.objective import Distillation, Recipe
from compress.distill.signals import About, SignalsWriter, TeacherSignals
from compress.distill.targets import Targets
from compress.distill.teacher import load_teacher
from compress.errors import InputError
from compress.models.checkpoint import load_model
from compress.records import Artifact
from compress.train import loop, numerics
from compress.train.batches import Batches
from compress.train.schedule import Schedule
from tests.fakes import FakeContext, Stopped
from tests.train.inputs import context, parent, payload, tokens

ALL = 24 * 16
"""The tokens of the data."""
SETTINGS = {"tokens": ALL, "batch_tokens": 16 * 4, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return parent(tmp_path_factory.mktemp("teacher"), "qwen3", seed=5)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(caching, "BLOCK_TOKENS", {"cpu": 5 * 16})
    monkeypatch.setattr(caching, "TILE_BYTES", {"cpu": 4 * 259 * 40})


def cached(teacher, folder, *, kind=FakeContext, **settings) -> Artifact:
    """Do what the engine does with the prepared node."""
    config = Config(**{"tokens": ALL, "batch_tokens": 64, "precision": "fp32", **settings})
    outcome = cache_teacher.run(teacher, config, context(folder, kind=kind))
    return Artifact(key="signals", kind="teacher_signals", path=folder, facts=outcome.facts)


def teacher_logits(model, data, rows):
    """Those before each target of whole rows."""
    with torch.no_grad():
        return load_model(model.path)(input_ids=data.batch(rows)).logits[:, :-1].flatten(0, 1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_is_read_is_what_the_teacher_says_of_these_rows(temperature, teacher, tmp_path):
    made = cached(teacher, tmp_path / "signals", top_k=8, tail="bucket", temperature=temperature)
    signals = TeacherSignals.open(made.path)
    rows = [17, 3, 17, 0]
    targets = signals.at(rows)
    p_NV = (teacher_logits(teacher, PackedTokens.open(tmp_path / "tokens"), rows) / temperature).softmax(-1)
    top = p_NV.topk(8)
    assert torch.equal(targets.ids_NK, top.indices.sort(-1).values)
    torch.testing.assert_close(targets.tail_N, 1 - top.values.sum(-1), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(targets.probs_NK, p_NV.gather(-1, targets.ids_NK), rtol=0.03, atol=1e-6)
    torch.testing.assert_close(targets.entropy_N, torch.special.entr(p_NV).sum(-1), rtol=1e-4, atol=1e-4)
    assert made.facts["rows"] == 24 and made.facts["tokens"] == 24 * 15


def test_a_teacher_that_bends_its_logits_is_kept_as_it_bends_them(tmp_path):
    teacher = parent(tmp_path / "teacher", "gemma2", final_logit_softcapping=1.5)
    made = cached(teacher, tmp_path / "signals", top_k=8)
    targets = TeacherSignals.open(made.path).at([3, 9])
    p_NV = teacher_logits(teacher, PackedTokens.open(tmp_path / "tokens"), [3, 9]).softmax(-1)
    torch.testing.assert_close(targets.entropy_N, torch.special.entr(p_NV).sum(-1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(targets.probs_NK, p_NV.gather(-1, targets.ids_NK), rtol=0.05, atol=1e-6)


def test_in_bf16_what_is_summed_over_the_vocabulary_is_not_rounded(teacher, tmp_path, monkeypatch):
    make, asked = caching.sparse_targets, []

    def noted(*arguments):
        asked.append(torch.is_autocast_enabled("cpu"))
        return make(*arguments)

    monkeypatch.setattr(numerics, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr(caching, "sparse_targets", noted)
    made = cached(teacher, tmp_path / "signals", precision="auto")
    assert made.facts["precision"] == "bf16" and asked and not any(asked)


def test_the_rows_are_those_that_training_reads(teacher, tmp_path):
    settings = step.Config(tokens=10 * 16, batch_tokens=2 * 16, cache_teacher=True)
    made = cached(teacher, tmp_path / "signals", tokens=settings.tokens, batch_tokens=settings.batch_tokens)
    data = PackedTokens.open(tmp_path / "tokens")
    batches = Batches(data, 2, seed=7)
    read = {row for at in range(Schedule.of(settings, 16).num_steps) for row in batches.at(at).rows.tolist()}
    assert TeacherSignals.open(made.path).rows == sorted(read) and len(read) == 10
    with pytest.raises(InputError, match="is none of them: they were made for fewer tokens"):
        TeacherSignals.open(made.path).at([next(row for row in range(24) if row not in read)])


def test_marks_decide_what_is_kept(teacher, tmp_path, monkeypatch):
    whole = PackedTokens.learning_batch
    positions = (torch.arange(16) % 5).expand(24, -1)

    def marked(self, indices):
        batch = whole(self, indices)
        learned = torch.ones_like(batch.ids, dtype=torch.bool)
        learned[:, 7] = False
        learned[batch.rows == 2] = False
        object.__setattr__(batch, "positions", positions[: len(batch)])
        object.__setattr__(batch, "learned", learned)
        return batch

    monkeypatch.setattr(PackedTokens, "learning_batch", marked)
    kept, across = (
        TeacherSignals.open(cached(teacher, tmp_path / name, attend_across_documents=name == "across").path)
        for name in ("apart", "across")
    )
    data = PackedTokens.open(tmp_path / "tokens")
    for signals, num in ((kept, 15 - 3 - 1), (across, 15 - 1)):
        assert [len(signals.at([row])) for row in (1, 2, 3)] == [num, 0, num]
    batch = data.learning_batch([4, 2, 9])
    assert len(kept.at([4, 2, 9])) == len(batch.targets)
    # The first document of a row is the same for both, later ones see other texts.
    apart_N, together_N = kept.at([4]).entropy_N, across.at([4]).entropy_N
    torch.testing.assert_close(apart_N[:4], together_N[:4], rtol=1e-6, atol=0)
    assert not torch.isclose(apart_N[5:, None], together_N, rtol=1e-6, atol=0).any()


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_stopped_and_resumed_caching_ends_in_the_same_bytes(stop_at, teacher, tmp_path):
    class StopsSoon(FakeContext):
        def progress(self, *arguments, **figures):
            super().progress(*arguments, **figures)
            self.stopping = len(self.reports) > stop_at

    cached(teacher, tmp_path / "whole" / "signals")
    with pytest.raises(Stopped):
        cached(teacher, tmp_path / "cut" / "signals", kind=StopsSoon)
    cached(teacher, tmp_path / "cut" / "signals")
    assert payload(tmp_path / "whole" / "signals") == payload(tmp_path / "cut" / "signals")


@pytest.mark.parametrize("torn", ["signals", "between", "counts"])
def test_killed_in_the_middle_of_a_write_it_ends_in_the_same_bytes(torn, teacher, tmp_path):
    class Killed(FakeContext):
        def progress(self, done, *arguments, **figures):
            if done == 10 * 16:
                raise KeyboardInterrupt

    cached(teacher, tmp_path / "whole" / "signals")
    with pytest.raises(KeyboardInterrupt):
        cached(teacher, tmp_path / "cut" / "signals", kind=Killed)
    partial = tmp_path / "cut" / "signals.partial"
    counts, signals = (partial / name for name in ("counts.bin", "signals.bin"))
    assert counts.stat().st_size == 10 * 8
    if torn == "signals":
        signals.write_bytes(signals.read_bytes() + b"half of a")
    elif torn == "between":
        counts.write_bytes(counts.read_bytes()[: 5 * 8])
    else:
        counts.write_bytes(counts.read_bytes()[: 8 * 8 + 3])
    cached(teacher, tmp_path / "cut" / "signals")
    assert payload(tmp_path / "whole" / "signals") == payload(tmp_path / "cut" / "signals")


def test_sampling_follows_the_seed(teacher, tmp_path):
    def sampled(folder, seed):
        inputs = context(folder)
        inputs.seed = seed
        cache_teacher.run(teacher, Config(tokens=ALL, precision="fp32", top_k=4), inputs)
        return TeacherSignals.open(folder).at([0, 5]).ids_NK

    one, same, other = (sampled(tmp_path / str(n), seed) for n, seed in enumerate((1, 1, 2)))
    assert torch.equal(one, same) and torch.equal(one[:, :4], other[:, :4])
    assert not torch.equal(one[:, 4:], other[:, 4:])


def test_a_folder_cut_short_or_without_signals_is_refused(teacher, tmp_path):
    folder = cached(teacher, tmp_path / "signals").path
    (folder / "signals.bin").unlink()  # it is the same file as the partial one
    (folder / "signals.bin").write_bytes(b"short")
    with pytest.raises(InputError, match=r"has 5 bytes where rows\.npy promises"):
        TeacherSignals.open(folder)
    with pytest.raises(InputError, match="holds no teacher signals"):
        TeacherSignals.open(tmp_path)


def test_unfinished_signals_are_not_handed_out(tmp_path):
    about = About(vocabulary=9, top_k=2, samples=0, temperature=1.0)
    writer = SignalsWriter(tmp_path, about, [0, 1], block_rows=1)
    one = torch.ones(1)
    targets = Targets(torch.tensor([[0, 3]]), torch.tensor([[0.5, 0.25]]), 0.25 * one, one, 2)
    writer.append(targets, [1])
    with pytest.raises(AssertionError):
        writer.finish(tmp_path)


def objectives(student, teacher, signals, temperature, label_weight):
    recipe = Recipe(named("forward_kl"), temperature, label_weight)
    online = Distillation(student, load_teacher(teacher.path, "fp32"), recipe, 259)
    return online, CachedDistillation(student, signals, label_weight, 259)


@pytest.mark.parametrize("label_weight", [0.0, 0.4])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_with_nearly_all_ids_loss_and_gradient_are_those_of_the_teacher(
    temperature, label_weight, teacher, tmp_path
):
    made = cached(teacher, tmp_path / "signals", top_k=250, tail="bucket", temperature=temperature)
    student = load_model(parent(tmp_path / "student").path)
    online, from_cache = objectives(
        student, teacher, TeacherSignals.open(made.path), temperature, label_weight
    )
    batch = PackedTokens.open(tmp_path / "tokens").learning_batch([4, 11, 0])
    found = cache_check.differences(student, online, from_cache, batch)
    assert found["cache_checked_tokens"] == 45
    assert abs(found["cache_loss_difference"]) < 2e-3 * temperature**2
    # At T = 3 these random models are so alike that rounding to 8 bits shows.
    assert 0 < found["cache_gradient_error"] < 0.02 * temperature


def test_fewer_ids_are_farther_from_the_teacher_and_a_bucket_is_never_above(teacher, tmp_path):
    student = load_model(parent(tmp_path / "student").path)
    batch = PackedTokens.open(tokens(tmp_path / "tokens").path).learning_batch(list(range(24)))
    found = []
    for top_k in (2, 16, 128):
        made = cached(teacher, tmp_path / str(top_k), top_k=top_k, tail="bucket")
        pair = objectives(student, teacher, TeacherSignals.open(made.path), 1.0, 0.0)
        found.append(cache_check.differences(student, *pair, batch))
    errors = [each["cache_gradient_error"] for each in found]
    assert errors == sorted(errors, reverse=True)
    assert all(each["cache_loss_difference"] < 1e-3 for each in found)


def distilled(student, teacher, folder, **settings):
    config = step.Config(**{**SETTINGS, "precision": "fp32", **settings})
    inputs = context(folder, teacher=teacher)
    if config.cache_teacher is not None:
        prepared = step.prepare(config)["signals"]
        made = context(folder.with_name(f"{folder.name}-signals"))
        cache_teacher.run(teacher, prepared.config, made)
        signals = Artifact(key="signals", kind="teacher_signals", path=made.folder)
        inputs.inputs = {**inputs.inputs, "signals": signals}
    return step.run(student, config, inputs), inputs


def test_distilling_from_a_cache_recovers_like_the_teacher_itself_and_says_how_far_it_is(teacher, tmp_path):
    student = parent(tmp_path / "student")
    longer = {"tokens": 8 * ALL}
    online, _ = distilled(student, teacher, tmp_path / "online", **longer)
    kept, _ = distilled(student, teacher, tmp_path / "cached", cache_teacher=True, **longer)
    data = PackedTokens.open(tmp_path / "tokens")
    taught_NV = teacher_logits(teacher, data, list(range(24)))

    def distance(folder):
        ours_NV = teacher_logits(Artifact(key="", kind="hf", path=folder), data, list(range(24)))
        return float(
            functional.kl_div(
                ours_NV.log_softmax(-1), taught_NV.log_softmax(-1), log_target=True, reduction="batchmean"
            )
        )

    before, whole, from_cache = (distance(tmp_path / name) for name in ("student", "online", "cached"))
    assert whole < 0.8 * before and from_cache < 0.8 * before
    assert from_cache == pytest.approx(whole, rel=0.2)
    assert abs(kept.facts["cache_loss_difference"]) < 0.1 * before
    # Of a teacher that was never trained, most of the mass is in the tail.
    assert 0 < kept.facts["cache_gradient_error"] < 1.5
    assert "cache_gradient_error" not in online.facts


def test_the_comparison_is_made_once_and_changes_no_bit(teacher, tmp_path, monkeypatch):
    student = parent(tmp_path / "student")
    first, _ = distilled(student, teacher, tmp_path / "first", cache_teacher={})
    (tmp_path / "second.partial").mkdir()
    told = {"cache_loss_difference": 0.5, "cache_gradient_error": None, "cache_checked_tokens": 1}
    (tmp_path / "second.partial" / cache_check.CHECK).write_text(json.dumps(told))
    monkeypatch.setattr("compress.distill.learning.load_teacher", None)  # not asked again
    again, _ = distilled(student, teacher, tmp_path / "second", cache_teacher={})
    assert payload(tmp_path / "first") == payload(tmp_path / "second")
    assert {name: again.facts[name] for name in told} == told != {name: first.facts[name] for name in told}


def test_a_row_of_which_nothing_is_learned_has_no_loss(teacher, tmp_path):
    """In a team, a process that has no row left reads one all the same."""
    made = cached(teacher, tmp_path / "signals")
    student = load_model(parent(tmp_path / "student").path)
    objective = CachedDistillation(student, TeacherSignals.open(made.path), 0.0, 259)
    batch = PackedTokens.open(tmp_path / "tokens").learning_batch([3])
    loss, count = objective(replace(batch, learned=torch.zeros_like(batch.ids, dtype=torch.bool)))
    loss.backward()
    assert count == 0 and float(loss.detach()) == 0
    assert all(not p.grad.any() for p in student.parameters())


def test_a_student_with_fewer_ids_than_the_teacher_is_refused(teacher, tmp_path):
    signals = TeacherSignals.open(cached(teacher, tmp_path / "signals").path)
    student = load_model(parent(tmp_path / "student", vocab_size=200).path)
    with pytest.raises(InputError, match="over the teacher's 259 ids, and the student has 200"):
        CachedDistillation(student, signals, 0.0, 200)
    whole = load_model(parent(tmp_path / "whole").path)
    with pytest.raises(InputError, match="tokenizer has 300 ids, but the teacher only 259"):
        CachedDistillation(whole, signals, 0.0, 300)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "reverse_kl"}, "`divergence: reverse_kl` needs the teacher itself"),
        ({"hidden_weight": 0.1}, "keeps no hidden states"),
    ],
)
def test_what_a_cache_cannot_give_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        step.Config(**SETTINGS, cache_teacher=True, **settings)
    step.Config(**SETTINGS, **settings)


def test_true_is_the_defaults_and_false_is_none():
    assert step.Config(**SETTINGS, cache_teacher=True).cache_teacher == CacheSettings()
    assert step.Config(**SETTINGS, cache_teacher=False).cache_teacher is None
    assert step.Config(**SETTINGS, cache_teacher={"top_k": 8}).cache_teacher.top_k == 8
    assert step.prepare(step.Config(**SETTINGS)) == {}


def test_sizes_are_tried_on_rows_that_training_reads(teacher, tmp_path, monkeypatch):
    """On a GPU; here the trial runs on the CPU, and everything fits."""
    tried = []

    def tried_on(objective, student, read, numerics, optimizer):
        def fits(size, recompute):
            objective(read(size))  # fails for rows that are not cached
            tried.append(read(size).rows.tolist())
            return True

        return fits

    resolve = loop.resolve
    monkeypatch.setattr(loop, "tried_on", tried_on)
    monkeypatch.setattr(loop, "resolve", lambda *arguments: arguments[-2](resolve(*arguments)))
    student = parent(tmp_path / "student")
    distilled(student, teacher, tmp_path / "result", cache_teacher=True, tokens=8 * 16, batch_tokens=4 * 16)
    data = PackedTokens.open(tmp_path / "tokens")
    largest = max(tried, key=len)
    assert largest == Batches(data, 4, seed=7).at(0).rows.tolist() and len(largest) == 4


def test_bf16_where_it_is_slow_is_refused_before_the_teacher_is_asked(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(numerics, "has_fast_bf16", lambda device: False)
    monkeypatch.setattr(caching, "load_teacher", lambda *arguments: pytest.fail("the teacher was opened"))
    with pytest.raises(InputError, match="this machine has no fast bf16"):
        cached(teacher, tmp_path / "signals", precision="bf16")
