"""Conversations → text with the answers marked, by the tokenizer's chat template, which transformers runs in a sandbox.

Which characters are answers a template may say itself (``{% generation %}``). Most do not: then the conversation is
rendered up to each answer and after it, which says the same as long as what comes later changes nothing before it.

A template may write today's date (``strftime_now``). Here that is always the same day: the same data then give the same
tokens tomorrow, and have the same key.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from compress.data.conversation import ANSWERS, Conversation, Message
from compress.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Characters from, up to but not including."""

TODAY = datetime(2024, 7, 26)
"""What day it is to a template: the one that Llama 3.2's writes where it is told none."""

_DIRECTIVES = (*"aAbBcCdDeFfGghHIjmMnpRSTtuUVwWxXyYZz", "-d", "-H", "-I", "-j", "-m", "-M", "-S", "-y")
"""What `strftime` writes, each after a ``%``."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A document as the tokenizer reads it."""

    text: str
    answers: tuple[Span, ...] | None = None
    """What is learned, in order, each with the mark that ends its turn; ``None``: all of it."""


def check_template(template: str, where: str) -> None:
    """Raise `InputError`, with `where` and the line, for a chat template that is none, whatever is written with it."""
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        render_jinja_template(conversations=[], chat_template=template)
    except TemplateSyntaxError as error:
        raise InputError(f"{where}:{error.lineno}: no valid chat template: {error.message}") from error


class ChatTemplate:
    """A tokenizer's chat template, or another one in its place."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str | None = None) -> None:
        """Raises `InputError` for a tokenizer without a valid template, or that cannot tell where its tokens lie."""
        if not tokenizer.is_fast:
            raise InputError(
                f"{type(tokenizer).__name__} does not tell which characters a token covers, which conversations need: "
                "use a tokenizer with a tokenizer.json"
            )
        try:
            written: str = tokenizer.get_chat_template() if template is None else template
        except ValueError as error:
            raise InputError(
                "the data holds conversations and the model's tokenizer has no chat template for them: "
                "give the path of one as `chat_template` beside the source"
            ) from error
        check_template(written, "the tokenizer's chat template" if template is None else "the chat template")
        self._template = dated(written)
        self._marks_answers = bool(_GENERATION.search(self._template))
        self._names = tokenizer.special_tokens_map
        self._specials = tuple(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)

    def render(self, conversation: Conversation) -> Rendered:
        """Return the whole conversation and where its answers are.

        Raises `InputError` for one the template refuses, leaves an answer out of, or renders differently once more
        follows.
        """
        text, spans = self._apply(conversation, conversation.messages, marks=self._marks_answers)
        _check_answers(conversation, text)
        return Rendered(text, tuple(spans if self._marks_answers else self._answers(conversation, text)))

    def _answers(self, conversation: Conversation, text: str) -> Iterator[Span]:
        messages = conversation.messages
        for index, message in enumerate(messages):
            if message["role"] != ANSWERS:
                continue
            before, _ = self._apply(conversation, messages[:index], asks=True)
            through, _ = self._apply(conversation, messages[: index + 1])
            if not through.startswith(before):
                raise _not_told_apart(
                    conversation, f"asks for message {index + 1} with words it does not begin with"
                )
            if not text.startswith(through):
                raise _not_told_apart(
                    conversation, f"writes message {index + 1} differently once more follows"
                )
            yield len(before), self._end_of_turn(through)

    def _end_of_turn(self, through: str) -> int:
        """Return where an answer's turn ends: space after the token that ends it is never written by a model."""
        without_space = through.rstrip()
        return len(without_space if without_space.endswith(self._specials) else through)

    def _apply(
        self,
        conversation: Conversation,
        messages: Sequence[Message],
        asks: bool = False,
        marks: bool = False,
    ) -> tuple[str, list[Span]]:
        """Return the rendered messages and the spans the template marks; with `asks` up to where an answer begins."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, spans = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self._template,
                add_generation_prompt=asks,
                return_assistant_tokens_mask=marks,
                **self._names,
            )
        except (ImportError, MemoryError):
            raise  # no matter of the template
        except (
            Exception
        ) as error:  # a template is a program: whatever it raises is about it and what it was given
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            raise InputError(f"{conversation.where}: the chat template refuses it: {kind}{error}") from error
        return texts[0], spans[0] if marks else []


def dated(template: str) -> str:
    """Return a template to which it is always `TODAY`.

    transformers gives templates a ``strftime_now`` that asks the clock, and lets no function be passed in its place. A
    macro of that name goes before it. The line break after it is dropped in rendering, so that the template still
    begins at the beginning of a line, on which the space there depends.
    """
    if "strftime_now" not in template:
        return template
    written = "".join(f"|replace('%{part}', {TODAY.strftime(f'%{part}')!r})" for part in _DIRECTIVES)
    return (
        "{% macro strftime_now(format) %}{% for part in format.split('%%') %}"
        f"{{{{ '' if loop.first else '%' }}}}{{{{ part{written} }}}}"
        "{% endfor %}{% endmacro %}\n"
    ) + template


def _check_answers(conversation: Conversation, text: str) -> None:
    """Raise where an answer is not in the text, as with templates that read contents of another form.

    What an answer thinks before it speaks, templates may drop or rewrite; so they may what accompanies a tool's call.
    """
    for number, message in enumerate(conversation.messages, start=1):
        if message["role"] != ANSWERS or "tool_calls" in message:
            continue
        if message["content"].rpartition("</think>")[2].strip() not in text:
            raise InputError(f"{conversation.where}: the chat template leaves out what message {number} says")


def _not_told_apart(conversation: Conversation, why: str) -> InputError:
    return InputError(
        f"{conversation.where}: the chat template {why}, so its answers cannot be told from the rest; give the path "
        "of a template that marks them with {% generation %} as `chat_template` beside the source"
    )
