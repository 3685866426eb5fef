"""Transformers as a runtime: what plain `from_pretrained` loads.

A `packed` artifact keeps its integers on disk only: transformers has no integer kernels for it on CPUs and expands
the weights when they are first used, so its speed here is a float model's. Its own runtime is the ONNX export.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from compress.backends.interface import Backend, Cache, Encoder, OpenOptions
from compress.backends.positions import positions
from compress.models.checkpoint import load_model
from compress.models.device import default_device
from compress.models.layout import is_encoder, layout
from compress.models.spec import read_config
from compress.records import Artifact

KINDS = ("hf", "packed")


def open(artifact: Artifact, options: OpenOptions) -> Backend:
    """Return the artifact loaded in its stored dtype. Sets the process's thread count when asked to."""
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    device = default_device() if options.device == "auto" else options.device
    model = load_model(artifact.path, device=device)
    config = read_config(artifact.path)
    if is_encoder(config):
        return HuggingFaceEncoder(model, layout(config).longest)
    return HuggingFaceBackend(model)


class HuggingFaceBackend(Backend):
    """A causal language model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.vocabulary: int = model.config.vocab_size
        self.num_positions: int = model.config.max_position_embeddings
        self.runtime = _runtime(model)
        # Packed weights are expanded by a hook on the whole model, not on its body: run it once.
        self.prefill(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64))

    def logits_chunks(self, ids_BT: Tensor, mask_BT: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        mask_BT = mask_BT.to(self.device)
        where = {"attention_mask": mask_BT, "position_ids": positions(mask_BT), "use_cache": False}
        return _logits_chunks(self.model, ids_BT.to(self.device), chunk, where)

    def prefill(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Cache]:
        return self._step(ids_BT, mask_BT, DynamicCache(config=self.model.config))

    def decode(self, ids_B1: Tensor, mask_BS: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        return self._step(ids_B1, mask_BS, cache)

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
    """A masked language model."""

    def __init__(self, model: PreTrainedModel, longest: int) -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.vocabulary: int = model.config.vocab_size
        self.num_positions = longest
        self.runtime = _runtime(model)
        with torch.inference_mode():  # expands packed weights
            self.model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.device))

    def logits_chunks(self, ids_BT: Tensor, mask_BT: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        where = {"attention_mask": mask_BT.to(self.device)}
        return _logits_chunks(self.model, ids_BT.to(self.device), chunk, where)

    @torch.inference_mode()
    def encode(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        states_BTH: Tensor = self.model.base_model(
            input_ids=ids_BT.to(self.device), attention_mask=mask_BT.to(self.device)
        ).last_hidden_state
        return states_BTH


@torch.inference_mode()
def _logits_chunks(
    model: PreTrainedModel, ids_BT: Tensor, chunk: int, where: dict[str, Any]
) -> Iterator[Tensor]:
    """Yield logits of successive positions: the body runs once, what follows it (head, soft-capping) on each chunk."""
    output = model.base_model(input_ids=ids_BT, **where)
    hidden_BTH: Tensor = output.last_hidden_state
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
