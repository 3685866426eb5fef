"""What the time of a training is made of."""

import pytest

from compress.data.task_lengths import evaluation_length
from compress.machine import Card, Machine, planning_for
from compress.models.effort import flops_per_token
from compress.models.layout import spec_from_config
from compress.plugins import Text
from compress.records import Work
from compress.speed import seconds_of
from compress.train.duration import looks, steps, timed
from compress.train.launch import Launch
from compress.train.step import Config

SPEC = spec_from_config(
    {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32_000, "hidden_size": 2048,
        "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    },
    "BF16",
)  # fmt: skip
TEXT = Text(row_tokens=2048, rows=None)
CARD = Card(
    name="H100",
    memory_bytes=85 * 10**9,
    bf16_flops_per_second=989e12,
    memory_bytes_per_second=3.35e12,
    link_bytes_per_second=4.5e11,
)
TOKENS = 10**8


def config(**settings):
    return Config(tokens=TOKENS, batch_tokens=2**19, **settings)


def on_cards(number=1):
    return planning_for(Machine(card=CARD, num_cards=number))


def test_a_step_takes_three_forward_passes_and_a_fourth_where_activations_are_recomputed():
    forward = TOKENS * flops_per_token(SPEC, span=1024)
    plain, again = (steps(SPEC, config(checkpoint_activations=on), None, TEXT, 1) for on in (False, True))
    assert plain.flops == pytest.approx(3 * forward)
    head = 2 * TOKENS * 32_000 * 2048
    assert again.flops == pytest.approx(4 * forward - head)  # only layers are run again
    assert again.num_calls > plain.num_calls and again.bytes_moved > plain.bytes_moved


def test_adapters_save_the_gradients_of_weights():
    whole, adapted = (steps(SPEC, config(lora=lora), None, TEXT, 1) for lora in (None, {}))
    assert adapted.flops == pytest.approx(whole.flops * 2 / 3)


def test_of_a_teachers_output_layer_only_the_rows_of_the_students_ids_are_multiplied():
    larger = spec_from_config({**SPEC.config, "vocab_size": 320_000}, "BF16")
    small, large = (steps(SPEC, config(), teacher, TEXT, 1) for teacher in (SPEC, larger))
    assert large.flops == pytest.approx(small.flops)


def test_a_teacher_reads_everything_too():
    alone, taught = (steps(SPEC, config(), teacher, TEXT, 1) for teacher in (None, SPEC))
    assert taught.flops > alone.flops * 4 / 3
    assert taught.bytes_moved > alone.bytes_moved and taught.num_calls > alone.num_calls


def test_attention_within_long_rows_takes_more():
    short, long = (
        steps(SPEC, config(attend_across_documents=True), None, Text(length, None), 1).flops
        for length in (2048, 32_768)
    )
    more = 12 * 22 * 2048 * (16_384 - 1024) * TOKENS
    assert long - short == pytest.approx(more)


def test_smaller_micro_batches_read_the_weights_more_often():
    large, small = (steps(SPEC, config(micro_batch=rows), None, TEXT, 1) for rows in (16, 1))
    assert small.num_calls > 10 * large.num_calls and small.bytes_moved > large.bytes_moved
    assert small.flops == large.flops


def test_activations_are_recomputed_on_a_card_where_they_would_not_fit():
    big = SPEC.model_copy(update={"num_parameters": 5 * 10**9})
    for spec, more in ((SPEC, False), (big, True)):
        with on_cards():
            left, without = (
                steps(spec, config(checkpoint_activations=on), None, TEXT, 1).flops for on in ("auto", False)
            )
        assert (left > without) is more


def test_looks_count_held_out_text_and_tasks():
    held_out = {"held_out": "heldout", "held_out_rows": 10, "evaluate_every": 0.25}
    work = looks(SPEC, config(**held_out), None, TEXT)
    once = 10 * 2048 * flops_per_token(SPEC)
    assert work.flops == pytest.approx(5 * once)  # before, and after each quarter
    assert looks(SPEC, config(**held_out), SPEC, TEXT).flops == pytest.approx(10 * once)
    asked = looks(SPEC, config(**held_out, tasks=("arc_easy",), task_samples=50), None, TEXT)
    answered = evaluation_length(["arc_easy"], 50).read_tokens * flops_per_token(SPEC)
    assert asked.flops == pytest.approx(5 * (once + answered))
    assert looks(SPEC, config(), None, TEXT) == Work()


def test_checkpoints_take_at_most_a_twentieth_and_the_memory_of_the_estimate_stays():
    estimate = Work(flops=1.0, peak_memory_bytes=7, disk_bytes=0, devices=1)
    with on_cards():
        seldom, often = (
            timed(estimate, SPEC, config(checkpoint_seconds=seconds), None, {"data": TEXT})
            for seconds in (1e9, 0)
        )
        assert seconds_of(seldom) < seconds_of(often) < 1.06 * seconds_of(seldom) + 20
    assert seldom.peak_memory_bytes == 7


def test_cards_share_the_work_and_a_slow_link_makes_them_wait():
    def seconds(number, link, nodes=1):
        card = CARD.model_copy(update={"link_bytes_per_second": link})
        meeting = "first:29400" if nodes > 1 else None
        launch = Launch(processes=number // nodes, nodes=nodes, rendezvous=meeting)
        settings = config(launch=launch, micro_batch=4, checkpoint_activations=False)
        with planning_for(Machine(card=card, num_cards=number)):
            return seconds_of(timed(Work(devices=number), SPEC, settings, None, {"data": TEXT}))

    alone, eight, slow = seconds(1, 4.5e11), seconds(8, 4.5e11), seconds(8, 2e9)
    assert alone / 8 < eight < alone / 4
    assert slow > 2 * eight
    assert seconds(8, 4.5e11, nodes=2) >= eight  # the network between machines, not NVLink
