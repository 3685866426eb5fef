"""Where a pipeline's checkpoints come from: the demo, a folder, the hub, a bare configuration.

The demo teacher is nothing special: its recipe (``compress/data/world/teacher.json``) becomes the same nodes a
user's own pipeline would have, a tokenizer, random weights and a `train` step, with a seed of its own, so that
every pipeline shares it. In a rehearsal every checkpoint is a tiny random model of its family.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import plugins
from compress.digests import folder_digest
from compress.errors import HubUnavailable, InputError, nearest
from compress.pipeline.schema import Evaluate, ModelSource, Profile
from compress.records import Artifact

if TYPE_CHECKING:
    from compress.pipeline.plan import Role
    from compress.pipeline.planner import Builder

REHEARSAL_LENGTH = 64
REHEARSAL_TASKS = ("world_facts",)
REHEARSAL_SAMPLES = 4
DEMO_SEED = 0


def add_original(builder: Builder, source: ModelSource) -> None:
    """Add the node ``original`` and what it is made from; tell the builder where the tokenizer is."""
    if source.kind == "demo" and not builder.rehearsal:
        _add_demo_teacher(builder)
    else:
        add_checkpoint(builder, "original", "original", source)


def add_checkpoint(builder: Builder, name: str, role: Role, source: ModelSource) -> None:
    """Add a checkpoint under a name: given where it lies on disk, downloaded, or freshly initialized."""
    if builder.rehearsal:
        tiny = plugins.load("models.families", _family(source)).TINY
        _add_random(builder, name, role, tiny, "F32", tokenizer="bytes")
    elif source.kind == "config":
        config = source.read_config()
        plugins.internal("models.soundness").check_config(config)
        _add_random(builder, name, role, config, source.dtype, source.tokenizer or "bytes")
    elif source.kind == "path":
        _add_folder(builder, name, role, source)
    else:
        found = _resolved(builder, source)
        builder.add(name, "models.download", found, role, content={"id": found.id, "commit": found.commit})


def rehearsal_evaluate(evaluate: Evaluate) -> Evaluate:
    """Return the evaluation with few items of one built-in task."""
    return Evaluate(
        tasks=REHEARSAL_TASKS, samples=REHEARSAL_SAMPLES, text=evaluate.text, prompts=evaluate.prompts[:1]
    )


def rehearsal_profile(profile: Profile) -> Profile:
    """Return the profile with one tiny shape."""
    return Profile(batch_sizes=(1,), prompt_tokens=(8,), new_tokens=4, repeats=2)


def _add_demo_teacher(builder: Builder) -> None:
    recipe = json.loads((Path(__file__).parents[1] / "data/world/teacher.json").read_text())
    builder.tokenizer = "demo/tokenizer"
    tokenizer = plugins.internal("data.tokenizer")
    vocabulary = recipe["config"]["vocab_size"]
    builder.add(
        "demo/tokenizer",
        "data.tokenizer",
        tokenizer.Config(vocabulary=vocabulary),
        "internal",
        seed=DEMO_SEED,
    )
    initialize = plugins.internal("train.initialize").Config(config=recipe["config"])
    builder.add(
        "demo/start", "train.initialize", initialize, "internal", parent="demo/tokenizer", seed=DEMO_SEED
    )
    train = plugins.internal("train").Config(data="demo/text", **recipe["train"])
    length = recipe["sequence_length"]
    pack = plugins.internal("data.pack").Config(
        source="demo", settings={"split": "train"}, sequence_length=length, tokens=train.tokens
    )
    source = plugins.load("data.sources", "demo")
    digest = source.digest(source.Config(), builder.memo)
    content = {"digest": digest, "sequence_length": length, "tokens": train.tokens}
    builder.add(
        "demo/text", "data.pack", pack, "internal", parent="demo/tokenizer", seed=DEMO_SEED, content=content
    )
    builder.add(
        "original",
        "train",
        train,
        "original",
        parent="demo/start",
        inputs={"data": "demo/text"},
        seed=DEMO_SEED,
    )


def _add_random(
    builder: Builder, name: str, role: Role, config: dict[str, Any], dtype: str, tokenizer: str | Path
) -> None:
    initialize = plugins.internal("train.initialize").Config(config=config, dtype=dtype)
    parent = _add_tokenizer(builder, name, tokenizer)
    seed = builder.pipeline.seed + (
        role == "baseline"
    )  # a rehearsed rival is another model than the original
    builder.add(name, "train.initialize", initialize, role, parent=parent, seed=seed)


def _add_folder(builder: Builder, name: str, role: Role, source: ModelSource) -> None:
    assert source.path is not None
    spec = plugins.internal("models.spec").read_spec(source.path)
    soundness = plugins.internal("models.soundness")
    soundness.check_checkpoint(source.path, spec)
    if str(source.tokenizer) not in ("demo", "bytes"):
        soundness.check_tokenizer_fits(Path(source.tokenizer or source.path), spec.config.get("vocab_size"))
    files = [
        p.name for p in source.path.iterdir() if p.suffix in (".safetensors", ".json", ".model", ".jinja")
    ] + _more_templates(source.path)
    key = folder_digest(source.path, files, builder.memo)
    found = Artifact(key=key, kind="hf", path=source.path.absolute(), spec=spec)
    if source.tokenizer is None:
        if not (source.path / "tokenizer_config.json").exists() and name == "original":
            raise InputError(
                f"{source.path} has no tokenizer: put its files there, or write `model: {{path: …, tokenizer: PATH}}`"
            )
        builder.give(name, role, found)
        return
    builder.give(f"{name}/checkpoint", "internal", found)
    tokenizer = _add_tokenizer(builder, name, source.tokenizer)
    adopt = plugins.internal("models.adopt").Config()
    builder.add(
        name, "models.adopt", adopt, role, parent=f"{name}/checkpoint", inputs={"tokenizer": tokenizer}
    )


def _resolved(builder: Builder, source: ModelSource) -> Any:
    """Return which checkpoint of the hub is meant, or its shape alone where that cannot be asked and need not be."""
    assert source.id is not None
    download = plugins.internal("models.download")
    try:
        return download.resolve(source.id, source.revision)
    except HubUnavailable as error:
        if not builder.assume:
            raise
        shape, whose = source.read_shape(), "as `shape` says it"
        if shape is None:
            shape, whose = download.published(source.id), "as published, a copy that comes with this package"
        if shape is None:
            raise InputError(
                f"{error}. To plan without the hub, add `shape:` to it: its config.json, or what that holds. "
                f"Known without: {', '.join(download.names_published())}"
            ) from error
        reason = str(error).partition(":")[0]
        builder.assumed.append(f"{source.id}: its shape is {whose} ({reason})")
        return download.assumed(source.id, shape)


def _add_tokenizer(builder: Builder, name: str, tokenizer: str | Path) -> str:
    """Add the node of a tokenizer: ``demo``, ``bytes``, or a folder. Return its name."""
    node = f"{name}/tokenizer"
    if str(tokenizer) in ("demo", "bytes"):
        config = plugins.internal("data.tokenizer").Config(kind=str(tokenizer))
        builder.add(node, "data.tokenizer", config, "internal", seed=DEMO_SEED)
        return node
    folder = Path(tokenizer)
    names = [
        p.name
        for p in folder.glob("*")
        if p.is_file() and ("token" in p.name or p.suffix in (".model", ".jinja"))
    ]
    if not names:
        raise InputError(f"{folder}: no tokenizer files there")
    key = folder_digest(folder, [*names, *_more_templates(folder)], builder.memo)
    builder.give(node, "internal", Artifact(key=key, kind="tokenizer", path=folder.absolute()))
    return node


def _more_templates(folder: Path) -> list[str]:
    """Return the chat templates beside the main one, which transformers keeps in a folder of their own."""
    return [str(path.relative_to(folder)) for path in folder.glob("additional_chat_templates/*.jinja")]


def _family(source: ModelSource) -> str:
    """Return the family a rehearsal stands in for, without the hub where the pipeline names it."""
    if source.family is not None or source.kind == "demo":
        return source.family or "llama"
    if source.kind == "path":
        assert source.path is not None
        return str(plugins.internal("models.spec").read_spec(source.path).model_type)
    if source.kind == "config":
        return str(source.read_config().get("model_type", "llama"))
    known = plugins.available("models.families")
    assert source.id is not None
    shape = source.read_shape() or plugins.internal("models.download").published(source.id) or {}
    if shape.get("model_type") in known:
        return str(shape["model_type"])
    guess = nearest(source.id.rpartition("/")[2].lower(), known)
    raise InputError(
        f"--test needs to know the family of '{source.id}' without asking the hub: "
        f"add `family:` to it{guess} Allowed: {', '.join(known)}"
    )
