import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from compress import plugins
from compress.errors import HubUnavailable, InputError
from compress.machine import Machine, machine_named, planning_for
from compress.models import download
from compress.models.layout import spec_from_config
from compress.pipeline.scaffold import scaffold
from compress.pipeline.schema import load_pipeline
from compress.pipeline.vocabulary import vocabulary_parameters

SMALL = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 128,
    "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "max_position_embeddings": 256,
}  # fmt: skip

LARGE = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151936, "hidden_size": 4096,
    "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 40960, "dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    def write(config, name="My Model", tokenizer=False):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        tensors = spec_from_config(config, "F32").tensors
        save_file(
            {key: np.zeros(t.shape, np.float32) for key, t in tensors.items()}, folder / "model.safetensors"
        )
        if tokenizer:
            (folder / "tokenizer_config.json").write_text("{}")
        return folder

    return write


GEMMA = {
    "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "vocab_size": 262144, "hidden_size": 640,
    "intermediate_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 256, "max_position_embeddings": 32768, "sliding_window": 512, "tie_word_embeddings": True,
}  # fmt: skip
"""Gemma 3 270M: 63 % of it is its embedding."""


@pytest.fixture
def gemma(monkeypatch):
    config = download.Config(id="google/gemma-3-270m", commit="0" * 40, config=GEMMA)
    monkeypatch.setattr(download, "resolve", lambda repository, revision: config)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return spec_from_config(GEMMA, "BF16")


def outside(spec):
    return spec.num_parameters - vocabulary_parameters(spec)


@pytest.fixture
def hub(monkeypatch):
    config = download.Config(id="Qwen/Qwen3-8B", commit="0" * 40, config=LARGE)
    monkeypatch.setattr(download, "resolve", lambda repository, revision: config)


@pytest.fixture
def loaded(tmp_path):
    def load(text):
        (tmp_path / "mine.yaml").write_text(text)
        return load_pipeline(tmp_path / "mine.yaml")

    return load


def student(pipeline, spec):
    """The predicted model after the pruning steps, and every model that is quantized."""
    for step in pipeline.steps:
        if step.use.startswith("prune."):
            spec = plugins.step(step.use).predict(spec, step.config)
    return spec


def test_what_is_written_for_a_folder_loads_and_reaches_the_target(checkpoint, loaded):
    folder = checkpoint(SMALL)
    pipeline = loaded(scaffold(str(folder)))
    assert pipeline.name == "my-model-compressed"
    assert pipeline.model.path == folder
    spec = spec_from_config(SMALL, "F32")
    assert student(pipeline, spec).num_parameters == pytest.approx(0.5 * spec.num_parameters, rel=0.1)
    assert [step.use for step in pipeline.steps] == [
        "prune.width", "distill", "quantize.rtn", "quantize.rtn", "export.onnx",
    ]  # fmt: skip


def test_the_quantized_steps_and_rivals_can_be_made_of_the_predicted_models(checkpoint, loaded):
    pipeline = loaded(scaffold(str(checkpoint(SMALL))))
    spec = spec_from_config(SMALL, "F32")
    rtn = plugins.step("quantize.rtn")
    for step in pipeline.steps:
        if step.use == "quantize.rtn":
            rtn.predict(student(pipeline, spec), step.config)
    for baseline in pipeline.baselines:
        rtn.predict(spec, baseline.steps[-1].config)
    assert [baseline.steps[-1].config.bits for baseline in pipeline.baselines] == [8, 4]


def test_the_folder_is_found_from_wherever_the_file_is_put(checkpoint, loaded, monkeypatch):
    folder = checkpoint(SMALL)
    monkeypatch.chdir(folder.parent)
    assert loaded(scaffold("My Model")).model.path == folder


def test_a_folder_without_tokenizer_gets_the_one_of_bytes_and_is_told_so(checkpoint, loaded):
    text = scaffold(str(checkpoint(SMALL)))
    assert loaded(text).model.tokenizer == "bytes"
    assert "the folder has no tokenizer: every byte of text is a token" in text


def test_a_folder_with_a_tokenizer_keeps_it(checkpoint, loaded):
    assert loaded(scaffold(str(checkpoint(SMALL, tokenizer=True)))).model.tokenizer is None


def test_a_vocabulary_too_small_for_bytes_is_refused(checkpoint):
    with pytest.raises(InputError, match=r"has no tokenizer, and its vocabulary of 100 is too small"):
        scaffold(str(checkpoint({**SMALL, "vocab_size": 100})))


