"""Transformers as a runtime: what plain `from_pretrained` loads.

A `packed` artifact keeps its integers on disk only: transformers has no integer kernels for it on CPUs and expands
the weights when they are first used, so its speed here is a float model's. Its own runtime is the ONNX export.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from compress.backends.cuda_graph import CudaRecorder
from compress.backends.fixed_decoding import MASKS, CannotRepeat, FixedDecoder, Record
from compress.backends.interface import Backend, Cache, Encoder, OpenOptions
from compress.backends.positions import positions
from compress.backends.prefixes import PrefixedBatch
from compress.errors import InputError
from compress.models.checkpoint import DTYPES, load_model
from compress.models.device import default_device, fast_dtype
from compress.models.spec import read_config, read_spec, stored_dtype
from compress.models.task import in_words, writes
from compress.records import Artifact

KINDS = ("hf", "packed")


def open(artifact: Artifact, options: OpenOptions) -> Backend:
    """Return the artifact loaded in its stored dtype, or a wider one if `widened` says so.

    Sets the process's thread count when asked to.
    """
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    device = default_device() if options.device == "auto" else options.device
    stored = DTYPES[stored_dtype(read_spec(artifact.path))]
    dtype = fast_dtype(stored, torch.device(device).type) if options.widened else stored
    model = load_model(artifact.path, dtype=dtype, device=device)
    config = read_config(artifact.path)
    return HuggingFaceBackend(model) if writes(config) else HuggingFaceEncoder(model, in_words(config))


class HuggingFaceBackend(Backend):
    """A causal language model. On a GPU, once prepared, it decodes by CUDA graphs, as servers do."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.vocabulary: int = model.config.vocab_size
        self.num_positions: int = model.config.max_position_embeddings
        self.runtime = _runtime(model)
        self.on_cuda = self.device.type == "cuda"
        self._record: Record | None = CudaRecorder(self.device) if self.on_cuda else None
        self._prepared: dict[tuple[int, int], FixedDecoder | str] = {}
        # Packed weights are expanded by a hook on the whole model, not on its body: run it once.
        _, cache = self.prefill(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64))
        self.shares_prefixes = _shares_prefixes(model, cache)

    def logits_chunks(self, ids_BT: Tensor, mask_BT: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        mask_BT = mask_BT.to(self.device)
        where = {"attention_mask": mask_BT, "position_ids": positions(mask_BT), "use_cache": False}
        return _logits_chunks(self.model, ids_BT.to(self.device), chunk, where)

    @torch.inference_mode()
    def last_states(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        mask_BT = mask_BT.to(self.device)
        where = {"attention_mask": mask_BT, "position_ids": positions(mask_BT), "use_cache": False}
        states_BTH: Tensor = self.model.base_model(
            input_ids=ids_BT.to(self.device), **where
        ).last_hidden_state
        return states_BTH

    def logits_of(self, states_BTH: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        return _logits_of(self.model, states_BTH.to(self.device), chunk)

    def logits_at(
        self, ids_BT: Tensor, mask_BT: Tensor, rows_N: Tensor, columns_N: Tensor, chunk: int = 256
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Only the places asked for pass through the head."""
        mask_BT = mask_BT.to(self.device)
        where = {"attention_mask": mask_BT, "position_ids": positions(mask_BT), "use_cache": False}
        yield from self._logits_of_places(ids_BT, rows_N, columns_N, chunk, where)

    def logits_after(
        self, batch: PrefixedBatch, rows_N: Tensor, columns_N: Tensor, chunk: int = 256
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Only the places asked for pass through the head, on every device."""
        mask_BS = batch.whole_mask().to(self.device)
        where = {
            "attention_mask": mask_BS,
            "position_ids": positions(mask_BS)[:, -batch.ids.shape[1] :],
            "past_key_values": self._read_prefixes(batch),
            "use_cache": True,
        }
        yield from self._logits_of_places(batch.ids, rows_N, columns_N, chunk, where)

    @torch.inference_mode()
    def _read_prefixes(self, batch: PrefixedBatch) -> DynamicCache:
        """Return every row's keys and values of its prefix."""
        mask_GP = batch.prefix_mask.to(self.device)
        cache = DynamicCache(config=self.model.config)
        self.model.base_model(
            input_ids=batch.prefix_ids.to(self.device),
            attention_mask=mask_GP,
            position_ids=positions(mask_GP),
            past_key_values=cache,
            use_cache=True,
        )
        cache.reorder_cache(batch.prefix_of_row)  # an index of its rows: they may be repeated
        return cache

    def _logits_of_places(
        self, ids_BT: Tensor, rows_N: Tensor, columns_N: Tensor, chunk: int, where: dict[str, Any]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        places = rows_N.to(self.device), columns_N.to(self.device)
        size = chunk * len(ids_BT)
        chunks = _logits_chunks(self.model, ids_BT.to(self.device), size, where, places)
        for number, logits_1MV in enumerate(chunks):
            start = number * size
            yield torch.arange(start, start + logits_1MV.shape[1]), logits_1MV[0]

    def prefill(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Cache]:
        return self._step(ids_BT, mask_BT, DynamicCache(config=self.model.config))

    def decode(self, ids_B1: Tensor, mask_BS: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        return self._step(ids_B1, mask_BS, cache)

    def prepare(self, batch_size: int, num_positions: int) -> str:
        if self._record is None:
            return ""
        size = (batch_size, num_positions)
        if size not in self._prepared:
            self._prepared[size] = self._fixed_decoder(*size, self._record)
        prepared = self._prepared[size]
        return f"eager: {prepared}" if isinstance(prepared, str) else "CUDA graph"

    def greedy(self, ids_BT: Tensor, mask_BT: Tensor, new_tokens: int) -> Iterator[Tensor]:
        prepared = self._prepared.get((len(ids_BT), ids_BT.shape[1] + new_tokens))
        if not isinstance(prepared, FixedDecoder):
            yield from super().greedy(ids_BT, mask_BT, new_tokens)
            return
        logits_BV, cache = self.prefill(ids_BT, mask_BT)
        next_B1 = logits_BV.argmax(-1, keepdim=True)
        yield next_B1.cpu()
        prepared.fill(cache, mask_BT, next_B1)
        for _ in range(new_tokens - 1):
            yield prepared.next().to("cpu", copy=True)  # the buffer is overwritten by the next

    def _fixed_decoder(self, batch_size: int, num_positions: int, record: Record) -> FixedDecoder | str:
        """Return what repeats a recorded step, or why none can be recorded."""
        if getattr(self.model, "is_loaded_in_8bit", False):
            return "bitsandbytes looks for outliers of its 8-bit layers on the processor"
        one_B1 = torch.ones(batch_size, 1, dtype=torch.int64)
        try:
            return FixedDecoder(self.model, self.prefill(one_B1, one_B1)[1], num_positions, record)
        except CannotRepeat as reason:
            return str(reason)
        except torch.OutOfMemoryError:
            return "memory is too small for a cache of fixed size"

    @torch.inference_mode()
    def _step(self, ids_BT: Tensor, mask_BS: Tensor, cache: DynamicCache) -> tuple[Tensor, Cache]:
        mask_BS = mask_BS.to(self.device)
        output = self.model(
            input_ids=ids_BT.to(self.device),
            attention_mask=mask_BS,
            position_ids=positions(mask_BS)[:, -ids_BT.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float(), output.past_key_values


class HuggingFaceEncoder(Encoder):
    """A masked language model; or a classifier or a body without a head, which has no logits of tokens."""

    def __init__(self, model: PreTrainedModel, what: str = "a masked language model") -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.vocabulary: int = model.config.vocab_size
        self.num_positions = _longest(model)
        self.what = what
        self.runtime = _runtime(model)
        self.on_cuda = self.device.type == "cuda"
        with torch.inference_mode():  # expands packed weights
            self.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.device))

    def logits_chunks(self, ids_BT: Tensor, mask_BT: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        if self.model.get_output_embeddings() is None:
            raise InputError(f"this model is {self.what}: it predicts no tokens")
        where = {"attention_mask": mask_BT.to(self.device)}
        return _logits_chunks(self.model, ids_BT.to(self.device), chunk, where)

    def last_states(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return self.encode(ids_BT, mask_BT)

    def logits_of(self, states_BTH: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        return _logits_of(self.model, states_BTH.to(self.device), chunk)

    @torch.inference_mode()
    def encode(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        states_BTH: Tensor = self.model.base_model(
            input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device)
        ).last_hidden_state
        return states_BTH


def _shares_prefixes(model: PreTrainedModel, cache: Any) -> bool:
    """Return whether rows can go on from one's keys and values as if each had been read whole.

    Not where a cache holds states that are no keys and values, or layers that use others'; where positions are not
    told but counted by column; where the rotation of early tokens depends on how many follow; where rounding depends
    on the rest of the batch; where attention has kernels whose masks are not known here.
    """
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or [])
    ropes = {str(getattr(module, "rope_type", "")) for module in model.modules()}
    return (
        len(cache.layers) == config.num_hidden_layers
        and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
        and kinds <= {"full_attention", "sliding_attention"}
        and config._attn_implementation in MASKS
        and "position_ids" in inspect.signature(model.base_model.forward).parameters
        and not any("dynamic" in rope or "longrope" in rope for rope in ropes)
        and not getattr(model, "is_loaded_in_8bit", False)
    )


def _longest(model: PreTrainedModel) -> int:
    """Return how many tokens an encoder reads: RoBERTa counts positions from behind the padding's id."""
    tables = (module for name, module in model.named_modules() if name.endswith("position_embeddings"))
    skipped = [
        padding + 1 for table in tables if (padding := getattr(table, "padding_idx", None)) is not None
    ]
    return int(model.config.max_position_embeddings) - max(skipped, default=0)


@torch.inference_mode()
def _logits_chunks(
    model: PreTrainedModel,
    ids_BT: Tensor,
    chunk: int,
    where: dict[str, Any],
    places: tuple[Tensor, Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yield logits of successive positions: the body runs once, what follows it (head, soft-capping) on each chunk.

    With N `places` (rows, columns) they are those of one sequence ``[1, N]``.
    """
    output = model.base_model(input_ids=ids_BT, **where)
    hidden_BTH: Tensor = output.last_hidden_state
    if places:
        hidden_BTH, ids_BT = hidden_BTH[places][None], ids_BT[places][None]
    yield from _head(model, output, hidden_BTH, ids_BT, chunk)


@torch.inference_mode()
def _logits_of(model: PreTrainedModel, states_BTH: Tensor, chunk: int) -> Iterator[Tensor]:
    """Yield logits of successive positions, given what the body made of them."""
    ids_BT = torch.zeros(states_BTH.shape[:2], dtype=torch.int64, device=states_BTH.device)
    output = model.base_model(input_ids=ids_BT[:1, :1])  # the form of its answer: the states are put into it
    yield from _head(model, output, states_BTH, ids_BT, chunk)


def _head(
    model: PreTrainedModel, output: Any, hidden_BTH: Tensor, ids_BT: Tensor, chunk: int
) -> Iterator[Tensor]:
    for start in range(0, ids_BT.shape[1], chunk):
        output.last_hidden_state = hidden_BTH[:, start : start + chunk]
        with _answering(model.base_model, output):
            logits_BCV: Tensor = model(input_ids=ids_BT[:, start : start + chunk]).logits
        yield logits_BCV.float()


@contextmanager
def _answering(body: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return what it returned before."""
    body.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del body.forward  # the class's own again


def _runtime(model: PreTrainedModel) -> str:
    dtype = str(model.dtype).removeprefix("torch.")
    return f"transformers {transformers.__version__}, torch {torch.__version__}, {dtype}, {model.device}"
