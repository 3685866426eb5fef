"""Refitting what stays: what it must leave alone, what must get better, and that stopping it changes nothing."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from compress import plugins
from compress.models.checkpoint import load_model, quiet
from compress.models.family import option
from compress.models.layerwise import LayerwiseModel
from compress.models.layout import layout
from compress.models.spec import read_spec
from compress.prune import compensation
from compress.prune.compensation import Compensation, Strength
from compress.prune.scratch import Scratch
from compress.prune.slicing import write_pruned
from tests.fakes import FakeContext, Stopped
from tests.models.tiny import (
    DECODERS,
    FAMILIES,
    tiny_config,
    tiny_model,
    token_ids,
    variant_name,
    write_tiny,
)
from tests.prune.checkpoints import parent_of, prepared_context, pruned, tiny_parent
from tests.prune.test_families import (
    change_stored,
    in_fp64,
    narrowings,
    norms_queries,
    random_kept,
    silence,
    without_hidden,
)

PARTICULAR = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("qwen3", {"attention_bias": True}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("olmo", {"attention_bias": True, "tie_word_embeddings": True}),
    ("olmo2", {"tie_word_embeddings": True}),
    ("gpt_neox", {"attention_bias": False, "use_parallel_residual": False}),
    ("phi", {"qk_layernorm": True}),
    ("bert", {"tie_word_embeddings": False}),
]
CASES = [*((family, {}) for family in FAMILIES), *PARTICULAR]
variants = pytest.mark.parametrize(("family", "changes"), CASES, ids=variant_name)
BATCHES = token_ids(8, 16, seed=5).split(4)
LAYERS = (0, 1, 3)


class Refitting:
    """A checkpoint with random units removed and what stays refitted."""

    def __init__(self, folder, lengths, layers=LAYERS, strength=None, kept=None, batches=BATCHES):
        self.folder, before = folder, layout(read_spec(folder).config)
        self.before, self.after = before, before.to_lengths(lengths).with_layers(layers)
        self.kept = kept or random_kept(before, lengths, layers)
        model = LayerwiseModel.open(folder, before)
        self.models = Compensation(
            model, self.after, self.kept, BATCHES, Scratch(None), strength or Strength()
        )
        self.weights = {}

    def run(self, watch=lambda part, weights: None):
        def save(part, weights):
            self.weights |= weights
            watch(part, weights)

        with torch.inference_mode():
            self.models.run(save, lambda part: None, lambda done, total: None)
        return self

    def logits(self, target, *, refitted=True, ids=BATCHES):
        """What the written model says."""
        target.mkdir(exist_ok=True)
        found = self.weights.get if refitted else lambda name: None
        write_pruned(self.folder, target, self.before, self.after, self.kept, found)
        with torch.no_grad():
            model = in_fp64(target)
            return torch.cat([model(batch).logits for batch in ids])


@variants
def test_where_nothing_went_the_weights_stay_as_they_are(family, changes, tmp_path):
    folder = write_tiny(tmp_path / "parent", family, **changes)
    change_stored(folder, lambda tensors, model: None)  # in fp64
    found = Refitting(folder, {}, range(4)).run().weights
    stored = load_file(folder / "model.safetensors")
    assert len(found) >= 4 * 2
    for name, weight in found.items():
        torch.testing.assert_close(weight, stored[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_that_removes_nothing_gives_the_same_bytes(family, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", family))
    context = FakeContext(tmp_path / "pruned", inputs={})
    config = plugins.step("prune").Config(target={"params": "100%"})
    plugins.step("prune").run(parent, config, context)
    for file in parent.path.iterdir():
        assert (tmp_path / "pruned" / file.name).read_bytes() == file.read_bytes()


DEAD = [(family, without_hidden(family)[-1]) for family in FAMILIES]


@pytest.mark.parametrize(("family", "lengths"), DEAD, ids=variant_name)
def test_where_only_dead_units_went_nothing_changes(family, lengths, tmp_path):
    exact = not norms_queries(layout(tiny_config(family)))  # those norms share an epsilon that is not theirs
    folder = write_tiny(tmp_path / "parent", family, **({} if exact else {"rms_norm_eps": 1e-12}))
    kept = random_kept(layout(tiny_config(family)), lengths, range(4))
    change_stored(folder, lambda tensors, model: silence(tensors, model, kept))
    found = Refitting(folder, lengths, range(4), kept=kept).run()
    whole = torch.cat([in_fp64(folder)(batch).logits for batch in BATCHES]).detach()
    tolerance = 1e-9 if exact else 1e-5  # norms are computed in fp32
    torch.testing.assert_close(found.logits(tmp_path / "pruned"), whole, rtol=tolerance, atol=tolerance)


@variants
def test_no_map_gets_worse_at_what_it_is_to_do(family, changes, tmp_path, monkeypatch):
    lengths = narrowings(family, **changes)[-1]
    folder = tiny_parent(tmp_path / "parent", family, **changes).path
    improved = []

    def watched(start, gram, cross, inverse):
        better = original(start, gram, cross, inverse)

        def error(weight):  # without the energy of what is wanted, which is the same for both
            weight = weight.double()
            return float((weight @ gram.double() * weight).sum() - 2 * (weight * cross.double()).sum())

        assert error(better) <= error(start) + 1e-9 * abs(error(start))
        improved.append(error(better) < error(start))
        return better

    original = compensation.refit
    monkeypatch.setattr(compensation, "refit", watched)
    Refitting(folder, lengths).run()
    assert len(improved) >= 3 * 2 and sum(improved) > 0.9 * len(improved)


ADDING = [
    (family, changes)
    for family, changes in CASES
    if family in DECODERS
    and option(plugins.load("models.families", family), "RESIDUAL_ADDS")
    and not layout(tiny_config(family)).num_experts
]


@pytest.mark.parametrize(("family", "changes"), ADDING, ids=variant_name)
def test_the_last_map_of_a_layer_brings_the_hidden_state_nearer_to_the_parents(family, changes, tmp_path):
    """The parent's behind the layers that were removed after it."""
    folder = tiny_parent(tmp_path / "parent", family, **changes).path
    refitting = Refitting(folder, narrowings(family, **changes)[-1], strength=Strength(feedback=1.0))
    models, channels = refitting.models, refitting.kept.units["hidden"]
    errors = []

    def distance(number):
        pairs = zip(models._parents, models._students, strict=True)
        return sum(float((p[..., channels] - models.student.run(number, s)).square().sum()) for p, s in pairs)

    def watch(part, weights):
        if part == "outside":
            return
        number = int(part.removeprefix("layer-"))
        refitted, sliced = distance(number), models.student.weights(number)
        last = [name for name in weights if name.rpartition(".")[0] == list(weights)[-1].rpartition(".")[0]]
        models.student.assign(number, sliced | {n: w for n, w in weights.items() if n not in last})
        errors.append((refitted, distance(number)))
        models.student.assign(number, sliced | weights)

    refitting.run(watch)
    assert len(errors) == 3 and all(refitted < sliced for refitted, sliced in errors)


