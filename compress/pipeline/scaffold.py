"""The commented pipeline that ``compress init`` writes: a good first recipe, for a checkpoint and a machine.

`cuts` chooses what is pruned, `sizing` how much is read, trained and measured; here the steps that an architecture has
no place for are left out, with the reason, and all is put into words.
"""

import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from compress import plugins
from compress.errors import HubUnavailable, InputError
from compress.machine import planned_machine
from compress.pipeline.cuts import Cuts, cuts, group_size, predicted, refusal
from compress.pipeline.sizing import VOCABULARY_TOKENS, scale
from compress.quantities import format_count
from compress.records import ModelSpec

BYTES_VOCABULARY = 259
TEXT_SUFFIXES = (".txt", ".md")
LINE = 110

Timed = Callable[[str], Mapping[str, float]]
"""Seconds of every node that a pipeline's text plans, by name."""


def scaffold(model: str, target: str = "50%", texts: Sequence[str] = (), timed: Timed | None = None) -> str:
    """Return the text of a pipeline for a checkpoint: a local folder, or a hub id whose configuration is fetched.

    target: parameters to keep, as ``50%``, ``4.0B`` or ``350M``. texts: files, or folders of them, to calibrate with,
    learn from and be measured on; without them the built-in demo world is. timed: what planning it says; without, the
    file does not say how long it takes. Raises `InputError` for a checkpoint, a target or texts that cannot work.
    """
    source, spec, has_tokenizer_json = _source(model)
    values = source | _steps(spec, cuts(spec, target, has_tokenizer_json))
    values |= {"texts": [_quoted(path) for path in _text_files(texts)], "times": None}
    text = _rendered(values)
    return text if timed is None else _rendered({**values, "times": _times(values, timed(text))})


def _rendered(values: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    template = files("compress.pipeline").joinpath("scaffold.yaml.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True)
    environment.filters |= {"count": format_count, "comment": _comment, "files": _files}
    return environment.from_string(template).render(values)


def _source(model: str) -> tuple[dict[str, Any], ModelSpec, bool]:
    """Return what the ``model:`` section says, the model, and whether its tokenizer can be rewritten."""
    folder = Path(model).expanduser()
    name = re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-")[:40] or "model"
    source = {"name": f"{name}-compressed", "id": None, "bytes_tokenizer": False, "was_asked": True}
    if not folder.exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        download = plugins.internal("models.download")
        config, was_asked = _looked_up(download, model)
        spec: ModelSpec = download.predict(None, config)
        return source | {"id": model, "family": spec.model_type, "was_asked": was_asked}, spec, True
    spec = plugins.internal("models.spec").read_spec(folder)
    place = {"path": _quoted(folder.absolute()), "bytes_tokenizer": _lacks_tokenizer(folder, spec)}
    return source | place, spec, (folder / "tokenizer.json").exists()


def _looked_up(download: Any, model: str) -> tuple[Any, bool]:
    """Return a checkpoint of the hub, or its published shape where that cannot be asked, and whether it was."""
    try:
        return download.resolve(model, "main"), True
    except HubUnavailable:
        shape = download.published(model)
        if shape is None:
            raise
        return download.assumed(model, shape), False


def _lacks_tokenizer(folder: Path, spec: ModelSpec) -> bool:
    if any((folder / file).exists() for file in ("tokenizer_config.json", "tokenizer.json")):
        return False
    vocabulary = int(spec.config.get("vocab_size", 0))
    if vocabulary < BYTES_VOCABULARY:
        raise InputError(
            f"{folder} has no tokenizer, and its vocabulary of {vocabulary} is too small for the built-in one "
            f"(a token a byte, {BYTES_VOCABULARY} in all): put tokenizer.json and tokenizer_config.json there"
        )
    return True


def _text_files(texts: Sequence[str]) -> list[Path]:
    """Return the files that are meant. Raises `InputError` for what is not there, or leaves nothing to hold out."""
    if not texts:
        return []
    data = plugins.internal("data.files")
    found: list[Path] = []
    for text in texts:
        place = Path(text).expanduser().absolute()
        inside = sorted(each for each in place.rglob("*") if each.suffix in TEXT_SUFFIXES and each.is_file())
        if place.is_dir() and not inside:
            raise InputError(f"--text {text}: no file in this folder ends in {' or '.join(TEXT_SUFFIXES)}")
        found += inside if place.is_dir() else [data.require_file(str(place))]
    source: Any = plugins.load("data.sources", "text")
    heldout = source.Config(paths=tuple(map(str, found)), split="heldout")
    if not list(islice(source.documents(heldout, 0), 1)):
        raise InputError(
            f"--text: fewer than {source.HELD_OUT_EVERY} texts, parted by blank lines, in {', '.join(texts)}: every "
            f"{source.HELD_OUT_EVERY}th is held out to measure with, so give more of them"
        )
    return found


def _steps(spec: ModelSpec, pruned: Cuts) -> dict[str, Any]:
    """Return all that the template says of models, steps and sizes."""
    student = pruned.student
    no_distill = refusal("distill", student, teacher="original", tokens=1_000_000)
    size = scale(spec, student, can_learn=no_distill is None)
    group = group_size(student)
    packed = predicted("quantize.rtn", student, bits=4, group_size=group) if group else student
    taken = {
        "vocabulary": pruned.vocabulary, "shorten": pruned.layers, "narrow": pruned.params,
        "recover": no_distill is None,
    }  # fmt: skip
    return {
        **asdict(pruned),
        **size.model_dump(),
        "on_card": planned_machine().card is not None,
        "before": spec.num_parameters,
        "after": student.num_parameters,
        "num_layers": plugins.internal("models.layout").layout(spec.config).num_layers,
        "num_tokens": spec.config.get("vocab_size"),
        "width_settings": "".join(f", {key}: {_flow(value)}" for key, value in pruned.width.items()),
        "last": next((name for name, is_taken in reversed(taken.items()) if is_taken), "original"),
        "is_encoder": not plugins.internal("models.task").writes(spec.config),
        "pool": max(size.tokens, VOCABULARY_TOKENS) if pruned.vocabulary else size.tokens,
        "student_group": group,
        "original_group": group if group and group_size(spec, student) == group else group_size(spec),
        "no_distill": no_distill,
        "no_integers": None if group else refusal("quantize.rtn", student, bits=4, group_size=16),
        "no_onnx": refusal("export.onnx", packed),
    }


def _times(values: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, str]:
    """Return how long all of it takes, its recovery, and one with enough tokens."""
    recovery = seconds.get("recover", 0.0)
    return {
        "total": _about(sum(seconds.values())),
        "recovery": _about(recovery),
        "enough": _about(recovery * values["enough"] / max(1, values["tokens"])),
    }


def _about(seconds: float) -> str:
    """Return a time as a person says it: ``20 min``, ``7 h``, ``13 days``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.0f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"


def _files(paths: Sequence[str]) -> str:
    """Return paths as a list in YAML, one a line where there are several."""
    return f"[{paths[0]}]" if len(paths) == 1 else "[\n    " + ",\n    ".join(paths) + "]"


def _comment(text: str, begin: str) -> str:
    """Return text as comment lines that begin so."""
    return textwrap.fill(" ".join(text.split()), LINE, initial_indent=begin, subsequent_indent=begin)


def _flow(value: object) -> str:
    """Return lists and mappings of plain words as YAML is usually written."""
    return json.dumps(value).replace('"', "")


def _quoted(path: Path) -> str:
    return str(path) if re.fullmatch(r"[\w./~-]+", str(path)) else json.dumps(str(path), ensure_ascii=False)
