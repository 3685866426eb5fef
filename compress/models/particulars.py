"""What is particular about an architecture, found by trying: see `family.OPTIONAL` for what the names mean."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import isclose, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.errors import InputError
from compress.models.graph import meta_model
from compress.models.layout import Layout
from compress.models.narrowing import halved_heads
from compress.models.proof import small_model

MARKER = 0.0123
"""An epsilon no configuration has."""

Change = Callable[[Tensor], Tensor]
"""What is made of a module's output."""


@dataclass(frozen=True)
class Particulars:
    """The options of a family that its table does not say."""

    EPSILON: str | None
    NORM_OFFSET: float
    EMBEDDING_TIMES_SQRT_HIDDEN: bool
    RESIDUAL_ADDS: bool
    SKIPS_POSITIONS: bool


def particulars(layout: Layout, model: PreTrainedModel) -> Particulars:
    """Return the particulars of a small model. Raises `InputError` for one that no option describes."""
    norms = [model.get_submodule(layout.live(name)) for name in layout.norms]
    return Particulars(
        EPSILON=epsilon(layout),
        NORM_OFFSET=norm_offset(norms[0], layout.hidden) if norms else 0.0,
        EMBEDDING_TIMES_SQRT_HIDDEN=embedding_grows(layout, model),
        RESIDUAL_ADDS=residual_adds(layout, model),
        SKIPS_POSITIONS=skips_positions(layout, model),
    )


def epsilon(layout: Layout) -> str | None:
    """Return the setting that the norms over the hidden state have their epsilon from, if one has."""
    names = [key for key in layout.family.DEFAULTS if key.endswith(("eps", "epsilon"))]
    for name in names if layout.norms else ():
        model = meta_model(layout.config | {name: MARKER})
        if MARKER in vars(model.get_submodule(layout.live(layout.norms[0]))).values():
            return name
    return None


def norm_offset(norm: nn.Module, hidden: int) -> float:
    """Return what a norm adds to its weight: it is what is left of its output when the weight is zero."""
    norm = deepcopy(norm)
    x = torch.randn(4, hidden, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs = []
    with torch.no_grad():
        for value in (0.0, 1.0):
            for name, parameter in norm.named_parameters():
                parameter.fill_(value if name == "weight" else 0.0)
            outputs.append(norm(x))
    ratio = float((outputs[0] / outputs[1]).mean())
    if not torch.allclose(outputs[0], ratio * outputs[1], atol=1e-6):
        raise InputError(f"its norms, {type(norm).__name__}, do more than multiply by their weight")
    return round(ratio / (1 - ratio), 6)


def skips_positions(layout: Layout, model: PreTrainedModel) -> bool:
    """Whether positions are counted from behind the padding's id: their table has a row for padding then."""
    tables = [name for name, axes in layout.tensors.items() if axes == ("positions", "hidden")]
    modules = [model.get_submodule(name.removesuffix(".weight")) for name in tables]
    return any(getattr(module, "padding_idx", None) is not None for module in modules)


def embedding_grows(layout: Layout, model: PreTrainedModel) -> bool:
    """Whether the embeddings are multiplied by the square root of the hidden size."""
    half = (
        halved_heads(layout)
        if layout.heads_fill_hidden
        else layout.to_lengths({"hidden": layout.hidden // 2})
    )
    if half.hidden == layout.hidden or half.refusal is not None:
        raise InputError("how its embeddings depend on the hidden size cannot be tried")
    whole, narrow = embedding_factor(layout, model), embedding_factor(half, small_model(half))
    if whole is None or narrow is None or isclose(whole, narrow, rel_tol=1e-3):
        return False  # normed, or multiplied by what does not depend on the hidden size
    if isclose(whole / narrow, sqrt(layout.hidden / half.hidden), rel_tol=1e-3):
        return True
    raise InputError(
        f"its embeddings are multiplied by {narrow:.4g} and {whole:.4g} at {half.hidden} and {layout.hidden} channels"
    )


def embedding_factor(layout: Layout, model: PreTrainedModel) -> float | None:
    """Return what the first layer's input is times the embedding, ``None`` if it is no multiple."""
    tables = [
        p
        for name, p in model.named_parameters()
        if name in layout.tensors
        and layout.tensors[name][-1] == "hidden"
        and layout.tensors[name][0] in ("positions", "segments")
    ]
    with torch.no_grad():
        for table in tables:
            table.zero_()
    seen: list[Tensor] = []
    first = model.get_submodule(layout.layers[0])
    handle = first.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    try:
        ids = _ids(layout)
        with torch.no_grad():
            model(ids)
    finally:
        handle.remove()
    rows = model.get_parameter(layout.embedding).detach()[ids]
    factor = float((seen[0] * rows).sum() / rows.square().sum())
    return factor if torch.allclose(seen[0], factor * rows, rtol=1e-2, atol=1e-3) else None


def residual_adds(layout: Layout, model: PreTrainedModel) -> bool:
    """Whether what attention and MLP of a layer put out is added to the hidden state as it is.

    A layer that ends with a norm (BERT's) shows no step as large as was put in, but sees how large it was; a norm
    between output and sum does not let that through.
    """
    attention, mlp = layout.readers("query")[0], _mlp(layout)
    step = torch.randn(layout.hidden, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def adds(part: str, others: dict[str, Change]) -> bool:
        def output(change: Change) -> Tensor:
            return _layer_output(layout, model, others | {part: change})

        before, after = output(lambda out: out), output(lambda out: out + step)
        if torch.allclose(after - before, step.expand_as(before), atol=1e-4):
            return True
        is_bounded = bool(output(lambda out: out + 1e6 * step).abs().max() < 1e3)
        return is_bounded and not torch.allclose(output(lambda out: 2 * out), before, rtol=1e-2, atol=1e-3)

    return adds(mlp, {}) and adds(attention, {mlp: torch.zeros_like})


def _layer_output(layout: Layout, model: PreTrainedModel, changes: dict[str, Change]) -> Tensor:
    """Return the first layer's output when modules return something else than they would."""
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden

    with ExitStack() as stack, torch.no_grad():
        for name, change in {**changes, layout.layers[0]: keep}.items():
            stack.enter_context(_changed(model.get_submodule(layout.live(name)), change))
        model(_ids(layout))
    return seen[0]


def _mlp(layout: Layout) -> str:
    """Return the first layer's module whose output is its MLP's: the last projection, or the experts' block."""
    experts = [name for name in layout.tensors if ".experts." in name]
    return experts[0].partition(".experts.")[0] if experts else layout.readers("ffn")[0]


def _ids(layout: Layout) -> Tensor:
    return torch.randint(0, layout.vocab, (2, 9), generator=torch.Generator().manual_seed(1))


@contextmanager
def _changed(module: nn.Module, change: Change) -> Iterator[None]:
    """Change what a module returns; of several results the first."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