def test_a_hub_model_is_sized_from_its_configuration_alone(hub, loaded):
    with planning_for(machine_named("h100-80gb")):
        pipeline = loaded(scaffold("Qwen/Qwen3-8B", "4.0B"))
    assert (pipeline.model.id, pipeline.model.family) == ("Qwen/Qwen3-8B", "qwen3")
    assert [step.use for step in pipeline.steps][:3] == ["prune.depth", "prune.width", "distill"]
    assert student(pipeline, spec_from_config(LARGE, "BF16")).num_parameters == pytest.approx(4e9, rel=0.05)
    assert 3e7 < pipeline.steps[2].config.tokens < 3e8
    assert pipeline.data["recovery"].sequence_length == 2048
    assert pipeline.steps[3].config.group_size == 128


def test_a_small_model_is_given_minutes_and_no_longer_sequence_than_it_reads(checkpoint, loaded):
    pipeline = loaded(scaffold(str(checkpoint({**SMALL, "max_position_embeddings": 48}))))
    assert {source.sequence_length for source in pipeline.data.values()} == {48}
    assert pipeline.profile.prompt_tokens[0] + pipeline.profile.new_tokens <= 48
    assert pipeline.steps[1].config.tokens <= 2_000_000


def test_sizes_that_no_group_divides_leave_integers_out_and_say_why(checkpoint, loaded):
    odd = {
        **SMALL,
        "hidden_size": 72,
        "intermediate_size": 200,
        "num_attention_heads": 9,
        "num_key_value_heads": 9,
    }
    text = scaffold(str(checkpoint(odd)), "97%")
    pipeline = loaded(text)
    assert not pipeline.baselines
    assert "quantize.rtn" in text


