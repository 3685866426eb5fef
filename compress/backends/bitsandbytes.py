"""bitsandbytes as a runtime: transformers with 8- or 4-bit linear layers.

Its 8-bit layers log at every call that they compute in fp16, which no caller can change: that one line is dropped.
"""

import logging

from compress.backends import huggingface
from compress.backends.interface import Backend, OpenOptions
from compress.records import Artifact

KINDS = ("bitsandbytes",)


def open(artifact: Artifact, options: OpenOptions) -> Backend:
    """Return the artifact loaded with its own quantized layers."""
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_says_more_than_the_cast)
    return huggingface.open(artifact, options)


def _says_more_than_the_cast(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("MatMul8bitLt: inputs will be cast")
