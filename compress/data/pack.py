"""Texts → token ids → equal rows on disk, streaming: memory holds one batch of documents.

Documents are joined as the tokenizer marks them, ``BOS text EOS BOS text EOS …`` (either mark only where the
tokenizer has it), and the stream is cut into rows without padding; a rest too short for a row is dropped.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from compress import plugins
from compress.errors import InputError
from compress.plugins import Context, StepConfig
from compress.records import Artifact, JsonValue, Outcome

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

VERSION = 1
ACCEPTS = ("tokenizer", "hf")
PRODUCES = "tokens"

BATCH_DOCUMENTS = 256


class Config(StepConfig):
    """Which texts to pack, and into what."""

    source: str
    """A file of ``compress/data/sources``: ``demo``, ``text``, ``jsonl`` or ``hf``."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The source's own settings."""
    sequence_length: int = Field(ge=2)
    """Tokens a row."""
    samples: int | None = Field(default=None, ge=1)
    """Rows to make; ``None`` leaves it to `tokens`, or to the source's end."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens to make, rounded up to whole rows. With `samples` the smaller counts."""

    @property
    def wanted_rows(self) -> int | None:
        """Rows to make at most; ``None`` is all there are."""
        from_tokens = None if self.tokens is None else -(-self.tokens // self.sequence_length)
        return min((rows for rows in (self.samples, from_tokens) if rows is not None), default=None)


def run(parent: Artifact, config: Config, context: Context) -> Outcome:
    """Write ``tokens.bin`` and ``tokens.json`` with the parent's tokenizer.

    Raises `InputError` for text too short for one row, ids the parent model has no embedding for, and an
    endless source without a number of rows. A source shorter than asked warns.
    """
    source = plugins.load("data.sources", config.source)
    if config.wanted_rows is None and getattr(source, "ENDLESS", False):
        raise InputError(f"the source '{config.source}' never ends: give `samples` or `tokens`")
    texts = source.texts(source.Config.model_validate(config.settings), context.seed)
    facts = _write(texts, load_tokenizer(parent.path), _embedding_rows(parent), config, context)
    (context.folder / "tokens.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return Outcome(facts=facts)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a folder. Raises `InputError` where there is none that plain loading reads."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer can be loaded from {folder}: {error}") from error


def _embedding_rows(parent: Artifact) -> int | None:
    return None if parent.spec is None else parent.spec.config.get("vocab_size")


def _write(
    texts: Iterator[str],
    tokenizer: "PreTrainedTokenizerBase",
    embedding_rows: int | None,
    config: Config,
    context: Context,
) -> dict[str, JsonValue]:
    """Write ``tokens.bin`` and return what ``tokens.json`` says of it."""
    from compress.data.tokens import id_dtype

    length, wanted = config.sequence_length, config.wanted_rows
    dtype = id_dtype(max(tokenizer.get_vocab().values()) + 1)
    documents = tokens = text_bytes = 0
    with (context.folder / "tokens.bin").open("wb") as file:
        for text, ids in _encode(texts, tokenizer, embedding_rows):
            file.write(ids.astype(dtype).tobytes())
            documents, tokens, text_bytes = documents + 1, tokens + len(ids), text_bytes + len(text.encode())
            if documents % BATCH_DOCUMENTS == 0:
                context.progress(tokens, max(tokens, (wanted or 0) * length), "tokens")
            if wanted is not None and tokens >= wanted * length:
                break
        rows = _num_rows(tokens, config, context)
        file.truncate(rows * length * dtype.itemsize)
    return {
        "num_sequences": rows,
        "sequence_length": length,
        "dtype": dtype.str,
        "documents": documents,
        "tokens": rows * length,
        # The rest that fills no row is taken off in proportion: text has no byte where a row ends.
        "text_bytes": round(text_bytes * rows * length / tokens),
    }


def _num_rows(tokens: int, config: Config, context: Context) -> int:
    rows, wanted = tokens // config.sequence_length, config.wanted_rows
    if rows == 0:
        raise InputError(
            f"the source '{config.source}' has {tokens} tokens: "
            f"too little for one row of {config.sequence_length}"
        )
    if wanted is None or rows >= wanted:
        return wanted or rows
    context.warn(
        f"the source '{config.source}' fills only {rows} of {wanted} rows of {config.sequence_length}: "
        "fewer are used"
    )
    return rows


def _encode(
    texts: Iterator[str], tokenizer: "PreTrainedTokenizerBase", embedding_rows: int | None
) -> Iterator[tuple[str, "np.ndarray[Any, Any]"]]:
    """Yield each text with its ids between the tokenizer's marks."""
    import numpy as np

    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    while batch := list(islice(texts, BATCH_DOCUMENTS)):
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        for text, ids in zip(batch, encoded, strict=True):
            row = np.array([*bos, *ids, *eos], dtype=np.int64)
            if embedding_rows is not None and row.max(initial=0) >= embedding_rows:
                raise InputError(
                    f"the tokenizer does not fit the model: it has {len(tokenizer)} ids (met: {row.max()}), "
                    f"the model's vocabulary {embedding_rows}"
                )
            yield text, row
