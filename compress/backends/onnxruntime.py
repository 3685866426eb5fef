"""ONNX Runtime on the CPU, for the graph `export.onnx` writes.

One graph reads any number of tokens after any number of cached ones, so a long input is read a chunk at a time and
only a chunk's logits exist. The cache stays in the runtime's own buffers between calls.
"""

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from compress.backends.interface import Backend, Cache, OpenOptions, at_places
from compress.backends.positions import positions
from compress.backends.prefixes import PrefixedBatch
from compress.errors import InputError
from compress.models.spec import read_config
from compress.records import Artifact

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

KINDS = ("onnx",)
DEVICE = "cpu"
"""What exports are made for: the processor of whoever runs them, with its cache in the runtime's own buffers there."""

MODEL = "model.onnx"

PREFILL_CHUNK = 256
"""Prompt tokens read at once: bounds the logits a prompt needs without slowing its matrix products."""


def open(artifact: Artifact, options: OpenOptions) -> "OnnxRuntimeBackend":
    """Return the artifact's graph in a session. Raises `InputError` where onnxruntime is missing, and for a GPU."""
    if options.device not in ("auto", DEVICE):
        raise InputError(f"an ONNX export runs on the processor. Allowed for device: auto, {DEVICE}")
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("opening an ONNX model needs onnxruntime: pip install 'compress[onnx]'") from error
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = 3
    session_options.intra_op_num_threads = options.num_threads or 0
    session = onnxruntime.InferenceSession(
        artifact.path / MODEL, session_options, providers=["CPUExecutionProvider"]
    )
    config = read_config(artifact.path)
    return OnnxRuntimeBackend(session, config["vocab_size"], config["max_position_embeddings"])


class OnnxRuntimeBackend(Backend):
    """A decoder graph with its key-value cache as inputs and outputs."""

    fewest_positions = 64  # every call copies the cache
    shares_prefixes = True

    def __init__(self, session: "InferenceSession", vocabulary: int, num_positions: int) -> None:
        import onnxruntime

        self.session = session
        self.vocabulary = vocabulary
        self.num_positions = num_positions
        self.runtime = f"onnxruntime {onnxruntime.__version__}, cpu"
        self._to_runtime = onnxruntime.OrtValue.ortvalue_from_numpy
        self._past = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
        self._outputs = [output.name for output in session.get_outputs()]

    def logits_chunks(self, ids_BT: Tensor, mask_BT: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        for logits_BCV, _ in self._read(ids_BT, mask_BT, self._empty_cache(len(ids_BT)), chunk):
            yield logits_BCV

    def logits_after(
        self, batch: PrefixedBatch, rows_N: Tensor, columns_N: Tensor, chunk: int = 256
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The graph has its head in it: all positions pass through it, those of a prefix once."""
        cache = self._empty_cache(len(batch.prefix_ids))
        _, cache = _last(self._read(batch.prefix_ids, batch.prefix_mask, cache, chunk))
        prefix_B = batch.prefix_of_row.numpy()
        cache = {name: self._to_runtime(value.numpy()[prefix_B]) for name, value in cache.items()}
        read = self._read(batch.ids, batch.whole_mask(), cache, chunk)
        yield from at_places((logits_BCV for logits_BCV, _ in read), rows_N, columns_N)

    def prefill(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Cache]:
        logits_BCV, cache = _last(self._read(ids_BT, mask_BT, self._empty_cache(len(ids_BT)), PREFILL_CHUNK))
        return logits_BCV[:, -1], cache

    def decode(self, ids_B1: Tensor, mask_BS: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        logits_B1V, cache = self._run(ids_B1, mask_BS, cache)
        return logits_B1V[:, -1], cache

    def _read(
        self, ids_BT: Tensor, mask_BS: Tensor, cache: Cache, chunk: int
    ) -> Iterator[tuple[Tensor, Cache]]:
        """Yield logits of successive positions and the cache up to there; the mask covers past and new ones."""
        past = mask_BS.shape[1] - ids_BT.shape[1]
        for start in range(0, ids_BT.shape[1], chunk):
            stop = min(start + chunk, ids_BT.shape[1])
            logits_BCV, cache = self._run(ids_BT[:, start:stop], mask_BS[:, : past + stop], cache)
            yield logits_BCV, cache

    def _run(self, ids_BC: Tensor, mask_BS: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        position_ids_BC = positions(mask_BS)[:, -ids_BC.shape[1] :]
        feed = {
            "input_ids": self._to_runtime(ids_BC.numpy(force=True)),
            "attention_mask": self._to_runtime(mask_BS.long().numpy(force=True)),
            "position_ids": self._to_runtime(position_ids_BC.numpy(force=True)),
            **cache,
        }
        logits, *present = self.session.run_with_ort_values(self._outputs, feed)
        return torch.from_numpy(logits.numpy()), {
            past.name: value for past, value in zip(self._past, present, strict=True)
        }

    def _empty_cache(self, batch: int) -> Cache:
        return {
            past.name: self._to_runtime(np.zeros((batch, past.shape[1], 0, past.shape[3]), np.float32))
            for past in self._past
        }


def _last(read: Iterator[tuple[Tensor, Cache]]) -> tuple[Tensor, Cache]:
    return deque(read, maxlen=1).pop()