@pytest.mark.parametrize(
    ("model", "target", "message"),
    [("small", "half", "expected a number of parameters like 4.0B or 350M, or a share like 50%"),
     ("small", "9B", "is more than the parent's"), ("small", "0.1%", "raise the target"),
     ("./nowhere", "50%", "does not exist")],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_in_words(checkpoint, model, target, message):
    folder = checkpoint(SMALL) if model == "small" else model
    with pytest.raises(InputError) as raised:
        scaffold(str(folder), target)
    assert message in str(raised.value)


def test_a_path_that_yaml_would_misread_is_quoted(checkpoint, loaded):
    folder = checkpoint(SMALL, name="a: b #c")
    assert loaded(scaffold(str(folder))).model.path == folder


def test_every_line_is_fit_to_be_read_by_a_person(checkpoint):
    text = scaffold(str(checkpoint(SMALL)))
    lines = text.splitlines()
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert all(line == line.rstrip() for line in lines)
    assert sum("#" in line for line in lines) > len(lines) / 3


def test_a_known_model_of_the_hub_is_sized_offline_and_the_file_says_so(monkeypatch, loaded):
    def away(*_):
        raise HubUnavailable("the hub cannot be reached")

    monkeypatch.setattr(download, "resolve", away)
    text = scaffold("Qwen/Qwen3-8B")
    assert "The hub was not asked" in text and loaded(text).model.id == "Qwen/Qwen3-8B"
    with pytest.raises(HubUnavailable):
        scaffold("owner/unknown")


def test_a_large_vocabulary_is_cut_first_and_a_share_is_of_the_rest(gemma, loaded):
    with planning_for(Machine()):
        text = scaffold("google/gemma-3-270m", "60%")
    pipeline = loaded(text)
    assert [step.use for step in pipeline.steps][:4] == [
        "prune.vocab",
        "prune.depth",
        "prune.width",
        "distill",
    ]
    assert pipeline.steps[0].config.corpus == "recovery"
    left = student(pipeline, gemma)
    assert left.config["vocab_size"] == 32_000
    assert outside(left) == pytest.approx(0.6 * outside(gemma), rel=0.03)
    assert "of the parameters outside embedding and head" in text


def test_what_recovery_follows_is_not_timed_and_all_else_is_measured_whole(gemma, loaded):
    steps = loaded(scaffold("google/gemma-3-270m", "60%")).steps
    midway = [step.name for step in steps if set(step.measure) == {"quality", "divergence"}]
    assert midway == ["vocabulary", "shorten", "narrow"]
    assert all("latency" in step.measure for step in steps if step.name not in midway)


def test_all_groups_are_of_one_size_so_that_no_rival_is_measured_twice(gemma, loaded):
    pipeline = loaded(scaffold("google/gemma-3-270m", "60%"))
    quantized = [*pipeline.steps, *(rival.steps[-1] for rival in pipeline.baselines)]
    sizes = {step.config.group_size for step in quantized if step.use == "quantize.rtn"}
    assert len(sizes) == 1 and sizes.pop() >= 32


@pytest.mark.parametrize(
    ("target", "uses"), [("100M", ["prune.vocab", "prune.width"]), ("200M", ["prune.vocab"])]
)
def test_a_number_is_the_whole_of_what_is_left(gemma, loaded, target, uses):
    pipeline = loaded(scaffold("google/gemma-3-270m", target))
    assert [step.use for step in pipeline.steps if step.use.startswith("prune.")] == uses
    assert student(pipeline, gemma).num_parameters == pytest.approx(float(target[:-1]) * 1e6, rel=0.02)


def test_a_small_vocabulary_and_one_that_cannot_be_rewritten_are_left_alone(checkpoint, hub, loaded):
    for model in (str(checkpoint({**GEMMA, "num_hidden_layers": 1}, tokenizer=True)), "Qwen/Qwen3-8B"):
        assert "prune.vocab" not in [step.use for step in loaded(scaffold(model)).steps]


def test_two_cores_are_given_what_they_do_in_a_while_and_a_card_more(gemma, loaded):
    figures = {}
    for name in ("cpu", "h100-80gb"):
        with planning_for(machine_named(name)):
            figures[name] = loaded(scaffold("google/gemma-3-270m", "60%"))
    (cpu, card) = figures.values()
    tokens, many = (next(s for s in p.steps if s.use == "distill").config.tokens for p in (cpu, card))
    assert 50_000 <= tokens <= 500_000 < many
    assert 256 <= cpu.data["recovery"].sequence_length <= 512 < card.data["recovery"].sequence_length
    assert cpu.evaluate.samples < card.evaluate.samples and cpu.profile.batch_sizes == (1,)


def test_the_file_says_how_long_it_takes_and_what_would_be_better(gemma):
    with planning_for(Machine()):
        text = scaffold("google/gemma-3-270m", "60%", timed=lambda _: {"original": 600.0, "recover": 1200.0})
    head = " ".join(line.removeprefix("#").strip() for line in text.partition("version:")[0].splitlines())
    assert "this machine: 2 processor cores" in head
    assert "about 30 min in all, 20 min of it recovery" in head
    assert "would be better, and take" in head and "days here" in head


def test_ones_own_texts_are_learned_from_and_every_tenth_is_held_out(checkpoint, loaded, tmp_path):
    folder = tmp_path / "mine"
    (folder / "more").mkdir(parents=True)
    for name in ("a.txt", "more/b.md", "c.jpg"):
        (folder / name).write_text("\n\n".join(f"text {number}" for number in range(8)))
    pipeline = loaded(scaffold(str(checkpoint(SMALL)), texts=[str(folder)]))
    read = {name: (data.source, data.settings.split) for name, data in pipeline.data.items()}
    assert read == {name: ("text", "heldout" if name == "heldout" else "train") for name in read}
    paths = tuple(str(folder / name) for name in ("a.txt", "more/b.md"))
    assert {data.settings.paths for data in pipeline.data.values()} == {paths}
    assert pipeline.evaluate.tasks == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [("tetx.txt", r"did you mean 'text.txt'"), ("empty", r"no file in this folder ends in \.txt or \.md"),
     ("text.txt", r"fewer than 10 texts, parted by blank lines")],
)  # fmt: skip
def test_texts_that_cannot_be_learned_from_are_refused(checkpoint, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("one\n\ntwo")
    with pytest.raises(InputError, match=message):
        scaffold(str(checkpoint(SMALL)), texts=[str(tmp_path / name)])


def test_groups_that_do_not_divide_what_was_pruned_are_refused_with_the_setting_to_change(gemma):
    width, rtn = plugins.step("prune.width"), plugins.step("quantize.rtn")
    half = {"target": {"params": "50%"}}
    with pytest.raises(InputError, match=r"divide the 320 inputs.*`align: \{hidden: 128, ffn: 128\}`"):
        rtn.predict(width.predict(gemma, width.Config(**half)), rtn.Config(group_size=128))
    aligned = width.predict(gemma, width.Config(**half, align={"hidden": 128, "ffn": 128}))
    assert rtn.predict(aligned, rtn.Config(group_size=128)).weight_bytes < aligned.weight_bytes
