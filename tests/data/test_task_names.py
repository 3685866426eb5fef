"""Names of tasks, told right from wrong without lm-eval."""

import subprocess
import sys

import pytest
from lm_eval.tasks import TaskManager

from compress.data import world
from compress.data.task_names import _known, check_tasks
from compress.errors import InputError


@pytest.mark.slow
def test_no_name_of_lm_eval_is_missed():
    assert set(TaskManager().all_tasks) <= _known(None)


def test_tasks_of_the_demo_and_of_lm_eval_are_known():
    # A task, a group, a tag, one whose tag stands in an included file, and one made of parts.
    check_tasks([*world.DEMO_TASKS, world.TEXT_TASK, "arc_challenge", "mmlu", "ai2_arc", "acp_bench_hard"])


def test_a_misspelled_task_is_refused_with_the_nearest():
    with pytest.raises(
        InputError, match=r"no task is called 'arc_challange'; did you mean 'arc_challenge'\?"
    ):
        check_tasks(["arc_challange"])
    with pytest.raises(InputError, match=r"'world_fact'; did you mean 'world_facts'\?"):
        check_tasks(["world_fact"])


def test_tasks_of_the_users_folder_are_known_there_only(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.yaml").write_text("include: base\ntask: my_questions\n")
    (tmp_path / "deep" / "base").write_text('tag:\n  - "ours"\n')
    check_tasks(["my_questions", "ours", "arc_easy"], tmp_path)
    with pytest.raises(InputError, match=r"did you mean 'my_questions'\?.*those in .* and those of lm-eval"):
        check_tasks(["my_question"], tmp_path)
    with pytest.raises(InputError, match="no task is called 'my_questions'"):
        check_tasks(["my_questions"])


def test_nothing_heavy_is_imported():
    code = (
        "import sys\nfrom compress.data.task_names import check_tasks\ncheck_tasks(['arc_easy'])\n"
        "assert not {'torch', 'lm_eval', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
