"""What is tried in the first minutes: a function an item, each yielding its figures as it gets them."""

from gpu_minutes.attention import attention, decoding, evaluation
from gpu_minutes.machine import kernels, machine
from gpu_minutes.pipelines import pipeline, team
from gpu_minutes.pruning import pruning
from gpu_minutes.training import checkpoint, recomputing, sizes, true_step

__all__ = [
    "attention", "checkpoint", "decoding", "evaluation", "kernels", "machine",
    "pipeline", "pruning", "recomputing", "sizes", "team", "true_step",
]  # fmt: skip
