"""What the files of a user's tasks tell of how long they take."""

import json

import pytest

from compress.data.task_files import own_lengths
from compress.data.task_lengths import TaskLength, evaluation_length


@pytest.fixture
def write(tmp_path):
    def written(docs, **task):
        (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, docs)) + "\n")
        content = {
            "task": "mine", "dataset_path": "json", "output_type": "multiple_choice", "validation_split": "test",
            "dataset_kwargs": {"data_files": {"train": "elsewhere.jsonl", "test": str(tmp_path / "items.jsonl")}},
            **task,
        }  # fmt: skip
        (tmp_path / "mine.yaml").write_text(json.dumps(content))
        return own_lengths.__wrapped__(tmp_path)

    return written


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"doc_to_text": "", "doc_to_choice": "{{[good, bad]}}"}, TaskLength(500, 2, 10)),
        ({"doc_to_text": "", "doc_to_choice": ["good", "bad", "ugly", "none"]}, TaskLength(500, 4, 5)),
        ({"doc_to_text": "{{good}}", "doc_to_choice": ["a", "b"], "num_fewshot": 3}, TaskLength(500, 2, 20, 0, 3, 20)),
        ({"doc_to_text": "{{good}}", "doc_to_choice": "{{[bad, label]}}"}, TaskLength(500, 2, 15, 0, 0, 10)),
        ({"output_type": "loglikelihood_rolling", "doc_to_text": ""}, TaskLength(500, 1, 20)),
        ({"output_type": "generate_until", "generation_kwargs": {"max_gen_toks": 7}}, TaskLength(500, 0, 20, 7)),
        ({"output_type": "generate_until"}, TaskLength(500, 0, 20, 256)),
    ],
)  # fmt: skip
def test_items_answers_and_texts_are_counted(write, task, expected):
    assert write([{"good": "g" * 40, "bad": "b" * 40, "label": 1}] * 500, **task) == {"mine": expected}


def test_a_field_that_lists_answers_says_how_many(write):
    docs = [{"question": "q" * 20, "options": ["o" * 4] * 5}] * 3
    assert write(docs, doc_to_text="question", doc_to_choice="options")["mine"] == TaskLength(
        3, 5, 6, 0, 0, 5
    )


@pytest.mark.parametrize(
    "task", [{"dataset_path": "owner/name"}, {"dataset_kwargs": None}, {"task": ["a", "b"]}]
)
def test_of_data_that_lie_elsewhere_nothing_is_known(write, task):
    assert write([{"good": "g"}], **task) == {}


def test_files_that_cannot_be_read_are_left_to_lm_eval(tmp_path, write):
    assert set(write([{"good": "g"}], doc_to_choice=["a", "b"])) == {"mine"}
    (tmp_path / "items.jsonl").write_text("not JSON\n")
    (tmp_path / "broken.yaml").write_text("task: [")
    (tmp_path / "function.yaml").write_text("task: other\nprocess_docs: !function utils.docs\n")
    assert own_lengths.__wrapped__(tmp_path) == {}


def test_an_included_file_is_read_too(tmp_path, write):
    write([{"good": "g" * 8}], doc_to_choice=["a", "b"])
    (tmp_path / "derived.yaml").write_text("include: mine.yaml\ntask: derived\n")
    assert set(own_lengths.__wrapped__(tmp_path)) == {"mine", "derived"}


def test_what_is_known_of_ones_own_tasks_counts():
    own = {"mine": TaskLength(items=50, rows=2, row_tokens=10)}
    assert evaluation_length(["mine"], 20, own=own).read_tokens == 400
