"""bitsandbytes as a runtime: transformers with 8- or 4-bit linear layers."""

from compress.backends import huggingface
from compress.backends.interface import Backend, OpenOptions
from compress.models.rounded import quiet_int8
from compress.records import Artifact

KINDS = ("bitsandbytes",)


def open(artifact: Artifact, options: OpenOptions) -> Backend:
    """Return the artifact loaded with its own quantized layers."""
    quiet_int8()
    return huggingface.open(artifact, options)
