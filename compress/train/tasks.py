"""How well a model under training answers tasks: the same items every time, judged as measurement judges them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.backends.huggingface import HuggingFaceBackend
from compress.data import world
from compress.data.tasks import write_tasks
from compress.errors import InputError
from compress.train.distributed import Team, passing_together

if TYPE_CHECKING:
    from compress.meters.lm_eval_model import BackendLM

ROWS_AT_ONCE = 32

Answers = dict[str, list[bool]]
"""For each task, which of its items were answered right, in an order that never changes."""


class WatchedTasks:
    """Tasks that are loaded once and answered often."""

    def __init__(
        self,
        names: Sequence[str],
        samples: int,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        on_progress: Callable[[], None] = lambda: None,
        as_chat: bool = False,
    ) -> None:
        """`folder`: where the demo tasks may be written; `as_chat`: asked by the tokenizer's chat template.

        Raises `InputError` for an unknown task.
        """
        # lm-eval takes seconds to import: only where it is asked for.
        from compress.meters.tasks import load_tasks, prepare_few_shot

        demo = folder if {*names} & {*world.DEMO_TASKS, world.TEXT_TASK} else None
        if demo:
            demo.mkdir(exist_ok=True)
            write_tasks(demo)
        self._leaves = load_tasks(names, demo, None)
        for leaves in self._leaves.values():
            prepare_few_shot(leaves, None)
        self._samples, self._tokenizer, self._on_progress = samples, tokenizer, on_progress
        self._as_chat = as_chat

    def answers(self, model: PreTrainedModel, rows_at_once: int = ROWS_AT_ONCE) -> Answers:
        """Return the model's answers; a team's processes share the items. Raises `InputError` without accuracy."""
        from compress.meters.tasks import in_order, judged, right_answers, run_tasks

        team = Team.current()
        with passing_together(model):
            lm = self._asked(model, rows_at_once)
            own = {
                name: judged(
                    run_tasks(lm, name, leaves, self._samples, (team.rank, team.size), self._as_chat)
                )
                for name, leaves in self._leaves.items()
            }
        parts = team.gathered(own)
        found = {
            name: right_answers(in_order([part[name] for part in parts], leaves), leaves)
            for name, leaves in self._leaves.items()
        }
        if lacking := [name for name, right in found.items() if not right]:
            raise InputError(
                f"tasks: '{lacking[0]}' has no accuracy to watch; name tasks whose answers are right or wrong"
            )
        return found

    def _asked(self, model: PreTrainedModel, rows_at_once: int) -> "BackendLM":
        from compress.meters.lm_eval_model import BackendLM

        return BackendLM(
            HuggingFaceBackend(model), self._tokenizer, rows_at_once, lambda done, total: self._on_progress()
        )
