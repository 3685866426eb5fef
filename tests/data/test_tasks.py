import pytest
from lm_eval.tasks import TaskManager

from compress.data import tasks, world

NAMES = sorted([*world.DEMO_TASKS, world.TEXT_TASK])


@pytest.fixture
def moved(context, tmp_path):
    """The tasks' folder after it was written and moved, as a committed artifact is."""
    tasks.run(None, tasks.Config(), context)
    return context.folder.rename(tmp_path / "committed")


def test_lm_eval_finds_the_tasks_by_name_wherever_the_folder_went(moved):
    manager = TaskManager(include_path=str(moved), include_defaults=False)
    assert manager.all_subtasks == NAMES
    assert sorted(manager.load(NAMES)["tasks"]) == NAMES


def test_the_dictionaries_load_the_same_documents_as_the_folder(moved):
    by_name = TaskManager(include_path=str(moved), include_defaults=False).load(NAMES)["tasks"]
    by_config = TaskManager(include_defaults=False).load(tasks.demo_task_configs(moved))["tasks"]
    assert {n: list(t.eval_docs) for n, t in by_name.items()} == {
        n: list(t.eval_docs) for n, t in by_config.items()
    }


def test_a_question_reaches_the_model_as_the_world_asked_it(moved):
    loaded = TaskManager(include_path=str(moved), include_defaults=False).load(NAMES)["tasks"]
    for name in world.DEMO_TASKS:
        item, document = world.items(name)[1], loaded[name].eval_docs[1]
        requests = loaded[name].construct_requests(document, loaded[name].doc_to_text(document))
        assert [request.args for request in requests] == [
            (item.prompt, f" {option}") for option in item.options
        ]
        assert loaded[name].doc_to_target(document) == item.gold


def test_the_perplexity_task_scores_whole_texts(moved):
    task = TaskManager(include_path=str(moved), include_defaults=False).load([world.TEXT_TASK])["tasks"][
        world.TEXT_TASK
    ]
    assert [task.doc_to_target(document) for document in task.eval_docs] == world.texts()
