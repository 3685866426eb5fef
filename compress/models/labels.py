"""Labelling every place along every dimension of a traced model's parameters: its group, and its channel there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.models.dependencies import Graph, Members
from compress.models.family import Axis
from compress.models.tracing import Attention

AMBIGUOUS = -1
"""The label of a place that two groups (or two channels of one) want."""
UNLABELLED = -(1 << 20)
"""Labels from here down are of places no group has; they differ, so that a dimension can be told by them."""

CHANNELS = 1 << 32
"""A label is ``number of the root * CHANNELS + channel``."""


@dataclass(frozen=True)
class Root:
    """Where a group starts: one axis of one layer (or of the whole model), `size` channels long."""

    axis: Axis
    layer: int | None
    size: int
    role: str = ""


class Labels:
    """The labels of all parameters of a model, and the roots they speak of."""

    def __init__(self, graph: Graph, model: Any) -> None:
        self.graph, self.tracer, self.model = graph, graph.tracer, model
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.modules = {module: name for name, module in model.named_modules()}
        self.prefix = self._layer_prefix()
        self.head_dim = self.tracer.attentions[0].shapes["query"][-1]
        self.roots: list[Root] = []
        self.of = {p: [unlabelled(size) for size in p.shape] for p in self.names}
        self._norms = graph.used_as_they_are()
        self._hidden()
        for attention in self.tracer.attentions:
            self._attention(attention)
        self._inner()
        self._experts()
        self._by_size()

    def layer_of(self, name: str) -> int | None:
        """Return the number of the layer a parameter or module belongs to, ``None`` outside the layers."""
        return generalised(name + ".", self.prefix)[1]

    def _hidden(self) -> None:
        weight = self.model.get_input_embeddings().weight
        root = Root("hidden", None, weight.shape[1])
        self._group(root, self.graph.group(self.tracer.tables[weight]))
        # A tied output head reads the columns the embedding writes; an untied one behind a projection of its own
        # (an encoder's) is in a group of its own, for which there is no other setting than hidden_size.
        head = self.model.get_output_embeddings()
        mark = self.tracer.projections.get(head.weight) if head is not None else None
        if mark is not None and head.weight.shape[mark.in_dim] == root.size:
            self._group(root, self.graph.group(mark, out=False))

    def _attention(self, attention: Attention) -> None:
        if len(attention.head_sizes) > 1:
            return  # heads whose values are of another size than their queries: latent attention
        layer = self.layer_of(self.modules[attention.module])
        for role, mark in attention.marks.items():
            axis: Axis = "query" if role in ("query", "output") else "key_value"
            heads = attention.shapes["query" if axis == "query" else "key"][1]
            self._group(Root(axis, layer, heads * self.head_dim, role), self.graph.group(mark))

    def _inner(self) -> None:
        """What is left between two projections of a layer: the neurons of its MLP."""
        for parameter, projection in self.tracer.projections.items():
            labels = self.of[parameter][projection.in_dim]
            layer = self.layer_of(self.names[parameter])
            if layer is not None and bool((labels <= UNLABELLED).all()):
                axis: Axis = "expert_ffn" if parameter.dim() == 3 else "ffn"
                role = self.names[parameter]  # a layer with two such axes has two roots
                self._group(Root(axis, layer, len(labels), role), self.graph.group(projection, out=False))

    def _experts(self) -> None:
        for module, routers in self.tracer.routers.items():
            stacked = [p for p in module.parameters(recurse=False) if p in self.of]
            root = Root("experts", self.layer_of(self.modules[module]), stacked[0].shape[0])
            for parameter in stacked:
                self._whole(root, parameter, 0)
            for router in routers:
                self._whole(root, router.weight, router.out_dim)
                for bias in router.biases:
                    self._whole(root, bias, 0)

    def _by_size(self) -> None:
        """Name the dimensions no group is about: rows of tables by what they count, norms over one head."""
        head = self.model.get_output_embeddings()
        rows = {*self.tracer.tables, *(head.parameters() if head is not None else ())}
        counted = dict(_counted(self.model.config))
        for parameter, (first, *_) in self.of.items():
            axes = {self.roots[number].axis for number in (first // CHANNELS).tolist() if number >= 0}
            if parameter in rows and not axes and len(first) in counted:
                self._whole(Root(counted[len(first)], None, len(first)), parameter, 0)
            elif (
                parameter in self._norms
                and parameter.shape == (self.head_dim,)
                and axes <= {"query", "key_value"}
            ):
                self._whole(Root("head_dim", None, self.head_dim), parameter, 0)

    def _group(self, root: Root, members: Members) -> None:
        code = self._code(root)
        for parameter, dim, pairs in members:
            if parameter in self._norms and parameter.dim() > 1:
                continue  # which of its dimensions hold the channels cannot be told
            labels = self.of[parameter][dim]
            places, channels = torch.tensor([pair for pair in pairs if pair[0] < len(labels)]).unbind(1)
            fresh = code + channels
            known = labels[places]
            labels[places] = torch.where((known <= UNLABELLED) | (known == fresh), fresh, AMBIGUOUS)

    def _whole(self, root: Root, parameter: nn.Parameter, dim: int) -> None:
        self.of[parameter][dim] = self._code(root) + torch.arange(root.size)

    def _code(self, root: Root) -> int:
        if root not in self.roots:
            self.roots.append(root)
        return self.roots.index(root) * CHANNELS

    def _layer_prefix(self) -> str:
        name: str = self.modules[self.tracer.attentions[0].module]
        numbered = re.search(r"\.\d+(\.|$)", name)
        if numbered is None:
            raise ValueError(f"its attention, {name}, is in no numbered layer")
        return name[: numbered.start()]


def generalised(name: str, prefix: str) -> tuple[str, int | None]:
    """Return a tensor's name with ``{layer}`` and ``{expert}`` for its numbers, and the layer's number."""
    match = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name)
    if match is None:
        return name, None
    rest = re.sub(r"(?<=\.experts\.)\d+(?=\.)", "{expert}", name[match.end() :])
    return f"{prefix}.{{layer}}.{rest}", int(match[1])


def unlabelled(size: int) -> Tensor:
    return UNLABELLED - torch.arange(size)


def _counted(config: Any) -> Iterator[tuple[int, Axis]]:
    """What the rows of a table may count, by their number; of two that are equal the vocabulary."""
    yield getattr(config, "type_vocab_size", None) or 0, "segments"
    yield getattr(config, "max_position_embeddings", None) or 0, "positions"
    yield config.vocab_size, "vocab"
