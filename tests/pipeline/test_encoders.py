import pytest

from compress.digests import DigestMemo
from compress.errors import InputError
from compress.pipeline.planner import make_plan
from compress.pipeline.schema import load_pipeline

PIPELINE = """
version: 1
name: small
model:
  tokenizer: bytes
  config:
    {model_type: bert, architectures: [BertForMaskedLM], vocab_size: 259, hidden_size: 64, intermediate_size: 192,
     num_hidden_layers: 2, num_attention_heads: 4, max_position_embeddings: 128, type_vocab_size: 2}
data:
  calibration: {source: demo, split: calibration, sequence_length: 64, samples: 32}
  recovery: {source: demo, split: train, sequence_length: 64, samples: 32}
  heldout: {source: demo, split: heldout, sequence_length: 64, samples: 8}
"""
STEP = "steps: [{name: narrow, use: prune.width, target: {params: 60%}}]\n"
LLAMA = """
baselines:
  - name: rival
    tokenizer: bytes
    config:
      {model_type: llama, vocab_size: 259, hidden_size: 64, intermediate_size: 192, num_hidden_layers: 2,
       num_attention_heads: 4, max_position_embeddings: 128}
"""


@pytest.fixture
def plan(tmp_path):
    def make(text=STEP, **options):
        (tmp_path / "pipeline.yaml").write_text(PIPELINE + text)
        return make_plan(load_pipeline(tmp_path / "pipeline.yaml"), DigestMemo(tmp_path / "memo"), **options)

    return make


@pytest.mark.parametrize("rehearsal", [False, True])
def test_an_encoder_is_measured_by_all_but_answers(plan, rehearsal):
    measurements = [node.name for node in plan(rehearsal=rehearsal).nodes if node.role == "measurement"]
    assert measurements == [
        f"{model}/{what}" for model in ("original", "narrow") for what in ("divergence", "latency", "memory")
    ]


def test_an_encoder_may_be_asked_for_no_tasks(plan):
    without = plan("evaluate: {tasks: []}\n" + STEP)
    assert [node.name for node in without.models] == ["original", "narrow"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evaluate: {tasks: [world_facts]}\n" + STEP, "evaluate: tasks: 'original' .bert. is an encoder"),
        ("evaluate: {prompts: [Hello]}\n" + STEP, "evaluate: prompts: .*continues no text"),
        ("gates: {max_quality_drop: 0.1}\n" + STEP, "gates: max_quality_drop: .*max_kl_divergence"),
        ("steps: [{name: t, use: train, tokens: 1k}]", "learns the next token, and bert is an encoder"),
        ("steps: [{name: d, use: distill, tokens: 1k}]", "learns the next token, and bert is an encoder"),
        ("steps: [{name: e, use: export.onnx}]", "cannot write bert: it is an encoder"),
        (LLAMA + STEP, "'rival' .llama. writes text, the original only reads: they cannot be compared"),
    ],
)
def test_what_no_encoder_can_do_is_refused_when_the_plan_is_made(plan, text, message):
    with pytest.raises(InputError, match=message):
        plan(text)


def test_a_gate_on_divergence_is_none_of_them(plan):
    assert plan("gates: {max_kl_divergence: 0.1}\n" + STEP).nodes