@pytest.mark.parametrize(("family", "changes"), [v for v in CASES if v[0] in DECODERS], ids=variant_name)
def test_the_output_head_or_the_norm_before_it_brings_logits_nearer_to_the_parents(family, changes, tmp_path):
    folder = tiny_parent(tmp_path / "parent", family, **changes).path
    refitting = Refitting(folder, narrowings(family, **changes)[-1]).run()
    with torch.no_grad():
        whole = torch.cat([in_fp64(folder)(batch).logits for batch in BATCHES])
    refitted = float((refitting.logits(tmp_path / "refitted") - whole).square().sum())
    outside = [name for name in refitting.weights if refitting.after.layer_of(name) is None]
    for name in outside:
        del refitting.weights[name]
    sliced = float((refitting.logits(tmp_path / "sliced") - whole).square().sum())
    assert refitted < sliced if outside else refitted == sliced
    assert outside or not refitting.before.norms_over("hidden")  # nothing is left to refit there


def sentences(num, seed):
    """Each token is one of four that may follow the last (in every other sentence: the one before it)."""
    generator = torch.Generator().manual_seed(0)
    follow = torch.randint(3, 67, (64, 4), generator=generator)
    generator.manual_seed(seed)
    ids = torch.randint(3, 67, (num, 24), generator=generator)
    pick = torch.randint(4, (num, 24), generator=generator)
    for t in range(2, 24):
        seen = torch.where(torch.arange(num) % 2 == 0, ids[:, t - 1], ids[:, t - 2])
        ids[:, t] = follow[seen - 3, pick[:, t]]
    return ids


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = tiny_model("llama", **sizes).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        ids = sentences(16, seed=step + 1)
        loss = cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("trained") / "model"
    with quiet():
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("lengths", "layers", "share"),
    [
        ({"ffn": 32}, range(4), 0.85),
        ({"kv_groups": 1}, range(4), 0.99),
        ({"heads": 1}, range(4), 0.3),
        ({"hidden": 24}, range(4), 0.75),
        ({}, (0, 1, 3), 0.7),
        ({"hidden": 24, "ffn": 48}, (0, 1, 3), 0.75),
    ],
    ids=str,
)
def test_predictions_of_a_trained_model_come_nearer_to_the_parents(lengths, layers, share, trained, tmp_path):
    """Also on text of the same kind that was not refitted on. Units are removed at random."""
    text, other = sentences(64, seed=1000), sentences(64, seed=2000)
    refitting = Refitting(trained, lengths, layers, batches=text.split(16)).run()

    def divergence(ids, refitted):
        with torch.no_grad():
            whole = load_model(trained, dtype=torch.float64)(ids).logits.log_softmax(-1)
        found = refitting.logits(tmp_path / "pruned", refitted=refitted, ids=[ids]).log_softmax(-1)
        return float((whole.exp() * (whole - found)).sum(-1).mean())

    for ids in (text, other):
        assert divergence(ids, refitted=True) < share * divergence(ids, refitted=False)


