"""What training holds in memory when it holds most, item by item, from settings and shapes alone.

A step has two such moments, and the larger counts: when the loss makes the output layer's gradient, beside everything
that waits for the backward pass; and in the backward pass of a layer. From the second micro-batch on there are
gradients beside both. What the optimizer adds in its own step is less than that. Where activations are recomputed,
layers keep their inputs, and one layer's activations are there at a time. Where they are not, each layer keeps its
bf16 weights, too: autograd multiplies by the same copies that autocast has made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compress.models.layout import is_known, layout
from compress.records import MemoryItem, ModelSpec, TensorSpec
from compress.train.activations import Activations, activations
from compress.train.adapters import linear_layers
from compress.train.settings import TrainingSettings
from compress.train.sharding import DIVIDED, Sharding

WEIGHT_BYTES = 4
"""A parameter, trained or not: the student is fp32. A gradient, too."""
EMBEDDING_NAMES = "embed", "wte", "wpe"
MOMENT_BYTES = {"adamw": 8.0, "adamw_8bit": 2 + 8 / 256, "adamw_bf16": 4.0}
"""A trained parameter's two moments. In 8 bits each block of 256 has two scales in fp32; embeddings have none in 8."""
ROUNDED_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
"""A weight of the teacher's linear layers: nf4 has a scale in fp32 for each 64, int8 one for each row."""
CPU_GROUP, CUDA_GROUP = 192 * 2**20, 512 * 2**20
"""Of a group of logits in the fused loss (`compress.train.fused.GROUP_BYTES`)."""
CPU_TILE, CUDA_TILE = 2 * 2**20, 128 * 2**20
"""Of a tile's fp32 logits (`compress.train.fused.TILE_BYTES`)."""
TILE_TENSORS = 6
"""Of a tile's size that a loss computes with, where no kernel judges whole rows."""
CPU_PROCESS = 500 * 2**20
"""Python with torch and transformers, before any model."""
CUDA_CONTEXT = 600 * 10**6
"""What the driver and the kernels take of a card, in each process."""
TEAM_BUFFERS = 10**9
"""Of NCCL, on each card of a team."""
LOST_BETWEEN = 0.04
"""Of what is allocated on a card: lost between blocks, with segments that can grow."""


@dataclass(frozen=True)
class Teaching:
    """The teacher beside the student, and how it is kept."""

    spec: ModelSpec
    precision: Literal["auto", "bf16", "fp32", "int8", "nf4"] = "auto"
    device: str = "auto"
    """``auto``: beside the student."""

    def is_beside(self, on_processor: bool = False) -> bool:
        """Whether its layers are in the memory that the student is in: a processor's is one, whatever is named."""
        return on_processor or self.device in ("auto", "cuda", "cuda:0")

    def has_its_head_beside(self, on_processor: bool = False) -> bool:
        """Whether its output layer is there, also with its layers in host memory."""
        return self.is_beside(on_processor) or self.device == "offload"

    @property
    def card(self) -> int | None:
        """The number of the card that the settings name; ``None`` where they name none."""
        name, _, number = self.device.partition(":")
        return int(number or 0) if name == "cuda" else None


@dataclass(frozen=True)
class Conditions:
    """What an account depends on besides models and settings."""

    sequence_length: int
    micro_batch: int
    recompute: bool
    in_bf16: bool
    on_processor: bool
    devices: int = 1
    """How many work together."""
    sharding: Sharding = DIVIDED
    """How models are divided among them."""

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.sequence_length

    @property
    def shards(self) -> int:
        """Into how many parts what is divided is divided."""
        return self.devices // self.sharding.num_replicas


def account(
    spec: ModelSpec,
    settings: TrainingSettings,
    num_trained: int,
    teaching: Teaching | None,
    conditions: Conditions,
) -> tuple[MemoryItem, ...]:
    """Return what each device holds at the peak of a step. Their sum is the peak."""
    held = _state(spec, settings, num_trained, teaching, conditions)
    held += _gathered(spec, settings, num_trained, teaching, conditions)
    held += waiting(spec, conditions)
    moments = at_the_loss(spec, settings, teaching, conditions), in_a_layer(spec, conditions)
    items = [item for item in (*held, *max(moments, key=total)) if item.num_bytes]
    return (*items, *process(items, settings, conditions))


def teacher_account(teaching: Teaching, conditions: Conditions) -> tuple[MemoryItem, ...]:
    """Return what a card holds that the teacher's layers run on, and nothing else."""
    spec, c = teaching.spec, conditions
    kept = activations(spec.config, c.in_bf16, c.sequence_length, c.on_processor)
    items = [
        MemoryItem(name="teacher's weights", num_bytes=teacher_bytes(teaching, c.in_bf16)),
        MemoryItem(name="one of its layers at work", num_bytes=c.tokens * (kept.layer + kept.inputs)),
    ]
    return (*items, *_context(items, 0))


def total(items: Sequence[MemoryItem]) -> int:
    """Return the sum of an account."""
    return sum(item.num_bytes for item in items)


