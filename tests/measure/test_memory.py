from compress.measure import memory


def test_memory_grows_from_loading_to_generating(original, context):
    config = memory.Config(batch_sizes=(1, 2), prompt_tokens=(4, 16), new_tokens=4)
    measured = {m.name: m for m in memory.measure(original, config, context())}
    assert measured.keys() == {"load_memory", "peak_memory", "peak_anonymous_memory"}
    assert 0 < measured["load_memory"].value <= measured["peak_memory"].value
    assert 0 < measured["peak_anonymous_memory"].value <= measured["peak_memory"].value
    assert all(m.unit == "bytes" and not m.higher_is_better for m in measured.values())
    assert "batch 2, 16 + 4 tokens" in measured["peak_memory"].note
