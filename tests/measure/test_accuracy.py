import numpy as np
import pytest
from scipy import stats

from compress.measure.accuracy import accuracy_measurements
from compress.measure.items import Item, read_items, write_items
from compress.measure.statistics import mcnemar_exact, paired_difference_interval, wilson_interval


def items(task, right, metric="acc", order=None):
    numbered = [
        Item(
            task=task, leaf=task, doc_id=i, doc_hash=f"{task} {i}", filter="none", metrics={metric: float(ok)}
        )
        for i, ok in enumerate(right)
    ]
    return [numbered[i] for i in order] if order else numbered


def measured_of(found, original, metric="acc"):
    tasks = dict.fromkeys(item.task for item in found)
    return accuracy_measurements(found, original, {task: {task: (metric, "none")} for task in tasks})


def find(measurements, name, **labels):
    (found,) = [m for m in measurements if m.name == name and m.labels == labels]
    return found


BEFORE = [True] * 8 + [False] * 2
AFTER = [True] * 5 + [False] * 4 + [True]


def test_accuracy_has_a_wilson_interval():
    accuracy = find(measured_of(items("a", AFTER), None), "accuracy", task="a")
    expected = wilson_interval(6, 10)
    assert (accuracy.value, accuracy.low, accuracy.high) == (0.6, expected.low, expected.high)
    assert accuracy.n == 10 and accuracy.unit == "share" and accuracy.higher_is_better
    assert "acc" in accuracy.note


def test_the_mean_weighs_every_task_alike():
    measured = measured_of(items("a", [True] * 30) + items("b", [False] * 10), None)
    mean = find(measured, "mean_accuracy")
    assert mean.value == 0.5
    assert mean.n == 40
    assert mean.low < 0.5 < mean.high


def test_answers_pair_by_question_whatever_their_order():
    original = items("a", BEFORE, order=[3, 1, 0, 2, 9, 8, 7, 6, 5, 4])
    measured = measured_of(items("a", AFTER), original)
    change = find(measured, "accuracy_change", task="a")
    expected = paired_difference_interval(BEFORE, AFTER)
    assert (change.value, change.low, change.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert f"{mcnemar_exact(BEFORE, AFTER):.2g}" in change.note
    flips = find(measured, "flips", task="a")
    assert flips.value == pytest.approx(0.4)
    assert not flips.higher_is_better
    assert flips.note == "3 answers became wrong, 1 became right"
    assert find(measured, "accuracy", task="a").beside == {"original": 0.8}
    assert find(measured, "mean_accuracy").beside == {"original": 0.8}


def test_questions_the_original_was_not_asked_do_not_count_in_the_change():
    measured = measured_of(items("a", AFTER), items("a", BEFORE[:5]))
    assert find(measured, "accuracy_change", task="a").n == 5
    assert find(measured, "accuracy", task="a").n == 10


def test_the_original_against_itself_changes_nothing():
    measured = measured_of(items("a", BEFORE), items("a", BEFORE))
    assert find(measured, "mean_accuracy_change").value == 0.0
    assert find(measured, "flips", task="a").value == 0.0


def test_a_task_with_only_the_normalized_accuracy_says_so():
    accuracy = find(measured_of(items("a", AFTER, metric="acc_norm"), None, "acc_norm"), "accuracy", task="a")
    assert "acc_norm" in accuracy.note


def test_tasks_without_accuracy_give_none():
    assert accuracy_measurements(items("a", AFTER, metric="ppl"), None, {"a": {}}) == []


def test_a_mean_that_leaves_a_task_out_says_so():
    found = items("a", AFTER) + items("prose", AFTER, metric="word_perplexity")
    measured = accuracy_measurements(found, found, {"a": {"a": ("acc", "none")}, "prose": {}})
    for name in ("mean_accuracy", "mean_accuracy_change"):
        assert "one task" in find(measured, name).note and "leaves out prose" in find(measured, name).note


GRADED_BEFORE = [0.9, 0.75, 0.6, 0.8, 0.7, 0.95]
GRADED_AFTER = [0.7, 0.7, 0.65, 0.6, 0.5, 0.9]


def test_scores_between_right_and_wrong_count_as_what_they_are():
    measured = measured_of(items("a", GRADED_AFTER), items("a", GRADED_BEFORE))
    accuracy = find(measured, "accuracy", task="a")
    expected = student_interval(stats.t, GRADED_AFTER)
    assert accuracy.value == pytest.approx(np.mean(GRADED_AFTER))
    assert (accuracy.low, accuracy.high) == pytest.approx(expected)
    change = find(measured, "accuracy_change", task="a")
    differences = np.subtract(GRADED_AFTER, GRADED_BEFORE)
    assert (change.low, change.high) == pytest.approx(student_interval(stats.t, differences))
    p = stats.ttest_rel(GRADED_AFTER, GRADED_BEFORE).pvalue
    assert f"{p:.2g}" in change.note and "graded" in change.note
    assert not [m for m in measured if m.name == "flips"]


def test_scores_that_are_all_alike_leave_room_for_what_was_not_seen():
    accuracy = find(measured_of(items("a", [0.75] * 24), None), "accuracy", task="a")
    assert accuracy.value == 0.75 and accuracy.low < 0.75 < accuracy.high


def student_interval(distribution, values):
    margin = distribution.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return np.mean(values) - margin, np.mean(values) + margin


def test_an_item_that_stands_twice_in_a_task_is_two_items():
    twice = [item.model_copy(update={"doc_hash": f"{i % 3}"}) for i, item in enumerate(items("a", AFTER))]
    measured = measured_of(twice, twice)
    assert find(measured, "accuracy", task="a").n == find(measured, "accuracy_change", task="a").n == 10


def test_only_one_reading_of_each_answer_counts():
    strict = items("a", AFTER, metric="exact_match")
    loose = [item.model_copy(update={"filter": "loose", "metrics": {"exact_match": 1.0}}) for item in strict]
    assert find(measured_of(loose + strict, None, "exact_match"), "accuracy", task="a").n == 10


def test_items_survive_being_written(tmp_path):
    written = items("à faire", AFTER)
    write_items(tmp_path, written)
    assert read_items(tmp_path) == written
