import pytest

from compress.errors import InputError, StepFailed
from compress.models.family import Tensor
from compress.models.graph import check_against, shortened, trace_axes
from compress.models.layout import layout
from tests.models.tiny import VARIANTS, tiny_config, variant_name


class Changed:
    """A family with some rows of its table replaced, added or (``None``) taken out."""

    def __init__(self, family, **rows):
        table = dict(family.TENSORS) | rows
        self.TENSORS = {name: row for name, row in table.items() if row is not None}
        self._family = family

    def __getattr__(self, name):
        return getattr(self._family, name)


def changed(family, name, row):
    where = layout(tiny_config(family))
    object.__setattr__(where, "family", Changed(where.family, **{name: row}))
    return where


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=variant_name)
def test_family_and_dependency_graph_agree(family, changes):
    check_against(layout(tiny_config(family, **changes)))


DOWN = "model.layers.{layer}.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            Tensor(("ffn", "hidden")),
            f"{DOWN}, dimension 0: the family file of 'llama' says 'ffn', the dep.* 'hidden'",
        ),
        (
            Tensor(("hidden", "query")),
            f"{DOWN}, dimension 1: .* says 'query', the dependency graph says 'ffn'",
        ),
        (None, f"{DOWN}: the model has it, the family file of 'llama' has not"),
    ],
)
def test_a_wrong_row_is_named(row, message):
    with pytest.raises(StepFailed, match=message.replace("{", r"\{")):
        check_against(changed("llama", DOWN, row))


def test_a_row_too_many_is_named():
    with pytest.raises(
        StepFailed, match=r"model\.extra: the family file of 'llama' has it, the model has not"
    ):
        check_against(changed("llama", "model.extra", Tensor(("hidden",))))


def test_swapped_parts_of_a_fused_projection_are_seen():
    name = "model.layers.{layer}.self_attn.qkv_proj.weight"
    wrong = changed("phi3", name, Tensor((("key_value", "key_value", "query"), "hidden")))
    with pytest.raises(StepFailed, match=r"graph says \('query', 'key_value', 'key_value'\)"):
        check_against(wrong)


def test_every_layer_of_a_wide_model_is_described_in_seconds():
    config = tiny_config(
        "llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, vocab_size=128256
    )
    axes = trace_axes(
        config | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}, time_limit_s=10
    )
    assert axes[DOWN] == ("hidden", "ffn")


def test_running_out_of_time_is_said():
    with pytest.raises(StepFailed, match="took too long"):
        trace_axes(tiny_config("llama"), time_limit_s=0)


SMALL = {
    "vocab_size": 259,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' compute attention by themselves, .*or have none"),
        ({"model_type": "gptj", "rotary_dim": 4}, "'gptj' compute attention by themselves"),
        (
            {"model_type": "albert"},
            "'albert' cannot be traced without weights: weights are used more than once",
        ),
        ({"model_type": "vit"}, "no language model of this vit configuration"),
        ({"model_type": "zamba2", "num_hidden_layers": 3}, "refuses this zamba2 configuration"),
        ({"model_type": "no_such"}, "refuses this no_such configuration"),
    ],
)
def test_what_cannot_be_traced_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        trace_axes(SMALL | config)


def test_heads_of_latent_attention_have_no_axis():
    axes = trace_axes(SMALL | {"model_type": "deepseek_v3", "num_key_value_heads": 8})
    assert axes["model.layers.{layer}.self_attn.kv_b_proj.weight"][0] is None


def test_a_norm_without_parameters_joins_what_it_stands_between():
    axes = trace_axes(tiny_config("olmo"))
    assert not [name for name in axes if "norm" in name]
    assert axes["lm_head.weight"] == ("vocab", "hidden")


def test_shortening_cuts_lists_with_an_entry_a_layer():
    config = tiny_config(
        "qwen3", layer_types=["full_attention"] * 3 + ["sliding_attention"], sliding_window=8
    )
    short = shortened(config)
    assert (short["num_hidden_layers"], short["layer_types"]) == (2, ["full_attention"] * 2)
    assert shortened(short) == short
