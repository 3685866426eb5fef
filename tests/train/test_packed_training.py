"""Training on rows of several texts, through the loop that all steps share."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from compress.data.batch import Batch
from compress.errors import InputError
from compress.models.checkpoint import quiet
from compress.train import attention
from compress.train.loop import fit
from compress.train.objective import NextToken
from compress.train.settings import TrainingSettings
from tests.fakes import FakeContext
from tests.models.tiny import tiny_model
from tests.train.inputs import SMALL, InMemory, countable_ids, no_account
from tests.train.test_attention import inputs_of_kernels

LENGTHS = [5, 8, 3]


class Packed(InMemory):
    """Rows of three texts each."""

    def learning_batch(self, indices) -> Batch:
        ids_BT = super().learning_batch(indices).ids
        return Batch(ids_BT, torch.cat([torch.arange(n) for n in LENGTHS]).expand_as(ids_BT))


DATA = Packed(countable_ids())


def train(student, folder, **settings):
    settings = TrainingSettings(tokens=16 * 8, batch_tokens=16 * 4, precision="fp32", **settings)
    return fit(NextToken(student), student, DATA, settings, FakeContext(folder, seed=7), no_account)


@pytest.mark.parametrize("recompute", [False, True])
def test_texts_of_a_row_are_computed_alone(recompute, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "SHORT_ROW", 0)
    with inputs_of_kernels() as seen:
        facts = train(tiny_model("llama", **SMALL), tmp_path, checkpoint_activations=recompute)
    assert facts["attention"] == "packed" and facts["bit_exact"]
    packed = [(query[2], mask) for query, _, mask, _ in seen if query[2] in LENGTHS]
    # 2 steps of 4 rows of 3 texts in 2 layers, each once more where activations are recomputed
    assert len(packed) == 2 * 4 * 3 * 2 * (2 if recompute else 1)
    assert all(mask is None for *_, mask, _ in seen) and all(query[2] < sum(LENGTHS) for query, *_ in seen)


def test_texts_that_see_each_other_are_one(tmp_path):
    with inputs_of_kernels() as seen:
        train(tiny_model("llama", **SMALL), tmp_path, attend_across_documents=True)
    assert sum(query[2] == sum(LENGTHS) for query, *_ in seen) == 2 * 2
    assert all(mask is None for *_, mask, _ in seen)


def test_a_model_that_reads_on_is_trained_on_one_text_a_row_or_not_at_all(tmp_path):
    with quiet():
        config = AutoConfig.for_model("bloom", vocab_size=259, hidden_size=16, n_layer=2, n_head=2)
        student = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="'bloom' does not read the texts of a row apart"):
        train(student, tmp_path / "apart")
    assert train(student, tmp_path / "together", attend_across_documents=True)["optimizer_steps"] == 2
