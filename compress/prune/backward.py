"""Backward through a model one layer at a time, so that weights and gradients of one layer at a time need memory.

The text runs forward once and what enters every layer is kept. Then the loss is differentiated at the last hidden
state, and layer after layer, last to first, runs again with gradients and hands its inputs' gradient on.

Shapes: B sequences, T tokens, C tokens of a chunk, H hidden channels, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from compress.models.family import option
from compress.models.layerwise import separate_experts
from compress.prune.calibration import Calibration

Receive = Callable[[str, Tensor, Tensor], None]
"""Gets a stored tensor's name, its weights, and a part of their gradient: the gradient is the sum of all parts."""

CHUNK_ELEMENTS = 2**24
"""Logits held at once: 64 MiB in fp32, and their gradient."""


class LossGradient:
    """The gradient of a model's mean loss on the text: next-token cross-entropy, in nats a prediction.

    Of an encoder, which predicts no next token, the loss of giving back every token that it sees.
    """

    def __init__(self, calibration: Calibration, receive: Receive) -> None:
        self._calibration, self._model, self._receive = calibration, calibration.model, receive
        layout = calibration.layout
        self._shift = 0 if option(layout.family, "ENCODER") else 1
        self._num_predictions = sum(ids[:, self._shift :].numel() for ids in calibration.batches)
        self._outside = {
            name: self._model.model.get_parameter(layout.live_tensor(name))
            for name in layout.tensors
            if layout.layer_of(name) is None
        }
        self._passed = 0

    def run(self) -> None:
        """Hand over the gradient of every stored tensor, in parts."""
        count = self._calibration.layout.num_layers
        entering = [self._room(f"before-{number}") for number in range(count)]
        gradients = self._room("gradient")
        self._forward(entering)
        with differentiated(self._outside.values()):
            for ids, state, gradient in zip(
                self._calibration.batches, self._calibration.states, gradients, strict=True
            ):
                gradient.copy_(self._through_tail(ids, state))
                self._hand_over_outside()
        for number in reversed(range(count)):
            self._through_layer(number, entering[number], gradients)
        with differentiated(self._outside.values()):
            for ids, gradient in zip(self._calibration.batches, gradients, strict=True):
                self._model.embed(ids).backward(gradient.to(self._model.device))  # type: ignore[no-untyped-call]
                self._hand_over_outside()

    @torch.no_grad()
    def _forward(self, entering: list[list[Tensor]]) -> None:
        self._calibration.embed()
        for number, room in enumerate(entering):
            with self._model.layer(number):
                for kept, state in zip(room, self._calibration.states, strict=True):
                    kept.copy_(state)
                    state.copy_(self._model.run(number, state))
            self._report()

    def _through_tail(self, ids_BT: Tensor, state_BTH: Tensor) -> Tensor:
        """Return the gradient of the loss by what leaves the last layer: ``[B, T, H]``."""
        gradient_BTH = torch.zeros_like(state_BTH)
        rows, length = ids_BT.shape
        chunk = max(1, CHUNK_ELEMENTS // (rows * self._calibration.layout.vocab))
        for start in range(0, length - self._shift, chunk):
            part = slice(start, min(start + chunk, length - self._shift))
            leaf_BCH = state_BTH[:, part].detach().clone().requires_grad_(True)
            logits_BCV = self._model.logits(ids_BT[:, part], leaf_BCH)
            wide = logits_BCV.to(torch.promote_types(logits_BCV.dtype, torch.float32))
            targets_BC = ids_BT[:, part.start + self._shift : part.stop + self._shift].to(wide.device)
            loss = cross_entropy(wide.flatten(0, 1), targets_BC.flatten(), reduction="sum")
            (loss / self._num_predictions).backward()  # type: ignore[no-untyped-call]
            assert leaf_BCH.grad is not None
            gradient_BTH[:, part] = leaf_BCH.grad
        return gradient_BTH

    def _through_layer(self, number: int, entering: list[Tensor], gradients: list[Tensor]) -> None:
        """Turn the gradients by what leaves a layer into those by what enters it."""
        prefix, device = self._calibration.layout.layers[number] + ".", self._model.device
        with self._model.layer(number) as module, differentiated(module.parameters()):
            for state, gradient in zip(entering, gradients, strict=True):
                leaf = state.detach().clone().requires_grad_(True)
                self._model.run(number, leaf).backward(gradient.to(device))  # type: ignore[no-untyped-call]
                assert leaf.grad is not None
                gradient.copy_(leaf.grad)
                self._hand_over(prefix, dict(module.named_parameters()))
        self._report()

    def _hand_over_outside(self) -> None:
        """A tied output head's gradient comes from both ends: the parameter is the embedding's."""
        for name, parameter in self._outside.items():
            if parameter.grad is not None:
                self._receive(name, parameter.detach(), parameter.grad)
                parameter.grad = None

    def _hand_over(self, prefix: str, parameters: dict[str, nn.Parameter]) -> None:
        found = {name: p for name, p in parameters.items() if p.grad is not None}
        weights = separate_experts({name: p.detach() for name, p in found.items()})
        gradients = separate_experts({name: p.grad for name, p in found.items() if p.grad is not None})
        for name, weight in weights.items():
            self._receive(prefix + name, weight, gradients[name])
        for parameter in found.values():
            parameter.grad = None

    def _room(self, name: str) -> list[Tensor]:
        calibration = self._calibration
        return calibration.scratch.states(
            name, calibration.batches, calibration.layout.hidden, self._model.dtype
        )

    def _report(self) -> None:
        self._passed += 1
        tokens = self._calibration.num_tokens
        self._calibration.report(self._passed * tokens, 2 * self._calibration.layout.num_layers * tokens)


@contextmanager
def differentiated(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let these parameters gather gradients meanwhile."""
    chosen = list(parameters)
    for parameter in chosen:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in chosen:
            parameter.requires_grad_(False)
            parameter.grad = None