def moment_bytes(spec: ModelSpec, settings: TrainingSettings, num_trained: int) -> int:
    """Return what the optimizer keeps of the trained parameters."""
    looked_up = sum(tensor.num_elements for name, tensor in spec.tensors.items() if _is_embedding(name))
    in_fp32 = looked_up if settings.optimizer == "adamw_8bit" and settings.lora is None else 0
    return round(8 * in_fp32 + MOMENT_BYTES[settings.optimizer] * (num_trained - in_fp32))


def teacher_bytes(teaching: Teaching, in_bf16: bool) -> int:
    """Return what the teacher's weights take in the precision they are kept in."""
    spec, precision = teaching.spec, teaching.precision
    if precision in ROUNDED_BYTES and is_known(spec.config):
        rounded = linear_layers(spec)
        inside = sum(rows * columns for rows, columns in rounded.values())
        scales = 4 * sum(shape[0] for shape in rounded.values()) if precision == "int8" else 0
        others = (2 if in_bf16 else 4) * (spec.num_parameters - inside)
        return round(ROUNDED_BYTES[precision] * inside) + scales + others
    if precision == "fp32" or (precision == "auto" and not in_bf16):
        return 4 * spec.num_parameters
    return 2 * spec.num_parameters if precision == "bf16" else spec.weight_bytes


def outside_layers(spec: ModelSpec) -> list[TensorSpec]:
    """Return the tensors outside the layers: embeddings, the last norm and the head."""
    return [tensor for name, tensor in spec.tensors.items() if not _is_in_a_layer(name)]


