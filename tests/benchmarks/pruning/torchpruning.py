"""torch-pruning 1.6.1's own pruner on Llama-like models, as far as it goes.

Its published LLM example never ends on transformers 5: a group follows the slices of the rotary embedding round and
round. A user who finds out traces the model with the rotation left out and attention as a product of elements, which
connect the same channels; then the pruner removes hidden channels and neurons by group magnitude in every layer
alike. Heads it leaves alone, because grouped queries are no group to it.
"""

import importlib
import subprocess
import sys
import warnings
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from compress.models.checkpoint import load_model, quiet, save_model

from .cutting import TOLERANCE, Shape

EXAMPLE_SECONDS = 60
ROUND_TO = 8
RATIO_STEP = 1 / 160


class CannotPrune(Exception):
    """A rival made no model; the message says why."""


def by_torch_pruning(teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    """Prune at the smallest ratio that meets the budget."""
    whole = load_model(teacher_folder).config.to_dict()
    wanted = budget * Shape.of(whole).num_parameters(whole) * TOLERANCE

    def pruned(step: int) -> PreTrainedModel:
        model = load_model(teacher_folder)
        _prune(model, step * RATIO_STEP)
        return model

    def fits(step: int) -> bool:
        config = pruned(step).config.to_dict()
        return Shape.of(config).num_parameters(config) <= wanted

    steps = range(1, round(0.9 / RATIO_STEP))
    model = pruned(step := steps[bisect_left(steps, True, key=fits)])
    out_folder.mkdir(parents=True, exist_ok=True)
    save_model(model, out_folder, like=teacher_folder)
    return {"ratio": step * RATIO_STEP, "shape": vars(Shape.of(model.config.to_dict()))}


def by_published_example(teacher_folder: Path, budget: float, seed: int, out_folder: Path) -> dict[str, Any]:
    """Raise `CannotPrune`, with what happens to the example as published, in a process of its own."""
    command = [sys.executable, "-m", f"{__package__}.torchpruning", str(teacher_folder), str(budget)]
    try:
        subprocess.run(
            command, timeout=EXAMPLE_SECONDS, check=True, capture_output=True, cwd=Path(__file__).parents[1]
        )
    except subprocess.TimeoutExpired as error:
        raise CannotPrune(f"finds no groups within {EXAMPLE_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        raise CannotPrune(error.stderr.decode().strip().splitlines()[-1]) from error
    raise AssertionError("the published example works now: make it a rival")


def _prune(model: PreTrainedModel, ratio: float) -> None:
    """Let torch-pruning remove a share of hidden channels and neurons, in place, and fit the configuration."""
    with _traceable(model), warnings.catch_warnings():
        # It tells of every norm that it takes it for a vector over channels, which they are.
        warnings.simplefilter("ignore")
        _run_pruner(model, ratio)
    config = model.config
    config.hidden_size = model.get_input_embeddings().weight.shape[1]
    config.intermediate_size = model.base_model.layers[0].mlp.up_proj.weight.shape[0]
    model.get_input_embeddings().embedding_dim = config.hidden_size
    if config.tie_word_embeddings:
        # The pruner cuts both into parameters of their own, by the same channels.
        assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
        model.get_output_embeddings().weight = model.get_input_embeddings().weight


def _run_pruner(model: PreTrainedModel, ratio: float) -> None:
    """Set it up and run it as the LLM example does."""
    tp = _torch_pruning()
    num_heads = {}
    for block in model.base_model.layers:
        attention = block.self_attn
        num_heads[attention.q_proj] = model.config.num_attention_heads
        num_heads[attention.k_proj] = num_heads[attention.v_proj] = model.config.num_key_value_heads
    head_norms = [m for name, m in model.named_modules() if name.endswith(("q_norm", "k_norm"))]
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs={"input_ids": torch.arange(5)[None], "use_cache": False},
        importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        global_pruning=False,
        pruning_ratio=ratio,
        ignored_layers=[model.get_output_embeddings(), *head_norms],
        num_heads=num_heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=ratio,
        round_to=ROUND_TO,
    )
    for group in pruner.step(interactive=True):
        group.prune()


def _torch_pruning() -> Any:
    try:
        return importlib.import_module("torch_pruning")
    except ImportError as error:
        raise CannotPrune(f"torch-pruning is not installed: {error}") from error


@contextmanager
def _traceable(model: PreTrainedModel) -> Iterator[None]:
    """Leave out the rotation and make attention elementwise inside this block."""
    code: Any = importlib.import_module(type(model).__module__)
    rotate, attention = code.apply_rotary_pos_emb, model.config._attn_implementation
    AttentionInterface.register("elementwise", _elementwise)
    code.apply_rotary_pos_emb = lambda q, k, *args, **kwargs: (q, k)
    with quiet():
        model.set_attn_implementation("elementwise")
        try:
            yield
        finally:
            code.apply_rotary_pos_emb = rotate
            model.set_attn_implementation(attention)


def _elementwise(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Connect every query channel with the key and value channel it meets in attention: ``[B, T, Q, E]``."""
    shared: int = module.num_key_value_groups  # type: ignore[assignment]

    def repeated(kv_BGTE: Tensor) -> Tensor:
        batch, groups, length, dim = kv_BGTE.shape
        return kv_BGTE[:, :, None].expand(-1, -1, shared, -1, -1).reshape(batch, groups * shared, length, dim)

    return (query * repeated(key) * repeated(value)).transpose(1, 2).contiguous(), None


if __name__ == "__main__":
    example = load_model(Path(sys.argv[1]))
    _run_pruner(example, 1 - float(sys.argv[2]))
