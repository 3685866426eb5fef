"""The pipeline file described for editors: completion, hover texts and red lines while typing.

Everything comes from the models that validate: a key that is documented there is documented here, and a new
plugin file is in the schema at once. What `use` (or `source`) says decides which settings may stand
beside it, as one `if`/`then` for every plugin, each of them closed against unknown keys.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from compress import plugins
from compress.pipeline.sections import ChainShape, DataShape, Document, ModelSource, StepEntry, StepShape

Schema = dict[str, Any]


def pipeline_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of the pipeline file with every plugin there is."""
    schema = Document.model_json_schema(by_alias=True)
    definitions, properties = schema.setdefault("$defs", {}), schema["properties"]
    definitions["ModelSource"] = {"anyOf": [{"const": "demo"}, _one_source(definitions["ModelSource"])]}
    steps = {name: plugins.step(name) for name in plugins.step_names()}
    sources = {name: plugins.load("data.sources", name) for name in plugins.available("data.sources")}
    definitions |= {f"step.{name}": _step(name, module) for name, module in steps.items()}
    definitions |= {f"source.{name}": _source(name, module) for name, module in sources.items()}
    definitions |= {f"link.{name}": _link(name, module) for name, module in steps.items()}
    definitions["checkpoint"], definitions["chain"] = _checkpoint(), _chain(list(steps))
    step = _choice("use", "step", list(steps), ["name", "use"])
    properties["steps"]["items"] = step
    properties["baselines"]["items"] = {
        "if": {"required": ["steps"]},
        "then": {"$ref": "#/$defs/chain"},
        "else": {"if": {"required": ["use"]}, "then": step, "else": {"$ref": "#/$defs/checkpoint"}},
    }
    data = _choice("source", "source", list(sources), ["source", "sequence_length"])
    properties["data"]["additionalProperties"] = data
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Pipeline of compress",
    }


def _choice(key: str, what: str, names: Sequence[str], required: Sequence[str]) -> Schema:
    """Return the schema of a mapping whose `key` names the definition that all of it follows."""
    branches = [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"$ref": f"#/$defs/{what}.{name}"},
        }
        for name in names
    ]
    return {
        "type": "object",
        "properties": {key: {"enum": [*names]}},
        "required": [*required],
        "allOf": branches,
    }


def _step(name: str, module: Any) -> Schema:
    about = {field: StepEntry.model_fields[field].description for field in ("name", "use", "parent")}
    own = {
        "name": {"type": "string", "description": about["name"]},
        "use": {"const": name, "description": _summary(module) or about["use"]},
        "from": {"type": "string", "description": about["parent"]},
        **_plain(StepShape, f"step.{name}")["properties"],
    }
    return _closed(f"step.{name}", module, own, ["name", "use"])


def _link(name: str, module: Any) -> Schema:
    """Return the schema of a step of a chain: it has no name, and starts from the one before."""
    about = _summary(module) or StepEntry.model_fields["use"].description
    return _closed(f"link.{name}", module, {"use": {"const": name, "description": about}}, ["use"])


def _chain(steps: Sequence[str]) -> Schema:
    """Return the schema of a baseline of several steps."""
    schema = _plain(ChainShape, "chain")
    schema["properties"]["steps"]["items"] = _choice("use", "link", steps, ["use"])
    schema["properties"] |= {
        "name": {"type": "string", "description": "What the rival is called."},
        "from": {"type": "string", "description": StepEntry.model_fields["parent"].description},
    }
    return {**schema, "required": ["name", "steps"]}


def _source(name: str, module: Any) -> Schema:
    shape = _plain(DataShape, f"source.{name}")
    shape["properties"]["source"] = {"const": name, "description": _summary(module)}
    return _closed(f"source.{name}", module, shape["properties"], shape["required"])


def _checkpoint() -> Schema:
    """Return the schema of a baseline that is another checkpoint."""
    schema = _one_source(_plain(ModelSource, "checkpoint"))
    schema["properties"] = {"name": {"type": "string", "description": "What the rival is called."}} | schema[
        "properties"
    ]
    return {**schema, "required": ["name"]}


def _closed(definition: str, module: Any, own: Mapping[str, Any], required: Sequence[str]) -> Schema:
    """Return a plugin's settings together with the keys that every plugin has."""
    settings = _plain(module.Config, definition)
    return {
        **settings,
        "title": definition.replace(".", " ", 1),
        "description": _summary(module),
        "properties": {**own, **settings.get("properties", {})},
        "required": [*required, *settings.get("required", [])],
        "additionalProperties": False,
    }


def _plain(model: type[BaseModel], definition: str) -> Schema:
    """Return a model's schema for a place under ``$defs``: what it refers to lies inside it."""
    inside = f"#/$defs/{definition}/$defs/{{model}}"
    return model.model_json_schema(by_alias=True, ref_template=inside)


def _one_source(schema: Schema) -> Schema:
    """Return the schema of a model's place with the rule that it is exactly one."""
    return {**schema, "oneOf": [{"required": [key]} for key in ("path", "id", "config")]}


def _summary(module: Any) -> str:
    return (module.__doc__ or "").strip().partition("\n\n")[0].replace("\n", " ")
