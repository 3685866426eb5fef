import json

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM

from compress.data import tasks as demo_tasks
from compress.errors import InputError
from compress.measure import quality
from compress.measure.items import read_items
from compress.meters import tasks as meter
from compress.meters.tasks import choose_items
from compress.models.checkpoint import load_tokenizer
from compress.records import Artifact
from tests.fakes import FakeContext, Stopped


def find(measurements, name, **labels):
    (found,) = [m for m in measurements if m.name == name and m.labels == labels]
    return found


def measure(artifact, context, task_folder, *tasks, **settings):
    return quality.measure(
        artifact, quality.Config(tasks=tasks, task_folder=task_folder, **settings), context
    )


def test_every_figure_equals_that_of_lm_evals_own_model(original, context, task_folder):
    names = ["first", "second", "prose", "written"]
    measured = measure(original, context(), task_folder, *names)
    model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(original.path),
        tokenizer=load_tokenizer(original.path),
        softmax_dtype="float32",
    )
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    expected = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
    for task in ("first", "second"):
        assert find(measured, "accuracy", task=task).value == expected[task]["acc,none"]
        assert find(measured, "acc_norm", task=task).value == expected[task]["acc_norm,none"]
    perplexity = find(measured, "word_perplexity", task="prose")
    assert perplexity.value == pytest.approx(expected["prose"]["word_perplexity,none"], rel=1e-4)
    assert not perplexity.higher_is_better
    assert find(measured, "exact_match", task="written").value == expected["written"]["exact_match,none"]


def test_graded_and_written_answers_count_as_lm_eval_counts_them(original, context, task_folder):
    measured = measure(original, context(), task_folder, "graded", "written", "twice", "nats")
    model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(original.path),
        tokenizer=load_tokenizer(original.path),
        softmax_dtype="float32",
    )
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    names = ["graded", "written", "twice", "nats"]
    expected = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
    graded = find(measured, "accuracy", task="graded")
    assert 0 < graded.value < 1 and graded.low < graded.value < graded.high
    assert graded.value == pytest.approx(expected["graded"]["acc,none"], abs=1e-4)
    assert find(measured, "accuracy", task="written").value == expected["written"]["exact_match,none"]
    assert find(measured, "accuracy", task="twice").n == 12
    assert find(measured, "accuracy", task="twice").value == expected["twice"]["acc,none"]
    nats = find(measured, "likelihood_diff", task="nats")
    assert nats.value == pytest.approx(expected["nats"]["likelihood_diff,none"], abs=1e-4)
    assert nats.unit == ""  # nats are no share, and no accuracy
    mean = find(measured, "mean_accuracy")
    assert "3 tasks" in mean.note and "leaves out nats" in mean.note


@pytest.mark.parametrize(
    ("task", "chance"),
    [
        ("first", 1 / 4),
        ("both", 1 / 4),
        (
            "uneven",
            (1 / 2 + 1 / 3 + 1 / 4) / 3,
        ),  # the mean of 1/options, not one over the mean; mutual information too
        ("graded", 1 / 3),
        ("written", None),
    ],
)
def test_the_chance_level_is_one_over_the_options_of_each_item(original, context, task_folder, task, chance):
    measured = measure(original, context(), task_folder, task)
    assert find(measured, "accuracy", task=task).chance == (chance and pytest.approx(chance))
    assert find(measured, "mean_accuracy").chance == find(measured, "accuracy", task=task).chance


def test_the_mean_has_a_chance_level_where_every_task_has_one(original, context, task_folder):
    measured = measure(original, context("known"), task_folder, "first", "graded")
    assert find(measured, "mean_accuracy").chance == pytest.approx((1 / 4 + 1 / 3) / 2)
    measured = measure(original, context("unknown"), task_folder, "first", "written")
    assert find(measured, "mean_accuracy").chance is None


def test_what_a_task_declares_as_better_the_lower_is_no_accuracy(original, context, task_folder):
    """lm-eval declares both of CrowS-Pairs' figures so: nats, and a share that would be best near a half."""
    measured = measure(original, context(), task_folder, "stereotypes", "first")
    apart, share = (find(measured, m, task="stereotypes") for m in ("likelihood_diff", "pct_stereotype"))
    assert (apart.unit, share.unit) == ("", "share")
    assert not apart.higher_is_better and not share.higher_is_better
    assert [m.labels["task"] for m in measured if m.name == "accuracy"] == ["first"]
    assert "leaves out stereotypes" in find(measured, "mean_accuracy").note


