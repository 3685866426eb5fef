"""How well a model under training answers tasks: the same items every time, judged as measurement judges them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from compress.backends.huggingface import HuggingFaceBackend
from compress.data import world
from compress.data.tasks import write_tasks
from compress.errors import InputError

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
    ) -> None:
        """`folder`: where the demo tasks may be written. Raises `InputError` for an unknown task."""
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

    def answers(self, model: PreTrainedModel) -> Answers:
        """Return the model's answers. Raises `InputError` for a task without accuracy."""
        from compress.meters.lm_eval_model import BackendLM
        from compress.meters.tasks import right_answers, run_tasks

        lm = BackendLM(
            HuggingFaceBackend(model), self._tokenizer, ROWS_AT_ONCE, lambda done, total: self._on_progress()
        )
        found = {
            name: right_answers(run_tasks(lm, name, leaves, self._samples), leaves)
            for name, leaves in self._leaves.items()
        }
        if lacking := [name for name, right in found.items() if not right]:
            raise InputError(
                f"tasks: '{lacking[0]}' has no accuracy to watch; name tasks whose answers are right or wrong"
            )
        return found
