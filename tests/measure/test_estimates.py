"""What measuring is planned to take, against what it does."""

import pytest

from compress import cores
from compress.data.task_lengths import LENGTHS, UNKNOWN, TaskLength, evaluation_length
from compress.machine import Card, Machine, planning_for
from compress.measure import divergence, last_states, latency, memory, quality
from compress.models import effort
from compress.models.effort import flops_per_token, opened_bytes, writing
from compress.models.layout import spec_from_config
from compress.plugins import Measured, PlannedInputs, Text
from compress.speed import DISK_BYTES_PER_SECOND, seconds_of

LLAMA_8B = spec_from_config(
    {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 4096,
        "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "BF16",
)  # fmt: skip
H100 = Machine(
    card=Card(
        name="H100",
        memory_bytes=85 * 10**9,
        bf16_flops_per_second=989e12,
        memory_bytes_per_second=3.35e12,
        link_bytes_per_second=4.5e11,
    ),
    num_cards=1,
)
TEXT = {"text": Text(row_tokens=2048, rows=64)}


def measured(kind="hf", original=False):
    return Measured(kind, LLAMA_8B, {"original": LLAMA_8B} if original else {}, TEXT)


def test_a_forward_pass_takes_two_flops_a_weight_the_token_meets_and_attention():
    met = LLAMA_8B.num_parameters - 128_256 * 4096
    assert flops_per_token(LLAMA_8B, span=0) == 2 * met
    assert flops_per_token(LLAMA_8B, span=1000) == 2 * met + 4 * 32 * 4096 * 1000


def test_only_the_experts_that_are_asked_count():
    config = {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 1000, "hidden_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96,
    }  # fmt: skip
    spec = spec_from_config(config, "F32")
    idle = 2 * 6 * 3 * 64 * 96  # layers, experts, matrices
    assert flops_per_token(spec, span=0) == 2 * (spec.num_parameters - 1000 * 64 - idle)


def test_what_is_read_of_a_task_is_its_items_answers_and_examples():
    task = LENGTHS["piqa"]
    all_of_it = evaluation_length(["piqa"])
    assert all_of_it.read_tokens == task.items * task.rows * task.row_tokens
    some = evaluation_length(["piqa"], samples=100)
    assert some.read_tokens == 100 * task.rows * task.row_tokens and some.rows == 200
    assert evaluation_length(["of my own"], 100).rows == 100 * UNKNOWN.rows
    assert evaluation_length(["hellaswag", "of my own"], 100).rows == 800
    assert evaluation_length([]).rows == 0


def test_what_an_items_rows_begin_with_is_read_once():
    task = LENGTHS["hellaswag"]
    ending = task.row_tokens - task.shared_tokens
    read = evaluation_length(["hellaswag"], 100).read_tokens
    assert read == 100 * (task.shared_tokens + 4 * ending)
    assert evaluation_length(["hellaswag"], 100, few_shot=5).read_tokens == read + 100 * 5 * task.row_tokens
    # Solved examples stand before every row, also where nothing else is shared.
    row = LENGTHS["piqa"].row_tokens
    assert evaluation_length(["piqa"], 100, few_shot=5).read_tokens == 100 * (5 * row + 2 * row)
    short = {"mine": TaskLength(100, 4, 25, shared_tokens=15)}
    assert evaluation_length(["mine"], own=short).read_tokens == 100 * 4 * 25


def test_tasks_that_are_answered_in_words_take_every_token_by_itself():
    read, written = (
        quality.estimate(measured(), quality.Config(tasks=(task,), samples=640)) for task in ("race", "gsm8k")
    )
    assert written.num_calls > 20 * read.num_calls


def test_quality_grows_with_samples_and_reads_every_token_once():
    config = quality.Config(tasks=("mmlu", "arc_challenge", "hellaswag", "winogrande"), samples=1000)
    work = quality.estimate(measured(), config)
    length = evaluation_length(config.tasks, 1000)
    tokens, spared = length.read_tokens, length.read_tokens - length.asked_tokens
    assert 4e5 < tokens < 5e5 and spared > tokens / 2  # answers are short
    expected = tokens * flops_per_token(LLAMA_8B, span=0) - spared * 2 * 4096 * 128_256
    assert work.flops == pytest.approx(expected, rel=0.01)
    half = quality.estimate(measured(), config.model_copy(update={"samples": 500}))
    assert half.flops == pytest.approx(work.flops / 2)


def test_only_answers_pass_through_the_head():
    sentences = TaskLength(100, 2, 12)
    assert evaluation_length(["mine"], own={"mine": sentences}).asked_tokens == 100 * 2 * 12
    assert evaluation_length(["mmlu"], 100, few_shot=5).asked_tokens == 100


def test_divergence_reads_the_text_with_the_model_and_the_originals_head():
    alone = divergence.estimate(measured(), divergence.Config())
    beside = divergence.estimate(measured(original=True), divergence.Config())
    whole = 64 * 2048 * flops_per_token(LLAMA_8B, span=1024)
    assert alone.flops == pytest.approx(64 * 2048 * 2 * 4096 * 128_256)
    assert beside.flops == pytest.approx(whole + alone.flops)
    body = last_states.estimate(LLAMA_8B, last_states.Config(), PlannedInputs({}, TEXT))
    assert body.flops + alone.flops == pytest.approx(whole)
    assert body.disk_bytes == 2**31  # a gigabyte in bf16, two in fp32
    fewer = divergence.estimate(measured(), divergence.Config(sequences=16))
    assert fewer.flops == pytest.approx(alone.flops / 4)


def test_a_text_of_unknown_length_is_supposed_to_have_some():
    unknown = Measured("hf", LLAMA_8B, {}, {"text": Text(row_tokens=2048, rows=None)})
    assert divergence.estimate(unknown, divergence.Config()).flops > 0


def test_latency_reads_all_weights_for_every_token_of_every_round_of_both_models():
    config = latency.Config(batch_sizes=(1,), prompt_tokens=(1,), new_tokens=101, repeats=4, warm_up=1)
    alone = latency.estimate(measured(), config)
    written = 5 * 100 * opened_bytes(LLAMA_8B)
    assert alone.bytes_moved == pytest.approx(written, rel=0.05)
    assert latency.estimate(measured(original=True), config).bytes_moved == pytest.approx(
        2 * written, rel=0.05
    )
    assert memory.estimate(measured(), memory.Config(new_tokens=101)).bytes_moved < written


def test_single_tokens_on_a_card_wait_for_its_memory_where_they_are_recorded_and_else_for_python():
    config = latency.Config(batch_sizes=(1,), prompt_tokens=(1,), new_tokens=1001, repeats=1, warm_up=0)
    loading = LLAMA_8B.weight_bytes / DISK_BYTES_PER_SECOND
    with planning_for(H100):
        recorded = seconds_of(latency.estimate(measured(), config)) - loading
        eager = seconds_of(writing(LLAMA_8B, 1, 1, 1001))
    assert 5 < recorded < 9  # 6 ms a token: 16 GB at 2.7 TB/s
    assert 20 < eager < 40


def test_a_graph_is_run_by_the_processor_for_hours_where_a_card_takes_a_minute():
    config = quality.Config(tasks=("mmlu", "arc_challenge", "hellaswag", "winogrande"), samples=1000)
    with planning_for(H100):
        here, graph = (seconds_of(quality.estimate(measured(kind), config)) for kind in ("hf", "onnx"))
    assert here < 120 and 1.5 * 3600 < graph < 5 * 3600


def test_beside_a_graph_the_original_is_read_on_its_card_but_timed_on_the_processor(monkeypatch):
    monkeypatch.setattr(effort, "multiplies_bf16", lambda: True)
    with planning_for(H100):
        alone, beside = (divergence.estimate(measured("onnx", o), divergence.Config()) for o in (False, True))
        extra = seconds_of(beside) - seconds_of(alone)
        assert 5 < extra < seconds_of(alone) / 10  # the processor alone would take as long again
        assert alone.on_processor and beside.flops == alone.flops
        timed = latency.estimate(measured("onnx", original=True), latency.Config())
        assert timed.on_processor and timed.flops == 2 * latency.estimate(measured(), latency.Config()).flops


def test_a_processor_without_bf16_is_timed_in_it_all_the_same_and_takes_longer(monkeypatch):
    config = latency.Config()
    with planning_for(Machine()):
        monkeypatch.setattr(effort, "multiplies_bf16", lambda: True)
        fast = latency.estimate(measured(), config), memory.estimate(measured(), memory.Config())
        monkeypatch.setattr(effort, "multiplies_bf16", lambda: False)
        slow = latency.estimate(measured(), config), memory.estimate(measured(), memory.Config())
        for one, other in zip(fast, slow, strict=True):
            assert other.flops == 4 * one.flops and other.bytes_moved == one.bytes_moved
    with planning_for(H100):
        assert latency.estimate(measured(), config).flops == fast[0].flops


def test_what_a_processor_can_do_is_read_from_its_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "CPUINFO", tmp_path / "cpuinfo")
    for text, expected in (
        (None, True),
        ("processor: 0\nmodel name: nothing is told of it\n", True),
        ("processor: 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("processor: 0\nFeatures\t: fp asimd bf16\n", True),
    ):
        if text is not None:
            cores.CPUINFO.write_text(text)
        cores.multiplies_bf16.cache_clear()
        assert cores.multiplies_bf16() is expected
    cores.multiplies_bf16.cache_clear()


def test_of_a_family_that_is_not_known_the_head_is_what_the_configuration_says():
    unknown = LLAMA_8B.model_copy(update={"config": {"model_type": "new", "n_embd": 64, "vocab_size": 1000}})
    assert effort.head_parameters(unknown) == 64_000
    body = last_states.estimate(unknown, last_states.Config(), PlannedInputs({}, TEXT))
    assert 0 < body.flops < 64 * 2048 * flops_per_token(unknown)
