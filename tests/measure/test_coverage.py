"""A model of a smaller vocabulary beside its original: over all of the text, and how much of it that is."""

import json
import shutil

import pytest
import torch

from compress.backends.opening import open_artifact
from compress.measure import divergence
from compress.measure.segmentation import by_both, recut
from compress.meters.aligned import score_recut
from compress.meters.clusters import clustered_positive
from compress.meters.divergence import score_text
from compress.models.checkpoint import load_model, load_tokenizer
from compress.models.token_map import read_kept
from compress.records import Artifact
from tests.fakes import FakeContext
from tests.measure.test_segmentation import LENGTH, LOST, made, rows_of  # noqa: F401  the fixture
from tests.train.inputs import tokens


def measured(student, original, text, folder, **settings):
    context = FakeContext(folder, inputs={"text": text, "original": original})
    found = divergence.measure(student, divergence.Config(batch_size=8, **settings), context)
    return {m.name: m for m in found}, context


def tokenizers(original, student):
    return load_tokenizer(original.path), load_tokenizer(student.path)


def read_so_far(tokenizer, ids):
    """The text after each token, marks in it, and without what a row's beginning loses; none within a character."""
    texts = [tokenizer.decode(ids[: end + 1], clean_up_tokenization_spaces=False) for end in range(len(ids))]
    starts = [text.lstrip(LOST) for text in texts]
    return [None if text.endswith("\ufffd") or not text else text for text in starts]


def test_the_figure_is_of_every_place_where_both_have_read_the_same_text(made, tmp_path):  # noqa: F811
    original, student, text = made
    before, after = tokenizers(original, student)
    kept, rows = read_kept(student.path), rows_of(text)[:40]
    own_of = recut(rows.tolist(), before, after, kept)
    models = load_model(original.path), load_model(student.path)
    kl, same, num_recut = [], [], 0
    for theirs, row in zip(rows.tolist(), own_of, strict=True):
        with torch.no_grad():
            p, q = (
                model(input_ids=torch.tensor([ids])).logits[0].double()
                for model, ids in zip(models, (theirs, row.ids), strict=True)
            )
        p, q = p[:, kept].log_softmax(-1), q[:, : len(kept)].log_softmax(-1)
        own_texts, their_texts = read_so_far(after, row.ids), read_so_far(before, theirs)
        for j, wanted in enumerate(their_texts[:-1]):
            places = [i for i, found in enumerate(own_texts[:-1]) if found is not None and found == wanted]
            if row.agrees or places:
                i = j if row.agrees else places[-1]
                kl.append(float((p[j].exp() * (p[j] - q[i])).sum()))
                same.append(int(p[j].argmax()) == int(q[i].argmax()))
                num_recut += not row.agrees
    found, context = measured(student, original, text, tmp_path / "out", sequences=40)
    assert num_recut > 50
    assert found["kl_divergence"].n == found["same_top_token"].n == len(kl)
    assert found["kl_divergence"].value == pytest.approx(sum(kl) / len(kl), rel=1e-4)
    assert found["same_top_token"].value == pytest.approx(sum(same) / len(same))
    assert found["kl_coverage"].value == pytest.approx(len(kl) / rows[:, 1:].numel())
    assert not context.warnings and context.reports[-1][0] == context.reports[-1][1]


def test_of_rows_that_differ_early_most_is_compared(made, tmp_path):  # noqa: F811
    original, student, text = made
    rows = rows_of(text)
    cut = recut(rows.tolist(), *tokenizers(original, student), read_kept(student.path))
    early = rows[[row.num_alike < LENGTH // 3 and not row.agrees for row in cut]]
    assert len(early) > 5
    found, _ = measured(student, original, tokens(tmp_path / "early", early), tmp_path / "out")
    assert found["same_segmentation"].value < 0.3 and found["kl_coverage"].value > 0.7
    assert "0 of" in found["same_segmentation"].note
    share = 100 * found["same_segmentation"].value
    assert f"at {share:.3g}% in the same tokens" in found["kl_coverage"].note
    assert found["kl_divergence"].low < found["kl_divergence"].value < found["kl_divergence"].high


def test_where_the_history_is_the_same_a_model_does_not_diverge_from_itself(made):  # noqa: F811
    original, student, text = made
    before, after = tokenizers(original, student)
    kept, rows = read_kept(student.path), rows_of(text)
    reading = by_both(rows, before, after, kept, 64, len(rows))
    (batch,) = reading.recut
    models = [open_artifact(each) for each in (student, original)]
    _, apart = score_recut(*models, [batch], torch.tensor(kept))
    num_alike = {tuple(row.ids): row.num_alike for row in recut(rows.tolist(), before, after, kept)}
    own, mask = batch.own
    alike = [num_alike[tuple(ids[real.bool()].tolist())] for ids, real in zip(own, mask, strict=True)]
    place = sorted(map(tuple, batch.places.tolist()), key=lambda place: (place[1], place[0]))
    same = torch.tensor([i == j and j < alike[sequence] for sequence, i, j in place])
    assert 20 < same.sum() < len(same) - 20
    assert apart.kl[same].max() < 1e-5 and apart.same_top[same].all()
    assert apart.kl[~same].mean() > 1e-3  # random models hang on their tokens


def test_where_nothing_differs_the_figures_are_those_of_a_plain_pass_to_the_bit(made, tmp_path):  # noqa: F811
    original, student, text = made
    rows, kept = rows_of(text), read_kept(student.path)
    cut = recut(rows.tolist(), *tokenizers(original, student), kept)
    same = rows[[row.agrees for row in cut]]
    found, _ = measured(student, original, tokens(tmp_path / "same", same), tmp_path / "out")
    own = torch.tensor([row.ids for row in cut if row.agrees])
    models = [open_artifact(each) for each in (student, original)]
    batches = [(ids, torch.ones_like(ids)) for ids in own.split(8)]
    scores = score_text(models[0], batches, models[1], teacher_ids=torch.tensor(kept))
    kl = clustered_positive(scores.kl, scores.sequence)
    given = found["kl_divergence"]
    assert (given.value, given.low, given.high, given.n) == (kl.mean, kl.low, kl.high, kl.n)
    assert found["same_segmentation"].value == found["kl_coverage"].value == 1.0


def test_of_too_little_of_the_text_there_is_no_figure(made, tmp_path):  # noqa: F811
    original, student, text = made
    rows = rows_of(text)
    cut = recut(rows.tolist(), *tokenizers(original, student), read_kept(student.path))
    differing = rows[[not row.agrees for row in cut]]
    shutil.copytree(student.path, tmp_path / "short")
    config = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(json.dumps(config | {"max_position_embeddings": LENGTH // 2}))
    short = Artifact(key="short", kind="hf", path=tmp_path / "short", spec=student.spec)
    found, _ = measured(short, original, tokens(tmp_path / "text", differing), tmp_path / "out")
    assert set(found) == {"bits_per_byte", "same_segmentation", "kl_coverage"}
    assert 0 < found["kl_coverage"].value < 0.5
    assert "not comparable: divergence needs 50%" in found["kl_coverage"].note
