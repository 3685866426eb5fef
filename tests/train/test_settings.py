"""What `train` and `distill` are told, refused when the plan is made rather than in the middle of a step."""

import math

import pytest
from pydantic import ValidationError

from compress import plugins
from compress.data.sources import mixture
from compress.distill import step
from compress.errors import InputError
from compress.models.layout import spec_from_config
from compress.plugins import StepConfig
from compress.train import step as train_step
from compress.train.adapters import linear_layers
from compress.train.lora import _linear_layers
from compress.train.settings import Lora, TrainingSettings, rehearsed
from tests.models.tiny import TRAINABLE, tiny_config, tiny_model

STEPS = [*plugins.step_names(), "data.pack", "train.initialize", "distill.cache_teacher"]


class Nested(StepConfig):
    pair: tuple[float, float] = (0.0, 0.0)
    share: float | None = None


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
def test_no_setting_of_any_plugin_is_infinite_or_no_number(number):
    for wrong in ({"share": number}, {"pair": (0.0, number)}):
        with pytest.raises(ValidationError, match="finite number"):
            Nested(**wrong)
    for name in STEPS:
        assert plugins.internal(name).Config.model_config["allow_inf_nan"] is False


@pytest.mark.parametrize("number", [math.inf, math.nan])
@pytest.mark.parametrize(
    "field",
    ["learning_rate", "weight_decay", "max_grad_norm", "temperature", "hidden_weight", "checkpoint_seconds"],
)
def test_training_takes_finite_numbers(field, number):
    with pytest.raises(ValidationError, match=rf"{field}\n.*finite number"):
        step.Config(tokens=100, **{field: number})


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_the_shares_of_a_mixture_of_data_are_finite(number):
    parts = [{"source": "demo"}, {"source": "demo", "weight": number}]
    with pytest.raises(ValidationError, match=r"weight\n.*finite number"):
        mixture.Config.model_validate({"parts": parts})


@pytest.mark.parametrize("betas", [(1.0, 0.95), (0.9, 1.0), (-0.1, 0.95), (0.9, 2.0)])
def test_adamw_forgets_at_some_time(betas):
    with pytest.raises(ValidationError, match="betas"):
        TrainingSettings(tokens=100, betas=betas)


def test_adamw_may_remember_nothing():
    assert TrainingSettings(tokens=100, betas=(0.0, 0.0)).betas == (0.0, 0.0)


def test_lora_needs_something_to_adapt():
    with pytest.raises(ValidationError, match="name at least one layer, or write 'all-linear'"):
        Lora(targets=())
    assert Lora(targets=("q_proj",)).targets == ("q_proj",)


WIDE = spec_from_config(
    tiny_config(
        "llama",
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
    ),
    "F32",
)
LLAMA = spec_from_config(tiny_config("llama"), "F32")


@pytest.mark.parametrize("module", [train_step, step], ids=["train", "distill"])
def test_the_plan_refuses_layers_the_model_has_not(module):
    def predict(*targets):
        return module.predict(LLAMA, module.Config(tokens=100, lora=Lora(targets=targets)))

    with pytest.raises(
        InputError, match=r"no linear layer called 'q_prj'; did you mean 'q_proj'\?.*all-linear"
    ):
        predict("down_proj", "q_prj")
    with pytest.raises(InputError, match="no linear layer called 'lm_head'"):
        predict("lm_head")
    assert predict("q_proj", "down_proj") == LLAMA


@pytest.mark.parametrize("family", TRAINABLE)
def test_the_plan_knows_the_linear_layers_of_every_family(family):
    live = {name: tuple(layer.weight.shape) for name, layer in _linear_layers(tiny_model(family))}
    assert linear_layers(spec_from_config(tiny_config(family), "F32")) == live


@pytest.mark.parametrize("module", [train_step, step], ids=["train", "distill"])
def test_the_plan_refuses_tasks_that_cannot_be_watched(module):
    def predict(*tasks):
        return module.predict(LLAMA, module.Config(tokens=100, held_out="heldout", tasks=tasks))

    with pytest.raises(InputError, match=r"'arc_challange'; did you mean 'arc_challenge'\?"):
        predict("world_sums", "arc_challange")
    with pytest.raises(InputError, match="'world_text' has no accuracy to watch"):
        predict("world_text")
    assert predict("world_sums", "arc_challenge") == LLAMA


@pytest.mark.parametrize("module", [train_step, step], ids=["train", "distill"])
def test_the_plan_refuses_a_rank_that_no_matrix_has(module):
    def predict(rank, *targets):
        lora = Lora(rank=rank, **({"targets": targets} if targets else {}))
        return module.predict(WIDE, module.Config(tokens=100, lora=lora))

    with pytest.raises(
        InputError, match=r"lora.rank: 100000 is .*layers\.0\.self_attn\.q_proj .64 by 64.: .* 64"
    ):
        predict(100_000)
    with pytest.raises(InputError, match=r"17 is more .*layers\.0\.self_attn\.k_proj .16 by 64.: .* 16"):
        predict(17, "k_proj", "v_proj")
    assert predict(17, "q_proj", "k_proj") == predict(64) == predict(16, "k_proj") == WIDE


def test_a_rehearsal_has_a_rank_that_tiny_models_bear():
    settings = TrainingSettings(tokens=100, lora=Lora(rank=512, targets=("q_proj",)))
    assert rehearsed(settings).lora == Lora(rank=4, targets=("q_proj",))
    assert rehearsed(TrainingSettings(tokens=100)).lora is None
