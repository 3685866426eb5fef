"""The NVIDIA cards of this machine as their driver tells them, through NVML and ctypes alone.

No torch and no CUDA context: asking takes milliseconds, no memory of a card, and may be done before a fork. Functions
and structures are those of nvml.h; what an old driver does not have is left out.
"""

import ctypes
from collections.abc import Iterator
from ctypes import byref, c_char, c_uint, c_ulonglong, c_void_p
from typing import Any, NamedTuple

LIBRARIES = ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1")
"""The driver's library; under WSL2 it lies where the loader does not always look."""
SUCCESS = 0
TEXT_BYTES = 96
"""NVML_DEVICE_UUID_V2_BUFFER_SIZE and NVML_DEVICE_NAME_V2_BUFFER_SIZE."""
MIG_ENABLED = 1


class Seen(NamedTuple):
    """A card of this machine, or a part of one (MIG) that computes as a card of its own."""

    name: str
    memory_bytes: int | None = None
    """All it has, of which the driver keeps a little; ``None`` when nothing tells."""
    uuid: str | None = None
    is_part: bool = False
    """Whether it is a MIG instance. CUDA gives a process one of these at most."""


class NvmlError(Exception):
    """NVML is not there, or tells nothing; the message says which, in words."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


def seen_by_nvml() -> tuple[Seen, ...]:
    """Return all cards the driver has, in its own order (that of the PCI bus). Raises `NvmlError`."""
    library = _library()
    code = _call(library, "nvmlInit_v2")
    if code != SUCCESS:
        raise NvmlError(f"NVML does not start: {_reason(library, code)}")
    try:
        return tuple(_cards(library))
    finally:
        _call(library, "nvmlShutdown")


def _library() -> Any:
    reasons = []
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            reasons.append(str(error))
    raise NvmlError(f"NVML is not there ({reasons[0]})")


def _cards(library: Any) -> Iterator[Seen]:
    count = c_uint()
    code = _call(library, "nvmlDeviceGetCount_v2", byref(count))
    if code != SUCCESS:
        raise NvmlError(f"NVML does not count the cards: {_reason(library, code)}")
    for index in range(count.value):
        handle = c_void_p()
        # One that has fallen off its bus, or is not this container's, is no card of ours.
        if _call(library, "nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(handle)) == SUCCESS:
            parts = tuple(_parts(library, handle))
            yield from parts or (_card(library, handle),)


def _parts(library: Any, handle: c_void_p) -> Iterator[Seen]:
    """Yield a card's MIG instances; nothing where it has none."""
    current, pending, most = c_uint(), c_uint(), c_uint()
    code = _call(library, "nvmlDeviceGetMigMode", handle, byref(current), byref(pending))
    if code != SUCCESS or current.value != MIG_ENABLED:
        return
    _call(library, "nvmlDeviceGetMaxMigDeviceCount", handle, byref(most))
    for index in range(most.value):
        part = c_void_p()
        if (
            _call(library, "nvmlDeviceGetMigDeviceHandleByIndex", handle, c_uint(index), byref(part))
            == SUCCESS
        ):
            yield _card(library, part)._replace(is_part=True)


def _card(library: Any, handle: c_void_p) -> Seen:
    memory = _Memory()
    told = _call(library, "nvmlDeviceGetMemoryInfo", handle, byref(memory)) == SUCCESS
    return Seen(
        name=_text(library, "nvmlDeviceGetName", handle) or "NVIDIA card",
        memory_bytes=memory.total if told else None,
        uuid=_text(library, "nvmlDeviceGetUUID", handle),
    )


def _text(library: Any, function: str, handle: c_void_p) -> str | None:
    buffer = (c_char * TEXT_BYTES)()
    code = _call(library, function, handle, buffer, c_uint(TEXT_BYTES))
    return buffer.value.decode("utf-8", "replace") if code == SUCCESS else None


def _reason(library: Any, code: int) -> str:
    try:
        function = library.nvmlErrorString
    except AttributeError:
        return f"error {code}"
    function.restype = ctypes.c_char_p
    return f"{(function(code) or b'').decode('utf-8', 'replace')} (error {code})"


def _call(library: Any, function: str, *arguments: Any) -> int:
    """Call a function of the library; a driver that lacks it answers NVML_ERROR_FUNCTION_NOT_FOUND, 13."""
    try:
        found = getattr(library, function)
    except AttributeError:
        return 13
    found.restype = ctypes.c_int
    return int(found(*arguments))
