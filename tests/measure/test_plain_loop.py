"""From a text file to its figures, beside a loop of plain transformers, for tokenizers that begin a text otherwise."""

from math import log

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from compress.data import pack
from compress.measure import divergence
from compress.models.spec import read_spec
from compress.records import Artifact
from tests.data.test_row_starts import MARKS, TEXTS, by_hand, tokenizer_with
from tests.fakes import FakeContext

LENGTH = 9


def model(folder, marks, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = tokenizer_with(marks)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.4, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Artifact(key=folder.name, kind="hf", path=folder, spec=read_spec(folder))


@torch.no_grad()
def log_probabilities(artifact, rows):
    plain = AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32).eval()
    return plain(rows).logits[:, :-1].log_softmax(-1)


@pytest.mark.parametrize("name", [name for name in MARKS if name != "encoder"])
def test_perplexity_and_divergence_are_those_of_a_plain_loop(name, tmp_path):
    original, student = (model(tmp_path / str(seed), MARKS[name], seed) for seed in (0, 1))
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    source = {
        "source": "text",
        "settings": {"paths": [str(tmp_path / "text.txt")]},
        "sequence_length": LENGTH,
    }
    (tmp_path / "text").mkdir()
    pack.run(original, pack.Config(**source), FakeContext(tmp_path / "text"))
    text = Artifact(key="text", kind="tokens", path=tmp_path / "text")
    context = FakeContext(tmp_path / "out", inputs={"text": text, "original": original})
    found = {m.name: m.value for m in divergence.measure(student, divergence.Config(), context)}
    rows = torch.tensor(by_hand(MARKS[name], LENGTH)[0].astype("int64"))
    of_student, of_original = (log_probabilities(each, rows) for each in (student, original))
    nats = -of_student.gather(-1, rows[:, 1:, None]).mean()
    divergences = (of_original.exp() * (of_original - of_student)).sum(-1)
    assert log(found["perplexity"]) == pytest.approx(float(nats), abs=1e-5)
    assert found["kl_divergence"] == pytest.approx(float(divergences.mean()), abs=1e-5)
