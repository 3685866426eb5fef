import json
import re

import pytest

from compress import plugins
from compress.pipeline.json_schema import pipeline_schema
from compress.pipeline.source import read_source
from tests.pipeline.test_schema import BROKEN, HEAD, STEPS, fake_steps  # noqa: F401  replaces the steps

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def accepts(schema, value, root):
    """Whether a value fits: the part of JSON Schema that the pipeline's schema uses, written plainly."""
    if schema in (True, {}):
        return True
    if "$ref" in schema:
        return accepts(resolve(schema["$ref"], root), value, root)
    checks = [
        "const" not in schema or (schema["const"] == value and type(schema["const"]) is type(value)),
        "enum" not in schema or value in schema["enum"],
        "type" not in schema or has_type(schema["type"], value),
        "pattern" not in schema or not isinstance(value, str) or re.search(schema["pattern"], value),
        all(accepts(part, value, root) for part in schema.get("allOf", [])),
        "anyOf" not in schema or any(accepts(part, value, root) for part in schema["anyOf"]),
        "oneOf" not in schema or sum(accepts(part, value, root) for part in schema["oneOf"]) == 1,
    ]
    if "if" in schema:
        branch = "then" if accepts(schema["if"], value, root) else "else"
        checks.append(accepts(schema.get(branch, True), value, root))
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        checks += [key in value for key in schema.get("required", [])]
        checks += [accepts(known[key], item, root) for key, item in value.items() if key in known]
        checks += [rest and accepts(rest, item, root) for key, item in value.items() if key not in known]
    if isinstance(value, list):
        checks += [accepts(schema.get("items", True), item, root) for item in value]
        checks.append(len(value) >= schema.get("minItems", 0))
    if isinstance(value, int | float) and not isinstance(value, bool):
        checks.append(value >= schema.get("minimum", value))
        checks.append("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
    return all(checks)


def has_type(name, value):
    if name in ("integer", "number"):
        return isinstance(value, int if name == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def resolve(reference, root):
    for part in reference.removeprefix("#/").split("/"):
        root = root[part]
    return root


def parts(value):
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(part)


@pytest.fixture
def schema():
    return pipeline_schema()


def test_it_is_json_and_every_reference_leads_somewhere(schema):
    json.dumps(schema)
    for part in parts(schema):
        if isinstance(part.get("$ref"), str):
            assert isinstance(resolve(part["$ref"], schema), dict)


def test_a_good_file_fits(schema, tmp_path):
    rivals = "baselines: [{name: shelf, id: some/model}, {name: just4, use: quantize.rtn, bits: 4}]\n"
    data = "data: {heldout: {source: text, paths: [a.txt], sequence_length: 64, tokens: 1M}}\n"
    for text in (HEAD + STEPS, HEAD + rivals + data + STEPS, (HEAD + STEPS).replace("demo", "{path: ./m}")):
        (tmp_path / "a.yaml").write_text(text)
        assert accepts(schema, read_source(tmp_path / "a.yaml").data, schema)


@pytest.mark.parametrize(
    "file",
    ["unknown_key", "unknown_key_in_section", "unknown_key_in_step", "unknown_key_in_data", "misspelled_step",
     "unknown_source", "two_model_sources", "wrong_version", "missing_name", "text_for_number", "negative_number",
     "bad_choice", "bad_count", "missing_setting", "no_steps", "empty_steps", "baseline_of_nothing"],
)  # fmt: skip
def test_a_broken_file_does_not_fit(schema, file):
    assert not accepts(schema, read_source(BROKEN / f"{file}.yaml").data, schema)


def test_every_key_of_every_section_and_plugin_is_explained(schema):
    for definition in [schema, *schema["$defs"].values()]:
        for name, field in definition.get("properties", {}).items():
            explained = field.get("description") or resolve(field["$ref"], schema).get("description")
            assert explained, f"{definition.get('title')}: {name}"


def test_every_step_and_source_there_is_can_be_completed(schema):
    assert schema["properties"]["steps"]["items"]["properties"]["use"]["enum"] == plugins.step_names()
    names = schema["properties"]["data"]["additionalProperties"]["properties"]["source"]["enum"]
    assert names == plugins.available("data.sources")
