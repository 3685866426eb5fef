"""What a checkpoint folder is, without loading it: configuration and safetensors headers, checked.

Whatever is wrong with a checkpoint is said here, before any work, in words that tell what to do about it.
"""

import filecmp
import json
import shutil
from pathlib import Path

from compress.errors import InputError
from compress.models.family import option
from compress.models.layout import Config, Layout, is_known, layout
from compress.models.shards import few, read_shards
from compress.records import ModelSpec, TensorSpec

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "token_map.json",
)
"""Patterns of the files a tokenizer may consist of."""

FLOATS = ("F64", "F32", "F16", "BF16")


def read_spec(folder: Path) -> ModelSpec:
    """Return what the model in a Hugging Face folder is: its configuration and every stored tensor.

    `num_parameters` follows the family's table where there is one, so packed integers count as the weights
    they hold. Raises `InputError` for a folder that is no complete safetensors checkpoint.
    """
    config = read_config(folder)
    tensors = {name: spec for shard in read_shards(folder).values() for name, spec in shard.items()}
    if not is_known(config):
        total = sum(tensor.num_elements for tensor in tensors.values())
        return ModelSpec(config=config, tensors=tensors, num_parameters=total)
    if "quantization_config" not in config:
        _check_tensors(folder, config, tensors)
    return ModelSpec(config=config, tensors=tensors, num_parameters=layout(config).num_parameters)


def read_config(folder: Path) -> Config:
    """Return ``config.json`` of a checkpoint folder. Raises `InputError` for a missing or broken one."""
    if not folder.is_dir():
        hint = "; a GGUF file is no Hugging Face checkpoint folder" if folder.suffix == ".gguf" else ""
        problem = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"the checkpoint {folder} {problem}{hint}")
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is no Hugging Face checkpoint: it has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object")
    return config


def stored_dtype(spec: ModelSpec) -> str:
    """Return the float dtype most of the weights have (``BF16``)."""
    totals = dict.fromkeys(FLOATS, 0)
    for tensor in spec.tensors.values():
        if tensor.dtype in totals:
            totals[tensor.dtype] += tensor.num_elements
    return max(totals, key=lambda dtype: totals[dtype])


def has_same_tokenizer(first: Path, second: Path) -> bool:
    """Whether two folders hold the same tokenizer: the same files, byte for byte, for models of the same type."""
    names, others = ({path.relative_to(each) for path in _tokenizer_files(each)} for each in (first, second))
    return (
        names == others
        and _model_type(first) == _model_type(second)
        and all(filecmp.cmp(first / name, second / name, shallow=False) for name in names)
    )


def _model_type(folder: Path) -> object:
    """Return what decides a tokenizer's class where its own files do not say."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from one folder to another."""
    for file in _tokenizer_files(source):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)


def _tokenizer_files(folder: Path) -> list[Path]:
    found = (path for pattern in TOKENIZER_FILES for path in sorted(folder.glob(pattern)))
    return [path for path in found if path.is_file()]


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Raise `InputError` unless `folder` has a tokenizer whose every id has a row in the embedding."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(
            f"{folder} has no tokenizer.json. Make it once with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    largest = _largest_id(path)
    if largest >= vocab_size:
        raise InputError(
            f"the tokenizer in {folder} does not fit the model: its largest id is {largest}, "
            f"and the model has {vocab_size} embeddings"
        )


def _largest_id(path: Path) -> int:
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        vocab = tokenizer["model"]["vocab"]
        # Unigram models list their pieces in the order of the ids.
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        added = (token["id"] for token in tokenizer.get("added_tokens") or ())
        return max(max(ids, default=-1), max(added, default=-1))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no valid tokenizer file") from error


def _check_tensors(folder: Path, config: Config, tensors: dict[str, TensorSpec]) -> None:
    """Compare the stored tensors with those the configuration implies."""
    model = layout(config)
    expected = model.shapes()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected and not _is_redundant(name, model)]
    wrong = [
        f"{name} is {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    integers = [name for name in expected if name in tensors and tensors[name].dtype not in FLOATS]
    for problem, names in (
        ("lacks tensors its config.json implies", missing),
        ("has tensors its config.json does not imply", unexpected),
        ("has tensors of another shape than its config.json implies", wrong),
        (f"has weights that are not floating point ({', '.join(FLOATS)})", integers),
    ):
        if names:
            hint = _other_names(model) if unexpected and names is not wrong else ""
            raise InputError(f"{folder} {problem}: {few(names)}{hint}")


def _other_names(model: Layout) -> str:
    auto = "AutoModelForMaskedLM" if option(model.family, "ENCODER") else "AutoModelForCausalLM"
    return (
        ". If transformers can load it, its names are those of an older version or of another task: load and save it "
        f"once, with transformers' {auto}.from_pretrained(folder).save_pretrained(new_folder)"
    )


def _is_redundant(name: str, model: Layout) -> bool:
    """Tensors old exporters stored though they follow from others: rotary tables, masks, the copy of a tied head."""
    row = model.family.TENSORS.get(name)
    copied = row is not None and row.unless == "tie_word_embeddings" and model.tied
    return copied or name.endswith(("rotary_emb.inv_freq", *option(model.family, "REDUNDANT")))
