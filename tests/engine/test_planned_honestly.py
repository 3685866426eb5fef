"""What a plan says of settings that change how long or how much, as those who tried to mislead it found."""

from pathlib import Path

import pytest

from compress.cards import cards_named, read_table
from compress.distill import step as distill
from compress.engine.plan_table import plan_table
from compress.engine.store import Store
from compress.errors import InputError
from compress.machine import Machine, machine_named, planning_for
from compress.models.layout import spec_from_config
from compress.pipeline.plan import Node, Plan
from compress.plugins import PlannedInputs, Text
from compress.records import MemoryItem, ModelSpec
from compress.speed import seconds_of
from compress.train import step as train
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


def held(found):
    """The account of a work by name; it adds up to the peak."""
    assert found.peak_memory_bytes == sum(item.num_bytes for item in found.memory)
    return {item.name: item.num_bytes for item in found.memory}


CACHED = {"cache_teacher": True, "optimizer": "adamw_8bit", "micro_batch": 1, "checkpoint_activations": True}


def test_comparing_a_cached_teacher_counts_gradients_of_what_learns_and_a_row_s_activations():
    spec = spec_from_config(tiny_config("llama", **SHAPE), "BF16")
    whole, _ = work(**CACHED)
    items = held(whole)
    assert items["two gradients (fp32)"] == 8 * spec.num_parameters
    assert items["activations"] > 10**9 and items["head's gradient of a micro-batch"] and whole.remedies
    adapted, _ = work(**CACHED, lora={"rank": 8})
    assert adapted.peak_memory_bytes < whole.peak_memory_bytes - 8 * spec.num_parameters


def test_comparing_a_cached_teacher_is_done_on_one_card_of_a_team():
    alone, team = held(work(**CACHED)[0]), work("8xh100-80gb", **CACHED | TEAM)[0]
    state = "student's weights (fp32)", "teacher's weights", "two gradients (fp32)", "activations"
    assert [held(team)[name] for name in state] == [alone[name] for name in state]
    assert team.is_peak_of_one and team.devices == 8
    assert "on one of 8 cards" in told(team, "8xh100-80gb")


TEAM = {"launch": {"processes": 8}, "optimizer": "adamw"}


LAPTOP = Machine()


def told(work, device, here=LAPTOP):
    """What the plan says of a step that takes so much."""
    config = train.Config(tokens=10**7)
    node = Node(name="taught", use="train", role="student", kind="hf", key="k", config=config, work=work,
                spec=ModelSpec(config={}, tensors={}, num_parameters=1))  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("compress.machine.this_machine", lambda: here)
        with planning_for(machine_named(device)):
            return plan_table(Plan(nodes=(node,)), "mine", Store(Path("/nowhere")))


def test_the_card_that_a_teacher_is_named_for_has_an_account_of_its_own():
    found = work("2xh100-80gb", teacher_device="cuda:1")[0]
    spec = spec_from_config(tiny_config("llama", **SHAPE), "BF16")
    assert found.named_card.memory[0].num_bytes == spec.weight_bytes
    text = told(found, "2xh100-80gb")
    assert "memory of 'taught' on the card of `teacher_device: cuda:1`" in text and "--device" not in text
    assert work("2xh100-80gb", teacher_device="cuda:0")[0].named_card is None


def test_a_teacher_too_large_for_the_card_it_is_named_for_is_refused():
    found = work("2xh100-80gb", teacher_device="cuda:1")[0]
    large = found.named_card.model_copy(
        update={"memory": (MemoryItem(name="weights", num_bytes=9 * 10**10),)}
    )
    text = told(found.model_copy(update={"named_card": large}), "2xh100-80gb")
    assert "`compress run` would refuse: step 'taught' needs about" in text
    assert "on the card of `teacher_device: cuda:1`; h100-80gb gives" in text


@pytest.mark.parametrize(("device", "cards"), [("h100-80gb", 1), ("2xh100-80gb", 2)])
def test_a_card_beyond_those_planned_is_remarked_on(device, cards):
    text = told(work(device, teacher_device="cuda:2")[0], device)
    assert f"`teacher_device: cuda:2` needs 3 cards; planned for {cards} (`--device 3xNAME`" in text


@pytest.mark.parametrize(
    ("device", "named", "there"),
    [("cpu", "cuda", "no card"), ("cpu", "cuda:1", "no card"), ("2xh100-80gb", "cuda:2", "cuda:0 to cuda:1")],
)
def test_a_card_that_is_not_in_this_machine_is_refused(device, named, there):
    text = told(work(device, teacher_device=named)[0], device, machine_named(device))
    assert (
        f"refuse: step 'taught' wants a card of its own for `teacher_device: {named}`: there is {there}"
        in text
    )


@pytest.mark.parametrize("device", ["cpu", "offload"])
def test_a_processor_holds_the_teacher_wherever_it_is_named_for(device):
    assert work("cpu", teacher_device=device)[0].memory == work("cpu")[0].memory


def test_a_teacher_on_the_processor_beside_a_card_is_counted_in_what_it_computes_in():
    spec = spec_from_config(tiny_config("llama", **SHAPE), "BF16")
    beside, apart = (work(teacher_device=device)[0].host_memory_bytes for device in ("auto", "cpu"))
    assert apart - beside == 2 * spec.num_parameters
    rounded = work(teacher_device="cpu", teacher_precision="nf4")[0].host_memory_bytes
    assert rounded > work(teacher_precision="nf4")[0].host_memory_bytes


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
