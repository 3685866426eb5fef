"""The chat template a model leaves training with: the one that what it learned was written with.

A pretrained model has none of its own, and without it nobody could speak to what was tuned.
"""

from pathlib import Path

from transformers.utils import CHAT_TEMPLATE_FILE

from compress.data.tokens import given_template
from compress.models.checkpoint import load_tokenizer
from compress.plugins import Context


def hand_on_template(data: Path, parent: Path, context: Context) -> None:
    """Write the template that the data were packed with in place of the parent's own, and warn where it had another.

    transformers reads this file before what a ``tokenizer_config.json`` says.
    """
    template = given_template(data)
    if template is None:
        return
    own = load_tokenizer(parent).chat_template
    if (own.get("default") if isinstance(own, dict) else own) == template:
        return
    (context.folder / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")
    if own is not None:
        context.warn(
            "the result has the chat template its data were written with, `chat_template`, in place of its parent's own"
        )
