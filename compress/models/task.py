"""What a checkpoint is for, told from its configuration by transformers' own tables.

The tables (`MODEL_FOR_CAUSAL_LM_MAPPING_NAMES` and the like) say which class is for what, and which architecture has
which. They are read out of transformers' source: importing the module that holds them imports torch, and planning does
not.
"""

import ast
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

Task = Literal["causal-lm", "masked-lm", "classifier", "encoder", "other"]
"""``encoder``: a body without a head (`BertModel`), as sentence encoders are. ``other``: nothing that can be opened
here, such as a translator (T5), or a causal head over a body that sees the whole text."""

IN_WORDS: dict[Task, str] = {
    "causal-lm": "a causal language model",
    "masked-lm": "a masked language model",
    "classifier": "a classifier",
    "encoder": "an encoder without a head",
    "other": "no language model, classifier or encoder",
}

LANGUAGE_MODELS: tuple[Task, ...] = ("causal-lm", "masked-lm")
"""Whose output is a distribution over the vocabulary."""

CLASSIFIERS = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION")
TEXT = ("CAUSAL_LM", "MASKED_LM", "TEXT_ENCODING", *CLASSIFIERS)
"""Tables of what reads text only."""


def task_of(config: Mapping[str, Any]) -> Task:
    """Return what a configuration's class is for; one without `architectures` is what transformers makes of its type.

    So is one whose class transformers does not know.
    """
    named = class_of(config)
    if named is None:
        return _task_of_type(config)
    if named in _classes("CAUSAL_LM") and not _sees_what_follows(config):
        return "causal-lm"
    if named in _classes("SEQ_TO_SEQ_CAUSAL_LM"):
        return "other"
    if named in _classes("MASKED_LM"):
        return "masked-lm"
    if any(named in _classes(table) for table in CLASSIFIERS):
        return "classifier"
    return "encoder" if named in _classes("") and _is_of_text(config) else "other"


def class_of(config: Mapping[str, Any]) -> str | None:
    """Return the first of a configuration's `architectures` that transformers has."""
    named = config.get("architectures")
    every = {name for table in _tables().values() for names in table.values() for name in names}
    return next((name for name in named if name in every), None) if isinstance(named, list) else None


def in_words(config: Mapping[str, Any]) -> str:
    """Return what a configuration is, for a message: ``an encoder without a head (XLMRobertaModel)``."""
    named = class_of(config)
    if named in _classes("CAUSAL_LM") and task_of(config) == "other":
        return f"a writer's head on a body that sees the whole text ({named}; is_decoder is not set)"
    return f"{IN_WORDS[task_of(config)]} ({named or config.get('model_type')})"


def writes(config: Mapping[str, Any]) -> bool:
    """Whether it predicts the next token from those before it, and can so be measured and taught as a writer."""
    return task_of(config) == "causal-lm"


def _task_of_type(config: Mapping[str, Any]) -> Task:
    model_type = config.get("model_type")
    if model_type in _table("CAUSAL_LM") and not _sees_what_follows(config):
        return "causal-lm"
    if model_type in _table("MASKED_LM"):
        return "masked-lm"
    if model_type in _table("") and _is_of_text(config):
        return "encoder"
    named = " ".join(config.get("architectures") or ())  # an architecture a package of yours registers
    return "causal-lm" if "ForCausalLM" in named else "masked-lm" if "ForMaskedLM" in named else "other"


def _is_of_text(config: Mapping[str, Any]) -> bool:
    """Whether an architecture reads text and is in one piece: no translator's two."""
    model_type = config.get("model_type")
    reads = any(model_type in _table(table) for table in TEXT)
    return reads and model_type not in _table("SEQ_TO_SEQ_CAUSAL_LM")


def _sees_what_follows(config: Mapping[str, Any]) -> bool:
    """Whether attention is bidirectional: in masked language models unless they are used as decoders."""
    if config.get("use_bidirectional_attention") in (True, "all"):
        return True
    model_type = config.get("model_type")
    is_masked = model_type in _table("MASKED_LM") and model_type not in _table("SEQ_TO_SEQ_CAUSAL_LM")
    return is_masked and not config.get("is_decoder", False)


def _table(name: str) -> Mapping[str, tuple[str, ...]]:
    """Return the classes of each `model_type` in a table; in the one without a name, those without a head."""
    return _tables()[f"MODEL_FOR_{name}_MAPPING_NAMES" if name else "MODEL_MAPPING_NAMES"]


@lru_cache(maxsize=64)
def _classes(name: str) -> frozenset[str]:
    return frozenset(each for names in _table(name).values() for each in names)


@lru_cache(maxsize=1)
def _tables() -> dict[str, dict[str, tuple[str, ...]]]:
    """Return every table of ``modeling_auto.py`` that is written out: one, of models that see too, is put together."""
    package = find_spec("transformers")
    assert package is not None and package.submodule_search_locations
    source = Path(package.submodule_search_locations[0]) / "models/auto/modeling_auto.py"
    return dict(filter(None, map(_read_table, ast.parse(source.read_text(encoding="utf-8")).body)))


def _read_table(line: ast.stmt) -> tuple[str, dict[str, tuple[str, ...]]] | None:
    """Return the name and content of a line ``NAME = OrderedDict([(model_type, class or classes), …])``."""
    match line:
        case ast.Assign(targets=[ast.Name(name)], value=ast.Call(args=[ast.List(entries)])):
            if not name.endswith("MAPPING_NAMES"):
                return None
            pairs = [ast.literal_eval(entry) for entry in entries if isinstance(entry, ast.Tuple)]
            return name, {key: (names,) if isinstance(names, str) else tuple(names) for key, names in pairs}
    return None
