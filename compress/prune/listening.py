"""How strongly the model listens to what a linear map is given.

A linear map ``y = W x`` is summed up by two matrices over its inputs: how they move, ``G = E[x xᵀ]``, and how much is
made of them, ``V = Wᵀ W``. The energy a set S of inputs adds to the output is ``Σ_{i,j∈S} G_ij V_ij``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.prune.calibration import Calibration, LayerPass
from compress.prune.experts import expert_calls, experts_module
from compress.prune.parts import reading_maps


@dataclass
class Listening:
    """Sums of ``x xᵀ`` and of ``Wᵀ W``: whole ``[C, C]``, or within blocks of neighbours ``[C / w, w, w]``."""

    gram: Tensor
    sensitivity: Tensor

    def energy(self) -> Tensor:
        """Return what each block adds to the output, fp64 on the CPU: ``[C / w]``; of whole matrices, each input."""
        both = self.gram.double() * self.sensitivity.double()
        return (both.sum((1, 2)) if both.dim() == 3 else both.diagonal()).cpu()


@dataclass
class Heard:
    """What was seen in one layer; ``None`` where a layer has no such part."""

    number: int
    ffn: Listening | None
    attention: Listening
    expert_energy: Tensor | None
    expert_ffn_energy: Tensor | None


class HiddenEnergy:
    """What each hidden channel adds to the outputs of all maps that read it, each map weighing as much as any other.

    Every map's energies are taken as shares of its whole.
    """

    def __init__(self, width: int) -> None:
        self.energy_C = torch.zeros(width, dtype=torch.float64)

    def add(self, squares: Tensor, weight_OI: Tensor) -> None:
        """Add one map, given the mean squares of its inputs as blocks of one, ``[C, 1, 1]``."""
        energy_C = Listening(squares, _sensitivity(weight_OI, 1)).energy()
        self.energy_C += energy_C / energy_C.sum().clamp_min(1e-30)


def listen(calibration: Calibration, hidden: HiddenEnergy, *, whole: bool) -> Iterator[Heard]:
    """Carry the text through the model; yield what was seen in each layer and add to `hidden` what reads it.

    `whole`: gather the whole Gram matrices of what writing maps read, not only those within heads and neurons.
    """
    layout = calibration.layout
    for layer in calibration.layers():
        readers = reading_maps(layout, layer.number)
        modules = [n.removesuffix(".weight") for n in readers if layout.expert_of(n) is None]
        grams = Grams(calibration.num_tokens)
        (out,) = layer.inside(layout.readers("query"))
        down = layer.inside(layout.readers("ffn"))
        width = layout.head_dim
        widths = {**dict.fromkeys(layer.inside(modules), 1), out: 0 if whole else width}
        widths |= dict.fromkeys(down, 0 if whole else 1)
        experts = ExpertEnergies(layer, calibration.num_tokens)
        watched = [*widths, *([experts.name] if experts.name else [])]

        def record(
            name: str,
            given: tuple[Any, ...],
            _: Tensor,
            grams: Any = grams,
            widths: Any = widths,
            experts: Any = experts,
        ) -> None:
            if name == experts.name:
                experts.add(given)
            else:
                grams.add(name, given[0], widths[name])

        layer.run(watched, record)
        for name in readers:
            module = name.removesuffix(".weight").removeprefix(layer.prefix)
            gram = grams[module] if module in widths else grams[router_of(layer, readers)]
            hidden.add(gram, _oriented(calibration, name))
        stored = {name: f"{layer.prefix}{name}.weight" for name in (out, *down)}
        sensitivity = {n: _sensitivity(_oriented(calibration, stored[n]), widths[n]) for n in stored}
        yield Heard(
            number=layer.number,
            ffn=Listening(grams.take(down[0]), sensitivity.pop(down[0])) if down else None,
            attention=Listening(grams.take(out), sensitivity.pop(out)),
            expert_energy=experts.energy_E,
            expert_ffn_energy=experts.energy_EF,
        )
    _listen_to_head(calibration, hidden)


class Grams:
    """Means of ``x xᵀ``, by module: whole for width 0, else within blocks of that many neighbours."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor, width: int) -> None:
        x_NC = x.reshape(-1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
        if name not in self._sums:
            self._sums[name] = _gram(x_NC, width)
        elif width == 0:
            self._sums[name].addmm_(x_NC.T, x_NC)
        else:
            self._sums[name] += _gram(x_NC, width)

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[name] / self._num_tokens

    def take(self, name: str) -> Tensor:
        """Return a mean and forget it, so that a large one is never held twice."""
        return self._sums.pop(name).div_(self._num_tokens)


def _gram(x_NC: Tensor, width: int) -> Tensor:
    if width == 0:
        return x_NC.T @ x_NC
    if width == 1:
        return x_NC.square().sum(0)[:, None, None]
    x_GNW: Tensor = x_NC.reshape(len(x_NC), -1, width).transpose(0, 1)
    return x_GNW.transpose(1, 2) @ x_GNW


class ExpertEnergies:
    """What a layer's experts, and their neurons, add to the hidden state: mean energies ``[E]`` and ``[E, F]``."""

    def __init__(self, layer: LayerPass, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        found = experts_module(layer)
        self.name = found[0] if found else None
        self._module = found[1] if found else None
        self.energy_E: Tensor | None = None
        self.energy_EF: Tensor | None = None
        if self._module is not None:
            down_EHF: Tensor = self._module.down_proj  # type: ignore[assignment]
            self.energy_E = torch.zeros(len(down_EHF), dtype=torch.float64)
            self.energy_EF = torch.zeros(len(down_EHF), down_EHF.shape[-1], dtype=torch.float64)

    def add(self, given: tuple[Any, ...]) -> None:
        assert self._module is not None and self.energy_E is not None and self.energy_EF is not None
        for call in expert_calls(self._module, given):
            down_HF = self._module.down_proj[call.expert].double()  # type: ignore[index]
            weighted_NF = call.neurons.double() * call.weights.double()[:, None]
            squares_F = weighted_NF.square().sum(0) * down_HF.square().sum(0)
            self.energy_EF[call.expert] += squares_F.cpu() / self._num_tokens
            energy = (weighted_NF @ down_HF.T).square().sum().cpu()
            self.energy_E[call.expert] += energy / self._num_tokens


def router_of(layer: LayerPass, readers: list[str]) -> str:
    """Return the router among a layer's reading maps, by its name below the layer."""
    (router,) = [n for n in readers if layer.axes(n)[0] == "experts"]
    return router.removesuffix(".weight").removeprefix(layer.prefix)


def _listen_to_head(calibration: Calibration, hidden: HiddenEnergy) -> None:
    head = calibration.model.model.get_output_embeddings()
    name = next(n for n, module in calibration.model.model.named_modules() if module is head)
    grams = Grams(calibration.num_tokens)
    calibration.tail([name], lambda _, given, __: grams.add(name, given[0], 1))
    stored = calibration.layout.head or calibration.layout.embedding
    hidden.add(grams[name], calibration.model.stored[stored].to(calibration.model.device))


def _sensitivity(weight_OI: Tensor, width: int) -> Tensor:
    """Return ``WᵀW``: whole for width 0, else within blocks."""
    wide = weight_OI.to(torch.promote_types(weight_OI.dtype, torch.float32))
    if width == 0:
        return wide.T @ wide
    if width == 1:
        return wide.square().sum(0)[:, None, None]
    blocks_GOW: Tensor = wide.reshape(len(wide), -1, width).transpose(0, 1)
    return blocks_GOW.transpose(1, 2) @ blocks_GOW


def _oriented(calibration: Calibration, name: str) -> Tensor:
    weight = calibration.model.stored[name].to(calibration.model.device)
    return weight.T if calibration.layout.out_dim(name) == 1 else weight
