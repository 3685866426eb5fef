"""Which class is for what is transformers' to say."""

import subprocess
import sys

import pytest

from compress.models.task import in_words, task_of


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "causal-lm"),
        ({"model_type": "llama"}, "causal-lm"),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "causal-lm"),
        ({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}, "causal-lm"),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "classifier"),
        ({"model_type": "bert", "architectures": ["BertForTokenClassification"]}, "classifier"),
        ({"model_type": "mistral", "architectures": ["MistralModel"]}, "encoder"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "masked-lm"),
        ({"model_type": "bert"}, "masked-lm"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "encoder"),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}, "encoder"),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"]}, "masked-lm"),
        ({"model_type": "xlm-roberta"}, "masked-lm"),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForCausalLM"]}, "other"),
        (
            {"model_type": "xlm-roberta", "architectures": ["XLMRobertaForCausalLM"], "is_decoder": True},
            "causal-lm",
        ),
        ({"model_type": "mpnet", "architectures": ["MPNetModel"]}, "encoder"),
        ({"model_type": "modernbert", "architectures": ["ModernBertModel"]}, "encoder"),
        (
            {
                "model_type": "gemma3_text",
                "architectures": ["Gemma3TextModel"],
                "use_bidirectional_attention": True,
            },
            "encoder",
        ),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "other"),
        ({"model_type": "t5", "architectures": ["T5Model"]}, "other"),
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, "other"),
        ({"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}, "other"),
        ({"model_type": "bart", "architectures": ["BartForCausalLM"]}, "causal-lm"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "other"),
        ({"model_type": "llama", "architectures": ["SomebodysOwnLlama"]}, "causal-lm"),
        ({"model_type": "nobody_knows_it"}, "other"),
        ({"model_type": "nobody_knows_it", "architectures": ["NobodyForCausalLM"]}, "causal-lm"),
        ({"model_type": "llama", "architectures": None}, "causal-lm"),
    ],
    ids=str,
)
def test_a_checkpoint_is_for_what_its_class_is_for(config, task):
    assert task_of(config) == task


def test_the_tables_are_those_transformers_has_in_memory():
    from transformers.models.auto import modeling_auto

    from compress.models import task

    names = [f"MODEL_FOR_{name}_MAPPING_NAMES" for name in (*task.TEXT, "SEQ_TO_SEQ_CAUSAL_LM")]
    for name in (*names, "MODEL_MAPPING_NAMES"):
        theirs = getattr(modeling_auto, name)
        assert task._tables()[name] == {k: (v,) if isinstance(v, str) else v for k, v in theirs.items()}


def test_asking_imports_neither_torch_nor_transformers():
    ask = "import sys; from compress.models.task import task_of; task_of({'model_type': 'bert'})"
    heavy = "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    answer = subprocess.run(
        [sys.executable, "-c", f"{ask}\n{heavy}"], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_a_message_names_the_class():
    config = {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}
    assert in_words(config) == "an encoder without a head (XLMRobertaModel)"
    assert in_words({"model_type": "llama"}) == "a causal language model (llama)"
