"""Timing single tokens of models that do not exist: the right shapes, random weights, a cache as long as asked.

What does not fit into memory as a whole is timed at two smaller depths, and the rest of its layers are added up:
every layer does the same work, and two depths tell a layer's time from that of what surrounds the layers.

On a GPU tokens come from CUDA graphs: eager steps would take as long as a processor takes to launch them, which is the
same for every width. Where no graph can be made and the GPU waits, no time is given at all.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from compress.backends.cuda_graph import CudaRecorder
from compress.backends.fixed_decoding import CannotRepeat, FixedDecoder, Record
from compress.environment import available_memory_bytes
from compress.errors import StepFailed
from compress.meters.launching import busy_ms, said
from compress.meters.timing import machine_lock, percentile
from compress.models.checkpoint import DTYPES
from compress.models.device import default_device
from compress.models.layerwise import empty_model
from compress.models.layout import Layout, layout
from compress.models.spec import stored_dtype
from compress.plugins import Context
from compress.prune.interface import Unit
from compress.prune.shapes import Shapes, shaped
from compress.records import DTYPE_BYTES, ModelSpec

ROUNDS = 7
TOKENS = 6
"""Tokens decoded in a round; its time is their mean, and a model's time the median round's."""

MEMORY_SHARE = 0.25
"""All models timed together take at most this share of the free memory."""

KINDS = ("layers", "attention", "mlp", "outside", "cache")


def shapes_to_time(spec: ModelSpec) -> list[Layout]:
    """Return the parent, two shallower ones, and the parent with half the units along each axis, and along all."""
    before = layout(spec.config)
    depths = sorted({before.num_layers, -(-before.num_layers // 2), -(-before.num_layers // 4)}, reverse=True)
    found = [before, *(before.with_layers(range(depth)) for depth in depths[1:])]
    narrow: dict[Unit, int] = {}
    for axis in before.width_axes:
        half = max(1, before.length(axis) // 2)
        narrow[axis] = half
        found += _possible(before, {axis: half})
    return found + _possible(before, narrow)


def time_models(spec: ModelSpec, models: Sequence[Layout], tokens: int, context: Context) -> list[float]:
    """Return the milliseconds one token takes each model, batch 1, after so many tokens, in the parent's dtype.

    Models take turns, round after round, under the machine-wide lock: what disturbs one disturbs all. Raises
    `StepFailed` on a GPU that waits for the processor: such a time says nothing about a shape.
    """
    record = _recorder()
    dtype = stored_dtype(spec)
    depths = [_depths(model, DTYPE_BYTES[dtype], len(models)) for model in models]
    with machine_lock(), torch.inference_mode():
        decoders = [
            [_Decoder(model.with_layers(range(depth)), DTYPES[dtype], tokens, record) for depth in at]
            for model, at in zip(models, depths, strict=True)
        ]
        for done in range(ROUNDS):
            for decoder in (one for several in decoders for one in several):
                decoder.round()
                if context.stopping:
                    context.stop()
            context.progress(done + 1, ROUNDS, "rounds")
        for decoder in (one for several in decoders for one in several):
            decoder.check_it_shows_the_device()
    return [
        _at_depth(model.num_layers, at, [decoder.milliseconds for decoder in several])
        for model, at, several in zip(models, depths, decoders, strict=True)
    ]


def fitted(reads: Sequence[Mapping[str, float]], milliseconds: Sequence[float]) -> dict[str, float]:
    """Return the coefficients, none negative, with the least relative errors; ``token`` is what every token takes."""
    rows = np.array([[1.0, *(read[kind] for kind in KINDS)] for read in reads])
    times = np.array(milliseconds)
    scale = rows.max(axis=0)
    scale[scale == 0] = 1.0
    solved, _ = nnls(rows / scale / times[:, None], np.ones(len(times)))
    return dict(zip(("token", *KINDS), (solved / scale).tolist(), strict=True))


class _Decoder:
    """A model with random weights that has read a context, and the times of its tokens."""

    def __init__(self, model: Layout, dtype: torch.dtype, tokens: int, record: Record | None) -> None:
        self._device = default_device()
        self._model = random_model(model, dtype, self._device)
        self._cache = DynamicCache(config=self._model.config)
        self._times: list[float] = []
        self._why_eager = ""
        ids = torch.randint(model.vocab, (1, tokens), generator=torch.Generator().manual_seed(0))
        self._next = self._step(ids.to(self._device))
        self._fixed = self._recorded(tokens, record) if record else None
        self._decode()  # warm

    @property
    def milliseconds(self) -> float:
        return percentile(self._times, 50)

    def round(self) -> None:
        started = time.perf_counter()
        for _ in range(TOKENS):
            self._decode()
        int(self._next)  # waits for the device
        self._times.append((time.perf_counter() - started) * 1e3 / TOKENS)

    def check_it_shows_the_device(self) -> None:
        """Raise `StepFailed` where the times are those of a processor that launches a GPU's work."""
        if not self._why_eager:
            return
        wall = self.milliseconds
        busy = busy_ms(self.round)
        if waits := said(None if busy is None else busy / TOKENS, wall):
            raise StepFailed(
                f"target latency: a token's time here is the processor's, the same for every shape ({waits}; no CUDA "
                f"graph: {self._why_eager}). Give another target: params, memory, flops"
            )

    def _decode(self) -> None:
        self._next = self._fixed.next() if self._fixed else self._step(self._next)

    def _recorded(self, tokens: int, record: Record) -> FixedDecoder | None:
        """Return what goes on from the cache by a CUDA graph; nothing, and why, where none can be made."""
        num_columns = tokens + 1 + ROUNDS * TOKENS
        try:
            fixed = FixedDecoder(self._model, self._cache, num_columns, record)
        except CannotRepeat as reason:
            self._why_eager = str(reason)
            return None
        fixed.fill(self._cache, torch.ones(1, tokens, dtype=torch.int64), self._next)
        self._cache = DynamicCache(config=self._model.config)  # frees what the fixed one has taken over
        return fixed

    def _step(self, ids: Tensor) -> Tensor:
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        chosen: Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
        return chosen


