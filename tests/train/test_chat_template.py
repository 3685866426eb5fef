"""A tuned model can be spoken to in the template it was tuned with."""

import json

import pytest
from transformers import AutoTokenizer

from compress.distill import step as distill
from compress.train import step
from tests.data.chats import MESSAGES, PLAIN
from tests.train.inputs import context, parent

OTHER = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
CONFIG = {"tokens": 16 * 4, "batch_tokens": 16 * 4}


@pytest.fixture
def model(tmp_path):
    return parent(tmp_path / "parent")


def tuned(model, tmp_path, template=PLAIN, module=step):
    """Train on data written with a template; return the result's tokenizer and the warnings."""
    given = context(tmp_path / "result", teacher=model)
    if template is not None:
        (given.inputs["data"].path / "chat_template.jinja").write_text(template)
    module.run(model, module.Config(**CONFIG), given)
    return AutoTokenizer.from_pretrained(tmp_path / "result"), given.warnings


@pytest.mark.parametrize("module", [step, distill], ids=["train", "distill"])
def test_a_model_without_a_template_gets_that_of_its_data(model, tmp_path, module):
    tokenizer, warnings = tuned(model, tmp_path, module=module)
    text = tokenizer.apply_chat_template(list(MESSAGES), tokenize=False, add_generation_prompt=True)
    assert text.startswith("<s>system\nBe brief.</s>\n") and text.endswith("<s>assistant\n")
    assert warnings == []


def test_a_model_with_another_template_gets_that_of_its_data_and_a_warning(model, tmp_path):
    settings = json.loads((model.path / "tokenizer_config.json").read_text())
    (model.path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": OTHER}))
    tokenizer, warnings = tuned(model, tmp_path)
    assert tokenizer.chat_template == PLAIN
    assert len(warnings) == 1 and "in place of its parent's own" in warnings[0]


def test_a_model_with_several_templates_and_this_among_them_keeps_them(model, tmp_path):
    settings = json.loads((model.path / "tokenizer_config.json").read_text())
    several = [{"name": "default", "template": PLAIN}, {"name": "tools", "template": OTHER}]
    (model.path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": several}))
    tokenizer, warnings = tuned(model, tmp_path)
    assert tokenizer.chat_template == {"default": PLAIN, "tools": OTHER}
    assert warnings == []


def test_data_without_a_template_leaves_the_model_its_own(model, tmp_path):
    (model.path / "chat_template.jinja").write_text(OTHER)
    tokenizer, warnings = tuned(model, tmp_path, template=None)
    assert tokenizer.chat_template == OTHER and warnings == []
