import pytest
import torch

from compress.backends.interface import HeadApart, OpenOptions
from compress.backends.opening import open_artifact
from compress.backends.remembered import Remembered
from compress.records import Artifact
from tests.models.tiny import token_ids, write_tiny


@pytest.fixture(scope="module", params=["llama", "gemma3_text", "qwen3", "bert", "distilbert"])
def model(request, tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("models") / request.param, request.param)
    return open_artifact(Artifact(key=request.param, kind="hf", path=folder), OpenOptions(device="cpu"))


@pytest.fixture
def remembered(model, monkeypatch):
    rows_ST = token_ids(4, 12, seed=5)
    states_STH = model.last_states(rows_ST, torch.ones_like(rows_ST))
    found = Remembered.of(model, rows_ST, states_STH[:3])
    asked = []
    read = model.logits_chunks
    monkeypatch.setattr(model, "logits_chunks", lambda *args: asked.append(1) or read(*args))
    return found, rows_ST, asked


def logits(backend, ids_BT, mask_BT, chunk=5):
    return torch.cat(list(backend.logits_chunks(ids_BT, mask_BT, chunk)), dim=1)


def test_a_known_row_has_the_same_logits_without_being_read(model, remembered):
    found, rows_ST, asked = remembered
    assert isinstance(model, HeadApart)
    rows_BT = rows_ST[[2, 0, 1]]
    mask_BT = torch.ones_like(rows_BT)
    kept = logits(found, rows_BT, mask_BT)
    assert not asked
    torch.testing.assert_close(kept, logits(model, rows_BT, mask_BT))


def test_the_batch_that_was_kept_has_the_same_bits(model):
    rows_ST = token_ids(4, 12, seed=5)
    mask_ST = torch.ones_like(rows_ST)
    found = Remembered.of(model, rows_ST, model.last_states(rows_ST, mask_ST))
    assert torch.equal(logits(found, rows_ST, mask_ST), logits(model, rows_ST, mask_ST))


def test_a_beginning_is_known_where_nothing_looks_ahead(model, remembered):
    found, rows_ST, asked = remembered
    rows_BT, mask_BT = rows_ST[:2].clone(), torch.ones_like(rows_ST[:2])
    rows_BT[1, 7:], mask_BT[1, 7:] = 0, 0
    kept = logits(found, rows_BT, mask_BT)
    looks_ahead = model.model.config.model_type in ("bert", "distilbert")
    assert bool(asked) == looks_ahead
    read = logits(model, rows_BT, mask_BT)
    torch.testing.assert_close(kept[0], read[0])
    torch.testing.assert_close(kept[1, :7], read[1, :7])


@pytest.mark.parametrize("side", ["unknown", "left", "last"])
def test_what_is_not_known_is_read(model, remembered, side):
    found, rows_ST, asked = remembered
    rows_BT, mask_BT = rows_ST[:2].clone(), torch.ones_like(rows_ST[:2])
    if side == "unknown":
        rows_BT[1, 3] += 1
    elif side == "left":
        mask_BT[1, :3] = 0
    else:
        rows_BT[1] = rows_ST[3]
    kept = logits(found, rows_BT, mask_BT)
    assert len(asked) == 1
    assert torch.equal(kept, logits(model, rows_BT, mask_BT))
