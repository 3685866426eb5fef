"""What a plan says of settings that change how long or how much, as those who tried to mislead it found."""

import pytest

from compress.cards import cards_named, read_table
from compress.distill import step as distill
from compress.errors import InputError
from compress.machine import machine_named, planning_for
from compress.models.layout import spec_from_config
from compress.plugins import PlannedInputs, Text
from compress.speed import seconds_of
from tests.models.tiny import tiny_config

SHAPE = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32_000,
}  # fmt: skip


def work(device="h100-80gb", **settings):
    """Of distilling about a billion parameters on rows of 2,048 tokens."""
    spec = spec_from_config(tiny_config("llama", **SHAPE), "BF16")
    config = distill.Config(**{"tokens": 10**7, **settings})
    with planning_for(machine_named(device)):
        found = distill.estimate(spec, config, PlannedInputs({"teacher": spec}, {"data": Text(2048, None)}))
        return found, seconds_of(found)


def test_fp32_takes_a_card_many_times_as_long():
    assert work(precision="fp32")[1] > 5 * work(precision="bf16")[1]


def test_a_batch_of_one_row_is_no_faster_on_eight_cards():
    alone = work(batch_tokens=2048)[1]
    assert work("8xh100-80gb", batch_tokens=2048, launch={"processes": 8})[1] > 0.9 * alone
    shared = work("8xh100-80gb", batch_tokens=16 * 2048, launch={"processes": 8})[1]
    assert shared < 0.5 * work(batch_tokens=16 * 2048)[1]


def test_comparing_a_cached_teacher_counts_three_gradients_of_what_learns():
    spec = spec_from_config(tiny_config("llama", **SHAPE), "BF16")
    whole, _ = work(cache_teacher=True, optimizer="adamw_8bit", micro_batch=1, checkpoint_activations=True)
    items = {item.name: item.num_bytes for item in whole.memory}
    assert items["three gradients (fp32)"] == 12 * spec.num_parameters
    assert whole.peak_memory_bytes == sum(items.values()) and whole.remedies
    adapted, _ = work(cache_teacher=True, lora={"rank": 8}, micro_batch=1, checkpoint_activations=True)
    assert adapted.peak_memory_bytes < whole.peak_memory_bytes - 10 * spec.num_parameters


@pytest.mark.parametrize(
    "entry",
    [
        "{memory_mib: 2020-99-99}",
        "{memory_mib: 1%s}" % ("0" * 400),
        "{memory_mib: 1}",
        "{bf16_tflops: 1e-300}",
    ],
)
def test_a_table_of_cards_with_absurd_numbers_is_told_so(entry, tmp_path):
    file = tmp_path / "cards.yaml"
    rest = "bf16_tflops: 100, memory_gb_per_second: 100, link_gb_per_second: 10"
    inner = entry[1:-1]
    kept = ", ".join(each for each in rest.split(", ") if each.split(":")[0] not in inner)
    memory = "" if "memory_mib" in inner else "memory_mib: 24000, "
    file.write_text(f"mine: {{{memory}{inner}, {kept}}}\n")
    with pytest.raises(InputError, match=r"cards\.yaml"):
        read_table(file)


def test_a_number_of_cards_of_thousands_of_digits_is_refused_in_a_line():
    with pytest.raises(InputError, match="Allowed: 1 to") as told:
        cards_named("9" * 5000 + "xh200")
    assert len(str(told.value)) < 300
