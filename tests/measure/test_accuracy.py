import pytest

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


def find(measurements, name, **labels):
    (found,) = [m for m in measurements if m.name == name and m.labels == labels]
    return found


BEFORE = [True] * 8 + [False] * 2
AFTER = [True] * 5 + [False] * 4 + [True]


def test_accuracy_has_a_wilson_interval():
    accuracy = find(accuracy_measurements(items("a", AFTER), None), "accuracy", task="a")
    expected = wilson_interval(6, 10)
    assert (accuracy.value, accuracy.low, accuracy.high) == (0.6, expected.low, expected.high)
    assert accuracy.n == 10 and accuracy.unit == "share" and accuracy.higher_is_better
    assert "acc" in accuracy.note


def test_the_mean_weighs_every_task_alike():
    measured = accuracy_measurements(items("a", [True] * 30) + items("b", [False] * 10), None)
    mean = find(measured, "mean_accuracy")
    assert mean.value == 0.5
    assert mean.n == 40
    assert mean.low < 0.5 < mean.high


def test_answers_pair_by_question_whatever_their_order():
    original = items("a", BEFORE, order=[3, 1, 0, 2, 9, 8, 7, 6, 5, 4])
    measured = accuracy_measurements(items("a", AFTER), original)
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
    measured = accuracy_measurements(items("a", AFTER), items("a", BEFORE[:5]))
    assert find(measured, "accuracy_change", task="a").n == 5
    assert find(measured, "accuracy", task="a").n == 10


def test_the_original_against_itself_changes_nothing():
    measured = accuracy_measurements(items("a", BEFORE), items("a", BEFORE))
    assert find(measured, "mean_accuracy_change").value == 0.0
    assert find(measured, "flips", task="a").value == 0.0


def test_a_task_with_only_the_normalized_accuracy_says_so():
    accuracy = find(accuracy_measurements(items("a", AFTER, metric="acc_norm"), None), "accuracy", task="a")
    assert "acc_norm" in accuracy.note


def test_tasks_without_accuracy_give_none():
    assert accuracy_measurements(items("a", AFTER, metric="f1"), None) == []


def test_items_survive_being_written(tmp_path):
    written = items("à faire", AFTER)
    write_items(tmp_path, written)
    assert read_items(tmp_path) == written
