"""The linear maps of a running layer: in which order they come, what they read and write.

Found by running the layer, because only that tells which maps are given the very same tensor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from compress.models.layout import Layout


@dataclass(frozen=True)
class Stage:
    """Maps that are refitted together: readers of one input, or one writer.

    `module` is where to look, by its name below the layer; `tensors` are the parent's stored weights.
    """

    module: str
    tensors: tuple[str, ...]
    writes: bool


def stages_of(layout: Layout, number: int, layer: nn.Module, run: Callable[[], None]) -> list[Stage]:
    """Return a layer's linear maps to and from the hidden state, in the order they run.

    Maps that are given the very same tensor are one stage. Experts read what their router reads.
    """
    prefix = layout.layers[number] + "."
    readers: dict[str, str] = {}
    writers: dict[str, str] = {}
    expert_readers: list[str] = []
    for name, axes in layout.tensors.items():
        if layout.layer_of(name) != number or len(axes) != 2 or "hidden" not in axes:
            continue
        reads = axes[1 - layout.out_dim(name)] == "hidden"
        if layout.expert_of(name) is not None:
            expert_readers += [name] if reads else []
        else:
            (readers if reads else writers)[name.removeprefix(prefix).removesuffix(".weight")] = name
    order: list[tuple[str, int]] = []

    def note(module: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: order.append((module, inputs[0].data_ptr()))

    handles = [layer.get_submodule(m).register_forward_pre_hook(note(m)) for m in (*readers, *writers)]
    run()
    for handle in handles:
        handle.remove()
    stages: list[Stage] = []
    last_input = None
    for module, pointer in order:
        if module in writers:
            stages.append(Stage(module, (writers[module],), writes=True))
            last_input = None
            continue
        also = tuple(expert_readers) if layout.tensors[readers[module]][0] == "experts" else ()
        if pointer == last_input:
            stages[-1] = Stage(stages[-1].module, (*stages[-1].tensors, readers[module], *also), writes=False)
        else:
            stages.append(Stage(module, (readers[module], *also), writes=False))
        last_input = pointer
    return stages


@contextmanager
def observing(layer: nn.Module, modules: list[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collect what named modules of a layer read and write while it runs once."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def note(module: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[module] = (inputs[0], output)

        return hook

    handles = [layer.get_submodule(m).register_forward_hook(note(m)) for m in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """Return what a module is given first while `run` runs, which goes no further."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Reached(inputs[0])

    handle = module.register_forward_pre_hook(stop)
    try:
        run()
    except _Reached as reached:
        return reached.tensor
    finally:
        handle.remove()
    raise AssertionError(f"{type(module).__name__} did not run")


class _Reached(Exception):
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
