"""Transformers as a runtime: what plain `from_pretrained` loads.

A `packed` artifact keeps its integers on disk only: transformers has no integer kernels for it on CPUs and expands
the weights when they are first used, so its speed here is a float model's. Its own runtime is the ONNX export.
"""

from collections.abc import Iterator

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from compress.backends.interface import Backend, Cache, OpenOptions
from compress.backends.positions import positions
from compress.errors import InputError
from compress.models.checkpoint import load_model
from compress.models.device import default_device
from compress.records import Artifact

KINDS = ("hf", "packed")


def open(artifact: Artifact, options: OpenOptions) -> "HuggingFaceBackend":
    """Return the artifact loaded in its stored dtype. Sets the process's thread count when asked to."""
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    device = default_device() if options.device == "auto" else options.device
    return HuggingFaceBackend(load_model(artifact.path, device=device))


class HuggingFaceBackend(Backend):
    """A causal language model whose head is applied a chunk at a time to hidden states computed once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.vocabulary: int = model.config.vocab_size
        self.num_positions: int = model.config.max_position_embeddings
        dtype = str(model.dtype).removeprefix("torch.")
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.runtime = f"{versions}, {dtype}, {self.device}"
        self._check_head()

    @torch.inference_mode()
    def logits_chunks(self, ids_BT: Tensor, mask_BT: Tensor, chunk: int = 256) -> Iterator[Tensor]:
        mask_BT = mask_BT.to(self.device)
        hidden_BTD = self.model.base_model(
            input_ids=ids_BT.to(self.device),
            attention_mask=mask_BT,
            position_ids=positions(mask_BT),
            use_cache=False,
        ).last_hidden_state
        head = self.model.get_output_embeddings()
        for hidden_BCD in hidden_BTD.split(chunk, dim=1):
            yield head(hidden_BCD).float()

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

    def _check_head(self) -> None:
        """Refuse an architecture that changes its logits after the head (soft-capping, scaling)."""
        # Low ids are often padding, whose embedding, and so every logit, may be zero: take a spread of them.
        ids_BT = torch.linspace(0, self.vocabulary - 1, 8).long()[None]
        mask_BT = torch.ones_like(ids_BT)
        # The whole model first: packed weights are expanded by a hook on it, not on its backbone.
        last_BV, _ = self.prefill(ids_BT, mask_BT)
        (chunk_BCV,) = self.logits_chunks(ids_BT, mask_BT)
        if not torch.allclose(chunk_BCV[:, -1], last_BV, rtol=0.05, atol=0.05):
            kind = self.model.config.model_type
            raise InputError(
                f"'{kind}' transforms its logits after the output head: it cannot be measured here"
            )
