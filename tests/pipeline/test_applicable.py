import pytest
import torch

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


def test_an_encoder_may_be_asked_for_no_tasks(plan):
    without = plan("evaluate: {tasks: []}\n" + STEP)
    assert [node.name for node in without.models] == ["original", "narrow"]


@pytest.mark.parametrize("rehearsal", [False, True])
def test_an_encoder_is_measured_by_all_but_answers(plan, rehearsal):
    made = plan(rehearsal=rehearsal)
    measurements = [node.name for node in made.nodes if node.role == "measurement"]
    assert made.remarks[0].startswith("the original is a masked language model (BertForMaskedLM); no quality")
    assert measurements == [
        f"{model}/{what}" for model in ("original", "narrow") for what in ("divergence", "latency", "memory")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "evaluate: {tasks: [world_facts]}\n" + STEP,
            "evaluate: tasks: 'original' is a masked language model .BertForMaskedLM.: it answers no",
        ),
        ("evaluate: {prompts: [Hello]}\n" + STEP, "evaluate: prompts: .*continues no text"),
        (
            "gates: {max_quality_drop: 0.1}\n" + STEP,
            "gates: max_quality_drop: .*measured by divergence, latency and memory",
        ),
        (
            "steps: [{name: t, use: train, tokens: 1k}]",
            "learns the next token, and this model is a masked language model",
        ),
        (
            "steps: [{name: d, use: distill, tokens: 1k}]",
            "learns the next token, and this model is a masked language model",
        ),
        ("steps: [{name: e, use: export.onnx}]", "cannot write bert: it is an encoder"),
        (
            STEP.replace("use:", "measure: [latency, quality], use:"),
            "pipeline.yaml:13:9: step 'narrow': measure: .*answers no tasks",
        ),
        (
            LLAMA + STEP,
            "'rival' is a causal language model .llama., the original a masked .*: they cannot be compared",
        ),
    ],
)
def test_what_no_encoder_can_do_is_refused_when_the_plan_is_made(plan, text, message):
    with pytest.raises(InputError, match=message):
        plan(text)


def test_a_gate_on_divergence_is_none_of_them(plan):
    assert plan("gates: {max_kl_divergence: 0.1}\n" + STEP).nodes


def checkpoint(folder, model_type, architecture, **changes):
    """Write a tiny checkpoint of a class of transformers', with the tokenizer of plain bytes."""
    import transformers

    from compress.data.tokenizer import _bytes, save

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.AutoConfig.for_model(
        model_type, vocab_size=259, max_position_embeddings=128, **sizes, **changes
    )
    getattr(transformers, architecture)(config).save_pretrained(folder)
    save(_bytes(), folder)
    return folder


@pytest.fixture
def plan_of(tmp_path):
    def make(folder, steps, also=""):
        text = PIPELINE[PIPELINE.index("data:") :]
        head = f"version: 1\nname: small\nmodel: {{path: {folder}}}\n{also}"
        (tmp_path / "pipeline.yaml").write_text(f"{head}{text}steps: [{steps}]\n")
        return make_plan(load_pipeline(tmp_path / "pipeline.yaml"), DigestMemo(tmp_path / "memo"))

    return make


HALF = "{name: half, use: quantize.bitsandbytes, bits: 4}"


@pytest.mark.parametrize(
    ("model_type", "architecture", "words"),
    [
        ("xlm-roberta", "XLMRobertaModel", "an encoder without a head .XLMRobertaModel."),
        ("bert", "BertModel", "an encoder without a head .BertModel."),
        ("bert", "BertForSequenceClassification", "a classifier .BertForSequenceClassification."),
        ("llama", "LlamaForSequenceClassification", "a classifier .LlamaForSequenceClassification."),
        ("llama", "LlamaModel", "an encoder without a head .LlamaModel."),
    ],
)
def test_what_predicts_no_tokens_gets_no_perplexity(plan_of, tmp_path, model_type, architecture, words):
    folder = checkpoint(tmp_path / "model", model_type, architecture)
    with pytest.raises(InputError, match=f"this model is {words}; only language models can be"):
        plan_of(folder, "{name: narrow, use: prune.width, target: {params: 60%}}")
    with pytest.raises(InputError, match=f"max_kl_divergence: 'original' is {words}: it predicts no tokens"):
        plan_of(folder, HALF, "gates: {max_kl_divergence: 0.1}\n")


def test_a_body_alone_is_planned_to_be_measured_by_speed_and_memory(plan_of, tmp_path, monkeypatch):
    # A step that takes any model: those there are ask for a language model.
    monkeypatch.setattr("compress.quantize.bitsandbytes.chosen_modules", lambda spec, skipped: ())
    made = plan_of(checkpoint(tmp_path / "model", "xlm-roberta", "XLMRobertaModel"), HALF)
    measured = [node.name for node in made.nodes if node.role == "measurement"]
    assert measured == [f"{model}/{what}" for model in ("original", "half") for what in ("latency", "memory")]
    told = "the original is an encoder without a head (XLMRobertaModel); no"
    assert [line[: len(told) + 11].strip() for line in made.remarks] == [
        f"{told} quality is",
        f"{told} divergence",
    ]


def test_a_translator_is_refused(plan_of, tmp_path):
    folder = checkpoint(tmp_path / "model", "bart", "BartForConditionalGeneration", d_model=32)
    with pytest.raises(InputError, match=r"no language model, classifier or encoder .BartForCond"):
        plan_of(folder, HALF)


def test_a_body_alone_is_measured_by_its_speed_and_memory(tmp_path):
    from compress.backends.interface import Encoder, OpenOptions
    from compress.backends.opening import open_artifact
    from compress.records import Artifact

    folder = checkpoint(tmp_path / "model", "xlm-roberta", "XLMRobertaModel")
    opened = open_artifact(Artifact(key="key", kind="hf", path=folder), OpenOptions(device="cpu"))
    assert isinstance(opened, Encoder) and opened.num_positions == 126
    ids = torch.ones(1, 5, dtype=torch.int64)
    assert opened.encode(ids, ids).shape == (1, 5, 32)
    with pytest.raises(
        InputError, match=r"an encoder without a head .XLMRobertaModel.: it predicts no tokens"
    ):
        next(opened.logits_chunks(ids, ids))
