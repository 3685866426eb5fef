"""The contract every runtime keeps, whatever computes: one behaviour a test, one artifact a kind."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress import plugins
from compress.backends.interface import Encoder, OpenOptions
from compress.backends.opening import backend_modules, open_artifact
from compress.errors import InputError
from compress.models.checkpoint import load_model, quiet
from compress.records import Artifact
from tests.backends.test_prefixes import NUM_SHARED, both_ways, rows_of
from tests.fakes import FakeContext
from tests.models.tiny import DECODERS, ENCODERS, token_ids, write_tiny

MAKERS = {
    "hf": None,
    "packed": ("quantize.rtn", {"bits": 4, "group_size": 16}),
    "bitsandbytes": ("quantize.bitsandbytes", {"bits": 4}),
    "onnx": ("export.onnx", {}),
}
"""The step, and its settings, that make an artifact of a kind out of an `hf` one."""

pytestmark = pytest.mark.filterwarnings("ignore:Failed to load CPU gemm_4bit_forward")


def test_every_kind_a_runtime_opens_is_tested_here():
    assert {kind for module in backend_modules().values() for kind in module.KINDS} == set(MAKERS)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Artifact:
    folder = write_tiny(tmp_path_factory.mktemp("original"), "qwen3", num_hidden_layers=2)
    return Artifact(key="original", kind="hf", path=folder)


@pytest.fixture(scope="module", params=MAKERS)
def artifact(request, original, tmp_path_factory) -> Artifact:
    if MAKERS[request.param] is None:
        return original
    name, settings = MAKERS[request.param]
    step = plugins.step(name)
    folder = tmp_path_factory.mktemp(request.param)
    step.run(original, step.Config(**settings), FakeContext(folder))
    return Artifact(key=request.param, kind=request.param, path=folder)


@pytest.fixture(scope="module")
def backend(artifact):
    return open_artifact(artifact, OpenOptions(device="cpu", num_threads=1))


@pytest.fixture(scope="module")
def reference(artifact, original):
    """Plain transformers: of the artifact where it can read it, else of what the artifact was exported from."""
    with quiet():
        return AutoModelForCausalLM.from_pretrained(
            original.path if artifact.kind == "onnx" else artifact.path
        ).eval()


def dense(backend, ids: torch.Tensor, mask: torch.Tensor | None = None, chunk: int = 256) -> torch.Tensor:
    return torch.cat(
        list(backend.logits_chunks(ids, torch.ones_like(ids) if mask is None else mask, chunk)), dim=1
    )


def left_padded(ids: torch.Tensor, amounts: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Move each row right by its amount, into `width` columns: ``(ids, mask)``; the tail is right padding."""
    padded = torch.zeros(len(ids), width, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for row, amount in enumerate(amounts):
        padded[row, amount : amount + ids.shape[1]] = ids[row]
        mask[row, amount : amount + ids.shape[1]] = 1
    return padded, mask


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_chunked_logits_are_the_models_logits(backend, reference):
    ids = token_ids()
    with torch.no_grad():
        expected = reference(ids).logits
    assert expected.std() > 0.5  # not flat: a wrong layer would show
    assert dense(backend, ids).dtype == torch.float32
    assert_same(dense(backend, ids), expected)


@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_the_size_of_a_chunk_changes_nothing(backend, chunk):
    assert_same(dense(backend, token_ids(), chunk=chunk), dense(backend, token_ids()))


def test_a_chunk_holds_no_more_positions_than_asked(backend):
    ids = token_ids()
    sizes = [logits.shape[1] for logits in backend.logits_chunks(ids, torch.ones_like(ids), 8)]
    assert sizes == [8, 8, 4]


@pytest.mark.parametrize("chunk", [6, 256])
def test_padding_on_either_side_changes_no_real_position(backend, chunk):
    ids = token_ids()
    padded, mask = left_padded(ids, [0, 3, 9], width=ids.shape[1] + 9)
    actual = dense(backend, padded, mask, chunk)[mask.bool()]
    assert_same(actual, dense(backend, ids).flatten(0, 1))


def test_prefill_and_decode_continue_to_the_same_logits_as_reading_at_once(backend):
    ids = token_ids()
    padded, mask = left_padded(ids, [0, 3, 9], width=ids.shape[1] + 9)
    rows = torch.tensor([[0], [3], [9]])
    expected = dense(backend, ids)
    # Rows end at different places, so each is read up to its own end by shifting it to the right edge.
    padded = torch.stack([row.roll(9 - int(shift)) for row, shift in zip(padded, rows, strict=True)])
    mask = torch.stack([row.roll(9 - int(shift)) for row, shift in zip(mask, rows, strict=True)])
    last, cache = backend.prefill(padded[:, :-3], mask[:, :-3])
    assert_same(last, expected[:, -4])
    for back in (3, 2, 1):
        stop = padded.shape[1] - back + 1
        last, cache = backend.decode(padded[:, stop - 1 : stop], mask[:, :stop], cache)
        assert_same(last, expected[:, -back])


@pytest.mark.parametrize("chunk", [7, 256])
def test_rows_that_go_on_from_prefixes_have_the_logits_of_whole_rows(backend, chunk):
    assert backend.shares_prefixes
    assert_same(*both_ways(backend, rows_of(), NUM_SHARED, chunk))


def test_generation_with_a_cache_picks_what_reading_anew_picks(backend):
    ids = token_ids(2, 6)
    prompt, mask = left_padded(ids[:, :6], [0, 0], width=6)
    prompt[1, :2], mask[1, :2] = 0, 0
    generated = backend.generate(prompt, mask, new_tokens=6)
    for _ in range(6):
        following = dense(backend, prompt, mask)[:, -1].argmax(-1, keepdim=True)
        prompt, mask = torch.cat([prompt, following], 1), torch.cat([mask, torch.ones_like(following)], 1)
    assert torch.equal(generated, prompt[:, -6:])


def test_token_log_probs_are_the_log_softmax_of_the_logits(backend):
    ids = token_ids()
    log_probs, greedy = backend.token_log_probs(ids, torch.ones_like(ids))
    expected = dense(backend, ids)[:, :-1].log_softmax(-1)
    assert_same(log_probs[:, 1:], expected.gather(-1, ids[:, 1:, None])[..., 0])
    assert torch.equal(greedy[:, 1:], expected.argmax(-1) == ids[:, 1:])


def test_a_runtime_says_what_computes_and_how_much_it_can_read(backend):
    assert any(name in backend.runtime for name in ("torch", "onnxruntime"))
    assert (backend.vocabulary, backend.num_positions) == (259, 512)


def test_a_kind_no_runtime_opens_is_refused(original):
    with pytest.raises(
        InputError, match=r"no runtime opens .* 'tokens'. Allowed: bitsandbytes, hf, onnx, packed"
    ):
        open_artifact(original.model_copy(update={"kind": "tokens"}))


def test_opening_eight_bit_weights_says_nothing_at_every_call(original, tmp_path, caplog):
    step = plugins.step("quantize.bitsandbytes")
    step.run(original, step.Config(bits=8), FakeContext(tmp_path))
    backend = open_artifact(Artifact(key="int8", kind="bitsandbytes", path=tmp_path))
    dense(backend, token_ids())
    assert not caplog.records


@pytest.mark.parametrize("family", DECODERS)
def test_every_familys_logits_are_those_of_transformers(family, tmp_path):
    opened = open_artifact(Artifact(key="f", kind="hf", path=write_tiny(tmp_path, family)))
    with torch.no_grad():
        expected = load_model(tmp_path)(token_ids()).logits
    assert_same(dense(opened, token_ids(), chunk=7), expected)
    assert_same(opened.prefill(token_ids(), torch.ones(3, 20, dtype=torch.int64))[0], expected[:, -1])


def test_what_bends_logits_after_the_head_is_part_of_them(tmp_path):
    folder = write_tiny(tmp_path, "gemma2", final_logit_softcapping=0.1)
    assert dense(open_artifact(Artifact(key="g", kind="hf", path=folder)), token_ids()).abs().max() <= 0.1


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_reads_and_writes_nothing(family, tmp_path):
    opened = open_artifact(Artifact(key="e", kind="hf", path=write_tiny(tmp_path, family)))
    assert isinstance(opened, Encoder) and opened.num_positions == 512
    ids = token_ids()
    padded = torch.cat([ids, torch.full((3, 4), 1)], dim=1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(3, 4, dtype=torch.int64)], dim=1)
    model = load_model(tmp_path)
    with torch.no_grad():
        expected = model(ids)
        states = model.base_model(ids).last_hidden_state
    assert_same(dense(opened, ids, chunk=7), expected.logits)
    assert_same(dense(opened, padded, mask)[:, :20], expected.logits)
    assert_same(opened.encode(padded, mask)[:, :20], states)
    longest = torch.full((1, opened.num_positions), 5)
    assert dense(opened, longest).shape == (1, 512, 259)
    with pytest.raises(InputError, match="an encoder continues no text"):
        opened.generate(ids, torch.ones_like(ids), new_tokens=1)


@pytest.mark.parametrize("hidden", [36, 80])
def test_four_bit_layers_of_any_width_run(hidden, tmp_path):
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 50,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    original = Artifact(key="original", kind="hf", path=write_tiny(tmp_path / "original", "llama", **sizes))
    step, folder = plugins.step("quantize.bitsandbytes"), tmp_path / "student"
    step.run(original, step.Config(bits=4), FakeContext(folder))
    opened = open_artifact(Artifact(key="s", kind="bitsandbytes", path=folder), OpenOptions(device="cpu"))
    ids_BT = token_ids(2, 6)
    (chunk_BTV,) = opened.logits_chunks(ids_BT, torch.ones_like(ids_BT))
    with torch.inference_mode():
        exact_BTV = load_model(original.path)(input_ids=ids_BT).logits
    assert 1e-4 < float((chunk_BTV.float() - exact_BTV.float()).norm() / exact_BTV.float().norm()) < 0.7
