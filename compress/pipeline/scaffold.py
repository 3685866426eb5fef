"""The commented pipeline that ``compress init`` writes: a good first recipe, sized to the checkpoint it is for.

Sizes are not guessed: the predictions that `plan` prints choose the shape and the quantization groups, so what is
written here can run. A model under 50M parameters gets settings for minutes on a laptop, a larger one for a GPU.
"""

import json
import re
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress import plugins
from compress.errors import HubUnavailable, InputError
from compress.pipeline.complaints import complaints
from compress.quantities import format_count
from compress.records import ModelSpec

SMALL_PARAMETERS = 50_000_000
"""Below this a laptop's CPU will do."""
SMALL_TRAINING_FLOPS = 3e13
"""About what two CPU cores do in five minutes."""
MANY_LAYERS = 16
"""From here on some layers go as well: fewer layers answer faster than narrower ones."""
DEPTH_SHARE = "85%"
BYTES_VOCABULARY = 259
GROUP_SIZES = (128, 64, 32, 16)


def scaffold(model: str, target: str = "50%") -> str:
    """Return the text of a pipeline for a checkpoint: a local folder, or a hub id whose configuration is fetched.

    target: parameters to keep, as ``50%``, ``4.0B`` or ``350M``. Raises `InputError` for a checkpoint or a target
    that cannot work.
    """
    from jinja2 import Environment, StrictUndefined

    source, spec = _source(model)
    template = files("compress.pipeline").joinpath("scaffold.yaml.jinja").read_text(encoding="utf-8")
    values = source | _pruning(spec, target) | _scale(spec)
    environment = Environment(undefined=StrictUndefined, trim_blocks=False, keep_trailing_newline=True)
    return environment.from_string(template).render(values)


def _source(model: str) -> tuple[dict[str, Any], ModelSpec]:
    """Return what the ``model:`` section says, and the model."""
    folder = Path(model).expanduser()
    name = re.sub(r"[^a-z0-9]+", "-", folder.absolute().name.lower()).strip("-")[:40] or "model"
    source = {"name": f"{name}-compressed", "id": None, "bytes_tokenizer": False, "was_asked": True}
    if not folder.exists() and re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        download = plugins.internal("models.download")
        config, was_asked = _looked_up(download, model)
        spec: ModelSpec = download.predict(None, config)
        return source | {"id": model, "family": spec.model_type, "was_asked": was_asked}, spec
    spec = plugins.internal("models.spec").read_spec(folder)
    return source | {
        "path": _quoted(folder.absolute()),
        "bytes_tokenizer": _lacks_tokenizer(folder, spec),
    }, spec


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


def _pruning(spec: ModelSpec, target: str) -> dict[str, Any]:
    """Return what the steps say: how many parameters stay, by which cuts, and in which groups they are quantized."""
    goal = _predicted("prune.width", spec, target={"params": target}).num_parameters
    has_depth = spec.config["num_hidden_layers"] >= MANY_LAYERS and goal < 0.8 * spec.num_parameters
    start = _predicted("prune.depth", spec, target={"params": DEPTH_SHARE}) if has_depth else spec
    wanted = format_count(goal) if has_depth else target
    settings, student, group = _student(start, wanted)
    return {
        "before": format_count(spec.num_parameters),
        "after": format_count(student.num_parameters),
        "share": f"{100 * student.num_parameters / spec.num_parameters:.0f}%",
        "goal": wanted,
        "depth": DEPTH_SHARE if has_depth else None,
        "width_settings": "".join(f", {key}: {_flow(value)}" for key, value in settings.items()),
        "student_group": group,
        "original_group": _group_size(spec),
    }


def _student(spec: ModelSpec, wanted: str) -> tuple[dict[str, Any], ModelSpec, int | None]:
    """Return settings that narrow a model, the result, and its group size: a way that has one where there is one."""
    plain = _predicted("prune.width", spec, target={"params": wanted})
    step = 16 if spec.num_parameters < SMALL_PARAMETERS else 64
    aligned = {"align": {"hidden": step, "ffn": step}}
    for settings in ({}, aligned, {**aligned, "axes": ["ffn", "hidden"]}):
        with suppress(InputError):  # other sizes than the plain way's may not reach the target
            student = _predicted("prune.width", spec, target={"params": wanted}, **settings)
            if size := _group_size(student):
                return settings, student, size
    return {}, plain, None


def _predicted(use: str, spec: ModelSpec, **settings: Any) -> ModelSpec:
    """Return what a step makes of a model. Raises `InputError` for settings it does not take."""
    step = plugins.step(use)
    try:
        config = step.Config.model_validate(settings)
    except ValidationError as error:
        raise InputError(
            "\n".join(said for _, said in complaints(error, step.Config, settings, use))
        ) from error
    return step.predict(spec, config)


def _group_size(spec: ModelSpec) -> int | None:
    """Return the largest group that divides every layer of a model, or `None`."""
    for size in GROUP_SIZES:
        try:
            _predicted("quantize.rtn", spec, bits=4, group_size=size)
        except InputError:
            continue
        return size
    return None


def _scale(spec: ModelSpec) -> dict[str, Any]:
    """Return the figures that follow from the model's size and the longest sequence it accepts."""
    parameters, is_small = spec.num_parameters, spec.num_parameters < SMALL_PARAMETERS
    positions = int(spec.config.get("max_position_embeddings") or 2048)
    # A trained token costs about 6 operations a parameter of the student (half) and 2 a parameter of the teacher.
    tokens = (
        min(2e6, SMALL_TRAINING_FLOPS / (5 * parameters)) if is_small else 50e6 if parameters < 1e9 else 100e6
    )
    length = min(positions, 128 if is_small else 2048)
    return {
        "length": length,
        "tokens": format_count(float(f"{tokens:.1g}")),
        "rate": "1e-3" if is_small else "1e-4",
        "calibration": 128 if is_small else 512,
        "items": 200 if is_small else 500,
        "batch_sizes": [1] if is_small else [1, 8],
        "prompt": min(length // 2, 64 if is_small else 512),
        "new": max(2, min(length // 4, 32 if is_small else 128)),
        "where": "minutes on a laptop" if is_small else "on a GPU that holds the model twice",
    }


def _flow(value: object) -> str:
    """Return lists and mappings of plain words as YAML is usually written."""
    return json.dumps(value).replace('"', "")


def _quoted(path: Path) -> str:
    return str(path) if re.fullmatch(r"[\w./~-]+", str(path)) else json.dumps(str(path), ensure_ascii=False)