def _state(
    spec: ModelSpec,
    settings: TrainingSettings,
    num_trained: int,
    teaching: Teaching | None,
    conditions: Conditions,
) -> list[MemoryItem]:
    """Return what is there between steps, shared out among the devices, with the gradients."""
    adapters = 0 if settings.lora is None else num_trained
    held = {
        "student's weights (fp32)": WEIGHT_BYTES * (spec.num_parameters + adapters),
        "gradients (fp32)": WEIGHT_BYTES * num_trained,
        f"optimizer's moments ({settings.optimizer})": moment_bytes(spec, settings, num_trained),
    }
    if teaching is not None and teaching.is_beside(conditions.on_processor):
        whole = conditions.shards if _is_whole(teaching, conditions) else 1
        kept = "" if teaching.precision == "auto" else f", {teaching.precision}"
        held[f"teacher's weights{kept}"] = whole * teacher_bytes(teaching, conditions.in_bf16)
    elif teaching is not None and teaching.device == "offload":
        held["teacher's embedding, head and two of its layers"] = _offloaded_bytes(
            teaching, conditions.in_bf16
        )
    return [MemoryItem(name=name, num_bytes=num // conditions.shards) for name, num in held.items()]


def _is_whole(teaching: Teaching, conditions: Conditions) -> bool:
    """Whether each process holds all of the teacher."""
    return conditions.sharding.whole_teacher or teaching.precision in ROUNDED_BYTES


def _offloaded_bytes(teaching: Teaching, in_bf16: bool) -> int:
    """Return what is on the device of a teacher whose layers come there in turn."""
    share = teacher_bytes(teaching, in_bf16) / teaching.spec.num_parameters
    outside = sum(tensor.num_elements for tensor in outside_layers(teaching.spec))
    return round(share * (outside + 2 * _layer_parameters(teaching.spec)))


def _gathered(
    spec: ModelSpec,
    settings: TrainingSettings,
    num_trained: int,
    teaching: Teaching | None,
    conditions: Conditions,
) -> list[MemoryItem]:
    """Return what a process of a team holds whole at a time: what is outside the layers, and the layer in use."""
    if conditions.devices == 1:
        return []
    width = 2 if conditions.in_bf16 else 4
    outside = sum(tensor.num_elements for tensor in outside_layers(spec))
    layer = _layer_parameters(spec)
    found = {
        "embedding and head gathered, with gradients": 2 * WEIGHT_BYTES * outside,
        "layers gathered: one in use, one on its way, a gradient in fp32": (2 * width + 4) * layer,
    }
    if conditions.sharding.reduces_once:
        # Outside the layers they are whole in any case; adapters are inside.
        learning = num_trained - outside if settings.lora is None else num_trained
        found["a step's gradients, divided only at its end"] = WEIGHT_BYTES * learning
    if teaching is not None and not _is_whole(teaching, conditions):
        shared = 1 - 1 / conditions.shards
        theirs = sum(tensor.num_bytes for tensor in outside_layers(teaching.spec))
        found["teacher's embedding and head"] = round(shared * theirs)
    return [MemoryItem(name=name, num_bytes=num) for name, num in found.items()]


def waiting(spec: ModelSpec, conditions: Conditions) -> list[MemoryItem]:
    """Return what the forward pass keeps for the backward pass."""
    kept = _activations(spec, conditions)
    if conditions.recompute:
        return [
            MemoryItem(
                name="layers' inputs, kept to recompute the rest",
                num_bytes=conditions.tokens * (kept.inputs + kept.outside),
            )
        ]
    inside = sum(
        t.num_elements for name, t in spec.tensors.items() if _is_in_a_layer(name) and len(t.shape) > 1
    )
    copies = 2 * inside if conditions.in_bf16 and conditions.devices == 1 else 0
    return [
        MemoryItem(name="activations", num_bytes=conditions.tokens * (kept.layers + kept.outside)),
        MemoryItem(name="bf16 copies of the layers' weights", num_bytes=copies),
    ]


def at_the_loss(
    spec: ModelSpec, settings: TrainingSettings, teaching: Teaching | None, conditions: Conditions
) -> list[MemoryItem]:
    """Return what the fused loss holds of the output layer."""
    vocabulary, hidden = _head_shape(spec)
    tokens = conditions.tokens
    width = 2 if conditions.in_bf16 else 4
    head = vocabulary * hidden
    models = 1 if teaching is None else 2
    row = vocabulary * (2 if conditions.in_bf16 and conditions.on_processor else 4)
    group = CPU_GROUP if conditions.on_processor else CUDA_GROUP
    rows = min(tokens, max(128, group // row))
    logits = rows * row * models
    if not conditions.on_processor:
        logits += rows * vocabulary * 2
    logits += TILE_TENSORS * min(CPU_TILE if conditions.on_processor else CUDA_TILE, 4 * rows * vocabulary)
    theirs = 0 if teaching is None else width * _head_shape(teaching.spec)[1]
    copies = width * head if conditions.in_bf16 else 0
    if teaching is not None and not teaching.has_its_head_beside(conditions.on_processor):
        copies += width * vocabulary * _head_shape(teaching.spec)[1]
    learns = settings.lora is None
    return [
        MemoryItem(name="head's copies in bf16", num_bytes=copies),
        MemoryItem(name="head's gradient of a micro-batch", num_bytes=WEIGHT_BYTES * head if learns else 0),
        MemoryItem(name="logits of a group, with slopes", num_bytes=logits),
        MemoryItem(
            name="hidden states before the head, with gradients",
            num_bytes=tokens * ((8 + width) * hidden + theirs),
        ),
    ]


def in_a_layer(spec: ModelSpec, conditions: Conditions) -> list[MemoryItem]:
    """Return what the backward pass of a layer holds beside what waits for it."""
    kept = _activations(spec, conditions)
    layer = _layer_parameters(spec)
    copies = 2 * layer if conditions.in_bf16 and conditions.devices == 1 else 0
    items = [
        MemoryItem(name="gradients inside a layer", num_bytes=conditions.tokens * kept.layer // 3 + 3 * layer)
    ]
    if conditions.recompute:
        recomputed = conditions.tokens * kept.layer + copies
        items.append(MemoryItem(name="one layer, recomputed", num_bytes=recomputed))
    return items


def process(
    items: Sequence[MemoryItem], settings: TrainingSettings, conditions: Conditions
) -> list[MemoryItem]:
    """Return what is there however small the model."""
    if conditions.on_processor:
        return [MemoryItem(name="process", num_bytes=CPU_PROCESS)]
    return _context(items, TEAM_BUFFERS if settings.launch is not None else 0)


def _context(items: Sequence[MemoryItem], buffers: int) -> list[MemoryItem]:
    lost = round(LOST_BETWEEN * total(items))
    return [
        MemoryItem(name="CUDA context and buffers", num_bytes=CUDA_CONTEXT + buffers),
        MemoryItem(name=f"lost between blocks ({LOST_BETWEEN:.0%})", num_bytes=lost),
    ]


def _activations(spec: ModelSpec, conditions: Conditions) -> Activations:
    c = conditions
    return activations(spec.config, c.in_bf16, c.sequence_length, c.on_processor)


def _head_shape(spec: ModelSpec) -> tuple[int, int]:
    """Return the shape of the output layer: ids, and the size of hidden states."""
    if is_known(spec.config):
        model = layout(spec.config)
        return model.vocab, model.hidden
    matrices = [tensor.shape for tensor in outside_layers(spec) if len(tensor.shape) == 2]
    rows, columns = max(matrices, default=(0, 0))
    return rows, columns


def _layer_parameters(spec: ModelSpec) -> int:
    """Return how many parameters the largest layer has, near enough: they are alike."""
    inside = sum(tensor.num_elements for name, tensor in spec.tensors.items() if _is_in_a_layer(name))
    layers = _num_layers(spec)
    return -(-inside // layers) if layers else 0


def _num_layers(spec: ModelSpec) -> int:
    names = (name.split(".") for name in spec.tensors)
    return len(
        {next(part for part in parts if part.isdigit()) for parts in names if any(map(str.isdigit, parts))}
    )


def _is_in_a_layer(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _is_embedding(name: str) -> bool:
    known = any(part in name for part in EMBEDDING_NAMES)
    return known and not _is_in_a_layer(name) and "embed_out" not in name
