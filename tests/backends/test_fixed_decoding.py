"""Decoding by a recorded step, against plain transformers, for every family."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from compress.backends import fixed_decoding
from compress.backends.cuda_graph import GraphSafety, check_graph_safe
from compress.backends.fixed_decoding import CannotRepeat, FixedDecoder
from compress.backends.huggingface import HuggingFaceBackend
from compress.backends.positions import positions
from tests.backends.recorded import Recorded, record
from tests.models.tiny import DECODERS, tiny_model, token_ids

WINDOWS = [
    ("gemma3_text", {"sliding_window": 8}),
    ("gemma3_text", {"sliding_window": 21}),
    ("gemma2", {"sliding_window": 8}),
    ("mistral", {"sliding_window": 8}),
    ("phi3", {"sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
]
NEW = 24


def left_padded():
    ids, mask = token_ids(3, 12), torch.ones(3, 12, dtype=torch.int64)
    for row, amount in ((1, 3), (2, 7)):
        ids[row, :amount], mask[row, :amount] = 0, 0
    return ids, mask


def by_transformers(model, ids, mask, new=NEW):
    written = model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0
    )
    return written[:, ids.shape[1] :]


def backend_of(model):
    """As it would be on a GPU: its steps are recorded and repeated."""
    backend = HuggingFaceBackend(model)
    backend._record = record
    return backend


def written(backend, ids, mask, new=NEW):
    return torch.cat(list(backend.greedy(ids, mask, new)), dim=1)


@pytest.mark.parametrize(("family", "changes"), [*((name, {}) for name in DECODERS), *WINDOWS])
def test_a_recorded_step_writes_what_transformers_writes(family, changes):
    model = tiny_model(family, **changes)
    ids, mask = left_padded()
    backend = backend_of(model)
    assert backend.prepare(3, 12 + NEW) == "CUDA graph"
    answers = written(backend, ids, mask)
    assert torch.equal(answers, by_transformers(model, ids, mask))
    (decoder,) = backend._prepared.values()
    assert decoder._graph.replays == NEW - 1
    whole, real = torch.cat([ids, answers], 1)[:, :-1], torch.cat([mask, torch.ones_like(answers)], 1)[:, :-1]
    with torch.no_grad():
        expected = model(whole, attention_mask=real, position_ids=positions(real)).logits[:, -1]
    logits = decoder._graph.last_of_width(expected.shape[1]).reshape_as(expected)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_second_prompt_finds_nothing_of_the_first():
    model = tiny_model("gemma3_text", sliding_window=8)
    backend = backend_of(model)
    backend.prepare(3, 12 + NEW)
    ids, mask = left_padded()
    other = token_ids(3, 12, seed=5)
    written(backend, ids, mask)
    every = torch.ones_like(other)
    assert torch.equal(written(backend, other, every), by_transformers(model, other, every))


def test_other_sizes_are_decoded_without_a_recording():
    backend = backend_of(tiny_model("llama"))
    backend.prepare(1, 40)
    ids, mask = left_padded()
    assert torch.equal(written(backend, ids, mask), by_transformers(backend.model, ids, mask))
    (decoder,) = backend._prepared.values()
    assert decoder._graph.replays == 0


def test_on_a_processor_nothing_is_prepared():
    backend = HuggingFaceBackend(tiny_model("llama"))
    assert backend.prepare(3, 12 + NEW) == ""
    assert not backend._prepared


def test_a_static_cache_of_transformers_cannot_be_repeated():
    """Why there is a cache of our own: theirs counts in Python, and a recording repeats its count."""
    model = tiny_model("mistral", sliding_window=8)
    ids = token_ids(1, 4)
    cache = StaticCache(config=model.config, max_cache_len=40)
    with torch.inference_mode():
        first = model(input_ids=ids, past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True)
        next_B1, position = first.clone(), torch.tensor([[4]])

        def step():
            output = model(input_ids=next_B1, position_ids=position, past_key_values=cache)
            next_B1.copy_(output.logits[:, -1].argmax(-1, keepdim=True))
            position.add_(1)

        recorded = Recorded()
        with recorded:
            step()
        with pytest.raises(IndexError, match="index 8 is out of bounds"):
            for _ in range(8):
                recorded.replay()


@pytest.mark.parametrize(
    ("what", "does"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("_local_scalar_dense", lambda x: bool(x.any())),
        ("nonzero", lambda x: x.nonzero()),
        ("index", lambda x: x[x > 0]),
        ("index_put", lambda x: x.__setitem__(x > 0, torch.ones(()))),
        ("cpu and meta in aten::_to_copy", lambda x: x.to("meta")),
        ("cpu and meta in aten::_to_copy", lambda x: x.sum().to("meta")),
        ("cpu and meta in aten::copy_", lambda x: torch.zeros(3, device="meta").copy_(x)),
    ],
)
def test_what_waits_for_the_device_or_leaves_it_is_not_recorded(what, does):
    x = torch.ones(3)
    with pytest.raises(CannotRepeat, match=what):
        check_graph_safe(lambda: does(x))


def test_what_stays_on_the_device_passes():
    x = torch.ones(3)
    with GraphSafety():
        x.add_(1).index_fill_(0, torch.zeros(1, dtype=torch.int64), 2.0)
        assert x[torch.tensor([0, 1])].shape == (2,)


def test_a_step_that_cannot_be_recorded_is_done_eagerly_and_says_why():
    model = tiny_model("llama")
    model.model.norm.register_forward_hook(lambda module, args, out: out * (1 if out.sum() > -1e9 else 0))
    backend = backend_of(model)
    assert backend.prepare(3, 12 + NEW) == "eager: a step waits for the device in aten::is_nonzero"
    ids, mask = left_padded()
    assert torch.equal(written(backend, ids, mask), by_transformers(model, ids, mask))


def test_a_cache_of_an_unknown_kind_is_not_recorded():
    model = tiny_model("llama")
    cache = DynamicCache(config=model.config)

    class Other(type(cache.layers[0])):
        pass

    with torch.inference_mode():
        model(input_ids=token_ids(1, 2), past_key_values=cache)
    cache.layers[0].__class__ = Other
    with pytest.raises(CannotRepeat, match="layers of type Other"):
        FixedDecoder(model, cache, 8, record)


def test_no_token_is_written_past_the_last_column():
    backend = backend_of(tiny_model("llama"))
    backend.prepare(1, fixed_decoding.ALIGNED)
    (decoder,) = backend._prepared.values()
    ids = token_ids(1, 5)
    logits, cache = backend.prefill(ids, torch.ones_like(ids))
    decoder.fill(cache, torch.ones_like(ids), logits.argmax(-1, keepdim=True))
    for _ in range(3):
        decoder.next()
    with pytest.raises(AssertionError, match="no column"):
        decoder.next()
