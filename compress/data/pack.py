"""Documents → token ids → equal rows on disk, streaming: memory holds a few batches of documents.

Documents are joined (`compress.data.encode` says with which marks between them, and skips blank ones) and the stream
is cut into rows without padding, each of which begins as a text begins; a rest too short for a row is dropped. Where
each document begins, and what is to be learned where that is not everything, is kept beside the ids, and so is the chat
template that was given for them: a model that learns from these rows is to be spoken to in it.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from compress import plugins
from compress.data.files import read_text
from compress.data.sources import Part, documents_after, is_endless
from compress.errors import InputError
from compress.plugins import Context, StepConfig
from compress.records import Artifact, JsonValue, ModelSpec, Outcome, Work
from compress.speed import NETWORK_BYTES_PER_SECOND

if TYPE_CHECKING:
    from compress.data.encode import Encoder
    from compress.data.interleave import Stream

VERSION = 6
ACCEPTS = ("tokenizer", "hf")
PRODUCES = "tokens"
COMPUTES = False

SUPPOSED_TOKENS = 10**7
"""Where nothing says how many there are."""
FLOPS_PER_TOKEN = 1.5e5
"""What a core could do while it tokenizes one token of text: 2.5 µs, measured with a vocabulary of a thousand."""
ALONE_TOKENS = 4 * 10**6
"""About how many one process does before others begin, or without them."""
ALONE_SECONDS_PER_TOKEN = 5e-7
"""What Python does meanwhile with each: one core, however many there are."""
SHARED_SECONDS_PER_TOKEN = 1.5e-7
"""What is left to that process then: it reads documents and writes rows, most of it 20 µs a document."""
FETCHED_BYTES_PER_TOKEN = 2.5
"""Of a compressed data set on the hub."""
STORED_BYTES_PER_TOKEN = 4
START_SECONDS = 1.5
REPORT_EVERY = 256
"""Documents between two reports of progress, at each of which a stop is heeded and work saved."""
REPORT_TOKENS = 2**17
"""After which that is done, however few the documents."""


class Config(StepConfig):
    """Which texts to pack, and into what."""

    source: str
    """A file of ``compress/data/sources``, such as ``demo``, ``text``, ``jsonl``, ``parquet``, ``hf``, ``mixture``."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The source's own settings."""
    sequence_length: int = Field(ge=2)
    """Tokens a row."""
    samples: int | None = Field(default=None, ge=1)
    """Rows to make; ``None`` leaves it to `tokens`, or to the source's end."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens to make, rounded up to whole rows. With `samples` the smaller counts."""
    chat_template: str | None = None
    """A file with the chat template for conversations; ``None`` is the tokenizer's."""

    @property
    def wanted_rows(self) -> int | None:
        """Rows to make at most; ``None`` is all there are."""
        from_tokens = None if self.tokens is None else -(-self.tokens // self.sequence_length)
        return min((rows for rows in (self.samples, from_tokens) if rows is not None), default=None)


def estimate(spec: ModelSpec | None, config: Config, inputs: Mapping[str, ModelSpec]) -> Work:
    """Return about what tokenizing takes: on all cores, but for what one process does with documents and ids."""
    rows = config.wanted_rows
    tokens = SUPPOSED_TOKENS if rows is None else rows * config.sequence_length
    fetched = tokens * FETCHED_BYTES_PER_TOKEN / NETWORK_BYTES_PER_SECOND if _is_fetched(config) else 0.0
    alone = min(tokens, ALONE_TOKENS)
    serial = alone * ALONE_SECONDS_PER_TOKEN + (tokens - alone) * SHARED_SECONDS_PER_TOKEN
    return Work(
        flops=tokens * FLOPS_PER_TOKEN,
        serial_seconds=START_SECONDS + serial + fetched,
        disk_bytes=STORED_BYTES_PER_TOKEN * tokens,
        on_processor=True,
    )


def _is_fetched(config: Config) -> bool:
    sources = [config.source, *(part.get("source") for part in config.settings.get("parts") or ())]
    return "hf" in sources


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write the rows and their marks with the parent's tokenizer, and ``tokens.json`` last.

    Raises `InputError` for text too short for one row, ids the parent model has no embedding for, conversations the
    chat template cannot render or that hold no answer, and an endless source without a number of rows. A source
    shorter than asked warns.
    """
    from compress.data.chat import check_template
    from compress.data.encode import Encoder, load_tokenizer
    from compress.data.tokens import TEMPLATE

    template = None
    if config.chat_template is not None:
        template = read_text(config.chat_template)
        check_template(template, config.chat_template)
    tokenizer = load_tokenizer(parent.path)
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    with Encoder(tokenizer, _embedding_rows(parent), template) as encoder:
        facts = _write(encoder, vocabulary, config, context)
    if template is not None and not encoder.used_chat_template:
        context.warn(f"{_named(config)} holds no conversations: `chat_template` was of no use")
    elif template is not None:
        (context.folder / TEMPLATE).write_text(template, encoding="utf-8")
    (context.folder / "tokens.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return Outcome(facts=facts)


def _embedding_rows(parent: Artifact) -> int | None:
    return None if parent.spec is None else parent.spec.config.get("vocab_size")


def _streams(config: Config, seed: int, encoder: "Encoder") -> "tuple[list[Stream], bool]":
    """Return the source's documents as they are encoded, and whether they are repeated.

    A mixture's parts are streams of their own, mixed where their tokens can be counted.
    """
    from compress.data.interleave import Stream

    source = plugins.load("data.sources", config.source)
    settings = source.Config.model_validate(config.settings)
    if config.wanted_rows is None and is_endless(source, settings):
        raise InputError(f"the source '{config.source}' never ends: give `samples` or `tokens`")
    if hasattr(source, "parts"):
        parts, repeat = source.parts(settings, seed), settings.on_end == "repeat"
    else:
        whole = Part(config.source, 1.0, lambda _passes, num: documents_after(source, settings, seed, num))
        parts, repeat = [whole], False

    def encoded(part: Part) -> Stream:
        share = part.weight / sum(each.weight for each in parts)
        return Stream(
            part.name, part.weight, lambda passes, num: encoder.encode(part.read(passes, num), num, share)
        )

    return [encoded(part) for part in parts], repeat


def _write(encoder: "Encoder", vocabulary: int, config: Config, context: Context) -> dict[str, JsonValue]:
    """Write everything but ``tokens.json`` and return what that says."""
    from compress.data.encoding_pool import useful_processes
    from compress.data.interleave import interleave
    from compress.data.packing import Packing
    from compress.data.tokens import id_dtype

    streams, repeat = _streams(config, context.seed, encoder)
    wanted_tokens = (config.wanted_rows or 0) * config.sequence_length
    length, dtype = config.sequence_length, id_dtype(vocabulary)
    with Packing(context, length, dtype, config.wanted_rows, len(streams), encoder.row_start) as work:
        encoder.used_chat_template |= work.used_chat_template
        writer, reported, shared = work.writer, work.writer.num_tokens, False
        for document in interleave(streams, repeat, work.places) if not work.is_done else ():
            writer.write(document)
            if writer.num_documents % REPORT_EVERY == 0 or writer.num_tokens - reported >= REPORT_TOKENS:
                reported = writer.num_tokens
                work.report(wanted_tokens)
                work.save_if_due(encoder.used_chat_template)
                if not shared and work.takes_long(wanted_tokens):
                    shared = True
                    encoder.use_processes(useful_processes(), context.warn)
            if wanted_tokens and writer.num_tokens >= wanted_tokens:
                break
        work.save_at_end(encoder.used_chat_template)
        facts = writer.finish(_num_rows(writer.num_tokens, config, context), context.folder)
    if facts["learned_tokens"] == 0:
        raise InputError(
            f"{_named(config)} holds nothing to learn: no message of its conversations has the role "
            "'assistant', or the chat template marks none"
        )
    return facts


def _num_rows(tokens: int, config: Config, context: Context) -> int:
    rows, wanted = tokens // config.sequence_length, config.wanted_rows
    if rows == 0:
        raise InputError(
            f"{_named(config)} has {tokens} tokens: too little for one row of {config.sequence_length}"
        )
    if wanted is None or rows >= wanted:
        return wanted or rows
    context.warn(
        f"{_named(config)} fills only {rows} of {wanted} rows of {config.sequence_length}: fewer are used"
    )
    return rows


def _named(config: Config) -> str:
    """Return what to call the source: files are named where it reads some."""
    paths = config.settings.get("paths") or ()
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"the source '{config.source}'" + (f" ({paths[0]}{more})" if paths else "")