def random_model(model: Layout, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return a model of this shape with small random weights."""
    live = empty_model(model.config)
    for module in live.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                weight = torch.empty(parameter.shape, dtype=dtype, device=device).normal_(0, 0.02)
                module._parameters[name] = nn.Parameter(weight, requires_grad=False)
    live.tie_weights()
    return live.to(device)


def _recorder() -> Record | None:
    """Return what makes CUDA graphs, where there is a GPU."""
    return CudaRecorder(torch.device("cuda")) if default_device() == "cuda" else None


def _possible(before: Layout, lengths: Mapping[Unit, int]) -> list[Layout]:
    """Return the shape where transformers accepts it; where heads make up the hidden size, both halve together."""
    if before.heads_fill_hidden and lengths.keys() == {"hidden"}:
        return []
    if before.heads_fill_hidden and lengths.keys() & {"kv_groups", "heads"}:
        whole: dict[Unit, int] = {axis: before.length(axis) for axis in before.width_axes}
        whole.update(lengths)
        heads = whole["kv_groups"] * whole.get("heads", before.heads_per_group)
        lengths = {**lengths, "hidden": heads * before.head_dim}
    possible = len(Shapes(before, {axis: [length] for axis, length in lengths.items()})) == 1
    return [shaped(before, lengths)] if possible else []


def _depths(model: Layout, dtype_bytes: int, num_models: int) -> list[int]:
    """Return how many layers to build: all where they fit beside the other models, else two depths that do."""
    room = MEMORY_SHARE * _free_bytes() / num_models
    layer, outside = _layer_bytes(model, dtype_bytes)
    if outside + model.num_layers * layer <= room:
        return [model.num_layers]
    most = max(2, int((room / 2 - outside) / layer))
    return sorted({max(1, most // 2), min(most, model.num_layers)})


def _layer_bytes(model: Layout, dtype_bytes: int) -> tuple[int, int]:
    one, two = (replace(model, num_layers=n).num_parameters * dtype_bytes for n in (1, 2))
    return two - one, 2 * one - two


def _free_bytes() -> int:
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_memory_bytes()


def _at_depth(num_layers: int, depths: Sequence[int], milliseconds: Sequence[float]) -> float:
    """Return the time at the full depth from the times at one or two depths."""
    if len(depths) == 1:
        return milliseconds[0]
    each = max(0.0, (milliseconds[1] - milliseconds[0]) / (depths[1] - depths[0]))
    return milliseconds[1] + each * (num_layers - depths[1])