STEPS = [
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("gpt2", {}),
    ("gemma2", {}),
    ("qwen3_moe", {}),
    ("bert", {}),
]
steps = pytest.mark.parametrize(("family", "changes"), STEPS, ids=variant_name)
TARGET = {"target": {"params": "50%"}, "importance": "activation", "layer_importance": "block_influence"}


def payload(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@steps
def test_streaming_changes_no_byte(family, changes, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", family, shard="150KB", **changes))
    for memory in ("stream", "ram"):
        pruned("prune", parent, tmp_path / memory, **TARGET, compensate=True, memory=memory)
    assert payload(tmp_path / "stream") == payload(tmp_path / "ram")
    pruned("prune", parent, tmp_path / "sliced", **TARGET)
    assert payload(tmp_path / "sliced") != payload(tmp_path / "ram")


class Interrupted(FakeContext):
    """Is asked to stop once a number of layers has been passed."""

    after: int

    def progress(self, done, total, unit, **figures):
        super().progress(done, total, unit, **figures)
        self.stopping = self.stopping or len(self.reports) >= self.after


@pytest.mark.parametrize("memory", ["stream", "ram"])
@pytest.mark.parametrize("after", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(after, memory, tmp_path):
    parent = parent_of(write_tiny(tmp_path / "parent", "llama", attention_bias=True))
    settings = {**TARGET, "target": {"layers": 3, "intermediate_size": 100, "hidden_size": 48}}
    pruned("prune", parent, tmp_path / "undisturbed", **settings, compensate=True, memory=memory)
    step = plugins.step("prune")
    config = step.Config(**settings, memory=memory)
    ready = prepared_context(step, config, parent, tmp_path / "resumed")
    first = Interrupted(ready.folder, ready.partial, ready.inputs)
    first.after = after
    with pytest.raises(Stopped):
        step.run(parent, config, first)
    done = {path: path.stat().st_mtime_ns for path in ready.partial.glob("layer-*")}
    assert len(done) == after + 1 and not (ready.folder / "config.json").exists()
    step.run(parent, config, ready)
    assert payload(ready.folder) == payload(tmp_path / "undisturbed")
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