def test_a_group_is_one_task_over_all_its_items(original, context, task_folder):
    apart = measure(original, context("apart"), task_folder, "first", "second")
    together = measure(original, context("together"), task_folder, "both")
    right = sum(find(apart, "accuracy", task=t).value * n for t, n in (("first", 12), ("second", 8)))
    assert find(together, "accuracy", task="both").value == pytest.approx(right / 20)
    assert find(together, "accuracy", task="both").n == 20


def test_changes_are_paired_with_the_originals_items(original, student, context, task_folder):
    before = context("original")
    measure(original, before, task_folder, "both")
    kept = Artifact(key="q", kind="measurements", path=before.folder)
    measured = measure(student, context("student", original_quality=kept), task_folder, "both")
    change = find(measured, "accuracy_change", task="both")
    accuracy = find(measured, "accuracy", task="both")
    assert change.value == pytest.approx(accuracy.value - accuracy.beside["original"])
    assert change.n == 20
    same = measure(original, context("again", original_quality=kept), task_folder, "both", batch_size=3)
    assert find(same, "flips", task="both").value == 0.0


def test_a_sample_is_the_same_for_every_model_and_part_of_the_whole(original, student, context, task_folder):
    contexts = context("one"), context("two"), context("whole")
    measure(original, contexts[0], task_folder, "both", samples=7)
    measure(student, contexts[1], task_folder, "both", samples=7)
    measure(original, contexts[2], task_folder, "both")
    one, two, whole = ([item.identity for item in read_items(c.folder)] for c in contexts)
    assert one == two
    assert len(one) == 7 and set(one) < set(whole)
    answers = {item.identity: item for item in read_items(contexts[2].folder)}
    for item in read_items(contexts[0].folder):
        assert item.doc_id == answers[item.identity].doc_id
        assert item.log_probs == pytest.approx(answers[item.identity].log_probs, abs=1e-4)


def test_the_demonstration_tasks_are_found(original, context, tmp_path):
    demo = FakeContext(tmp_path / "tasks")
    outcome = demo_tasks.run(None, demo_tasks.Config(), demo)
    given = context(tasks=Artifact(key="tasks", kind="tasks", path=demo.folder))
    names = tuple(outcome.facts["tasks"])
    measured = quality.measure(original, quality.Config(tasks=names, samples=3), given)
    assert find(measured, "mean_accuracy").n == 3 * len([m for m in measured if m.name == "accuracy"])


def test_an_unknown_task_is_refused_with_the_nearest_name(original, context, task_folder, monkeypatch):
    monkeypatch.setattr(meter.TaskManager, "__init__", without_defaults(meter.TaskManager.__init__))
    with pytest.raises(InputError, match=r"no task is called 'frist'; did you mean 'first'\?"):
        measure(original, context(), task_folder, "frist")


def without_defaults(init):
    """The thousands of tasks lm-eval ships take seconds to index; the test's own are enough."""
    return lambda self, include_path=None, include_defaults=True: init(
        self, include_path=include_path, include_defaults=False
    )


def test_examples_that_would_leak_answers_are_refused(original, context, task_folder):
    with pytest.raises(InputError, match="fewshot_split"):
        measure(original, context(), task_folder, "first", few_shot=2)


def test_prompts_are_continued(original, context, task_folder):
    given = context()
    measure(original, given, task_folder, "first", prompts=("The ship", "A fox"), new_tokens=5)
    written = json.loads((given.folder / quality.GENERATIONS).read_text())
    assert [generation["prompt"] for generation in written] == ["The ship", "A fox"]
    assert all(generation.keys() == {"prompt", "text"} for generation in written)


def test_a_stop_is_heeded_between_batches(original, context, task_folder):
    given = context()
    given.stopping = True
    with pytest.raises(Stopped):
        measure(original, given, task_folder, "first")


def test_chosen_items_are_sorted_and_drawn_from_all_leaves():
    sizes = {"a": 100, "b": 50}
    chosen = choose_items(sizes, 30, "group")
    assert sum(map(len, chosen.values())) == 30
    assert all(indices == sorted(indices) and indices[-1] < sizes[leaf] for leaf, indices in chosen.items())
    assert chosen == choose_items(sizes, 30, "group")
    assert chosen != choose_items(sizes, 30, "another")
    assert choose_items(sizes, 1000, "group") == {"a": list(range(100)), "b": list(range(50))}


def test_a_leaf_without_chosen_items_is_left_out():
    assert len(choose_items({"a": 3, "b": 3}, 1, "group")) == 1
