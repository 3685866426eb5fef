"""safetensors files without torch: what they hold, checked against their size, written piecewise.

A file is eight bytes (length of the header, little-endian), a JSON header (name -> dtype, shape, byte range),
then the tensors' bytes. All about a checkpoint but its numbers is therefore known from a few kilobytes.
"""

import json
import struct
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from compress.errors import InputError
from compress.records import DTYPE_BYTES, TensorSpec

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

LARGEST_HEADER = 100_000_000
"""The format's own limit."""

Shards = dict[str, dict[str, TensorSpec]]
"""File name -> the tensors in it, in the order they are stored."""


def read_shards(folder: Path) -> Shards:
    """Return what the safetensors files of a checkpoint hold, from their headers.

    Raises `InputError` for missing, truncated or foreign files.
    """
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            raise InputError(_why_no_weights(folder))
        return {WEIGHTS: read_header(folder / WEIGHTS)}
    index = _read_index(folder / INDEX)
    names = sorted(set(index.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise InputError(
            f"{folder}: {len(missing)} of {len(names)} weight files are missing ({few(missing)})"
        )
    shards = {name: read_header(folder / name) for name in names}
    if absent := [tensor for tensor, name in index.items() if tensor not in shards[name]]:
        raise InputError(f"{folder / INDEX} names tensors its files do not hold ({few(absent)})")
    return shards


def read_header(path: Path) -> dict[str, TensorSpec]:
    """Return the tensors of one file in stored order. Raises `InputError` for a truncated or foreign file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= LARGEST_HEADER:
            raise InputError(f"{path} is no safetensors file; download or copy it again")
        text = file.read(length)
    expected = 8 + length
    if len(text) == length:
        entries = _parse_header(path, text)
        expected += max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if size < expected:
        raise InputError(
            f"{path} is truncated: {size:,} bytes where its header promises {expected:,}; copy it again"
        )
    return {
        name: TensorSpec(shape=tuple(entry["shape"]), dtype=entry["dtype"]) for name, entry in entries.items()
    }


def write_shards(folder: Path, shards: Shards, load: Callable[[str], bytes | memoryview]) -> None:
    """Write a checkpoint's weight files, holding one tensor in memory at a time.

    `load` returns the little-endian bytes of the tensor of that name, as its spec in `shards` says.
    """
    for name, tensors in shards.items():
        with (folder / name).open("wb") as file:
            file.write(_header(tensors))
            for tensor, spec in tensors.items():
                data = load(tensor)
                size = memoryview(data).nbytes
                assert size == spec.num_bytes, f"{tensor}: {size} bytes for {spec}"
                file.write(data)
    if list(shards) != [WEIGHTS]:
        weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
        total = sum(spec.num_bytes for tensors in shards.values() for spec in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(tensors: Mapping[str, TensorSpec]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in tensors.items():
        entries[name] = {
            "dtype": spec.dtype,
            "shape": spec.shape,
            "data_offsets": (offset, offset := offset + spec.num_bytes),
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        by_offset = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
        for name, entry in by_offset:
            _check_entry(path, name, entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} has no valid safetensors header; download or copy it again") from error
    return dict(by_offset)


def _check_entry(path: Path, name: str, entry: Mapping[str, Any]) -> None:
    if entry["dtype"] not in DTYPE_BYTES:
        allowed = ", ".join(DTYPE_BYTES)
        raise InputError(f"{path}: tensor '{name}' has dtype {entry['dtype']}; allowed: {allowed}")
    start, stop = entry["data_offsets"]
    if stop - start != prod(entry["shape"]) * DTYPE_BYTES[entry["dtype"]]:
        raise InputError(f"{path}: the bytes of tensor '{name}' do not match its shape; copy the file again")


def _read_index(path: Path) -> dict[str, str]:
    try:
        index: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = set(index.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no valid safetensors index; download or copy it again") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise InputError(f"{path} names files outside its folder ({few(outside)})")
    return index


def _why_no_weights(folder: Path) -> str:
    def holds(pattern: str) -> bool:
        return next(folder.glob(pattern), None) is not None

    if holds("pytorch_model*.bin") or holds("*.pth") or holds("*.pt"):
        return (
            f"{folder} holds its weights as pickles, which can run code when opened. If you trust them, "
            "convert them once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    if holds("*.gguf"):
        return f"{folder} holds a GGUF file; give the Hugging Face checkpoint it was made from"
    if holds("adapter_config.json"):
        return (
            f"{folder} holds only an adapter (LoRA); merge it into its model first and give the merged folder"
        )
    return f"{folder} holds no weights: neither {WEIGHTS} nor {INDEX} is there"


def few(names: list[str]) -> str:
    """Return up to three of the names, for a message."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
