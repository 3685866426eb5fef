"""An objective's models, and the layers a team divides them by."""

from torch import nn
from transformers import PreTrainedModel


def models_of(objective: nn.Module) -> list[PreTrainedModel]:
    """Return the models an objective holds."""
    return [child for child in objective.children() if isinstance(child, PreTrainedModel)]


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return a model's layers: what is gathered together."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether a model can be divided: one in 8 or 4 bits holds more than parameters, and is small."""
    return all(parameter.is_floating_point() for parameter in model.parameters())
