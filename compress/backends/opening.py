"""From an artifact to its runtime: the backend file whose `KINDS` lists the artifact's kind."""

from typing import cast

from compress import plugins
from compress.backends.interface import Backend, BackendModule, OpenOptions
from compress.errors import InputError
from compress.models.device import default_device
from compress.records import Artifact


def backend_modules() -> dict[str, BackendModule]:
    """Return every backend of the package and its plugins, by name."""
    modules = {name: plugins.load("backends", name) for name in plugins.available("backends")}
    return {name: cast(BackendModule, module) for name, module in modules.items() if hasattr(module, "KINDS")}


def open_artifact(artifact: Artifact, options: OpenOptions | None = None) -> Backend:
    """Return the artifact opened in the runtime of its kind. Raises `InputError` when no runtime opens it."""
    return _module(artifact).open(artifact, options or OpenOptions())


def device_of(artifact: Artifact) -> str:
    """Return the device that the artifact's runtime computes on unless told otherwise: ``cpu`` or ``cuda``.

    Raises `InputError` when no runtime opens it.
    """
    return getattr(_module(artifact), "DEVICE", None) or default_device()


def _module(artifact: Artifact) -> BackendModule:
    by_kind = {kind: module for module in backend_modules().values() for kind in module.KINDS}
    if artifact.kind not in by_kind:
        allowed = ", ".join(sorted(by_kind))
        raise InputError(f"no runtime opens an artifact of kind '{artifact.kind}'. Allowed: {allowed}")
    return by_kind[artifact.kind]
