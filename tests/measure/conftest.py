import json

import pytest
import torch

from compress.data.tokens import BIN, JSON
from compress.models.checkpoint import load_tokenizer
from compress.records import Artifact
from tests.fakes import FakeContext
from tests.meters.tiny_llama import write_llama

TEXT = "the ship behind hounds sails old red fox keeps a candle and no knife in truth"
WORDS = TEXT.split()


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("models") / "original", seed=0)


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("models") / "student", seed=1)


@pytest.fixture(scope="session")
def text(tmp_path_factory, original):
    """Six packed rows of sixty tokens, as a `tokens` artifact."""
    folder = tmp_path_factory.mktemp("text")
    ids = load_tokenizer(original.path)(" ".join(WORDS * 6))["input_ids"]
    rows = torch.tensor(ids[:360]).view(6, 60)
    rows.numpy().astype("<u2").tofile(folder / BIN)
    facts = {"num_sequences": 6, "sequence_length": 60, "dtype": "<u2"}
    (folder / JSON).write_text(json.dumps(facts))
    return Artifact(key="text", kind="tokens", path=folder)


@pytest.fixture
def context(tmp_path):
    """Makes a context with the inputs it is given."""

    def make(name="out", **inputs):
        return FakeContext(tmp_path / name, inputs=inputs)

    return make


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    """Two multiple-choice tasks in a group, one perplexity task and one that is answered in writing."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, num in (("first", 12), ("second", 8)):
        documents = [
            {
                "q": f"{WORDS[i % 15]} {i} is",
                "options": [f"{w}." for w in WORDS[i % 7 : i % 7 + 4]],
                "gold": i % 4,
            }
            for i in range(num)
        ]
        write_task(folder, name, documents, CHOICE)
    write_task(folder, "prose", [{"q": "", "text": " ".join(WORDS[i:])} for i in range(4)], PROSE)
    write_task(folder, "written", [{"q": f"say {w}", "text": w} for w in WORDS[:3]], WRITTEN)
    (folder / "graded_results.py").write_text(PROCESSING)
    write_task(folder, "graded", [{"q": w, "options": WORDS[:3], "gold": 0} for w in WORDS[:6]], GRADED)
    write_task(folder, "twice", [{"q": w, "options": WORDS[:3], "gold": 1} for w in WORDS[:4] * 3], CHOICE)
    write_task(folder, "nats", [{"q": w, "options": WORDS[:2], "gold": 0} for w in WORDS[:6]], NATS)
    pairs = [{"q": w, "options": WORDS[i : i + 2], "gold": 0} for i, w in enumerate(WORDS[:6])]
    write_task(folder, "stereotypes", pairs, STEREOTYPES)
    uneven = [{"q": w, "options": WORDS[i : i + 2 + i % 3], "gold": 0} for i, w in enumerate(WORDS[:6])]
    write_task(folder, "uneven", uneven, UNEVEN)
    (folder / "both.yaml").write_text("group: both\ntask: [first, second]\n")
    return folder


CHOICE = """
output_type: multiple_choice
doc_to_text: q
doc_to_choice: options
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true},
              {metric: acc_norm, aggregation: mean, higher_is_better: true}]
"""
GRADED = """
output_type: multiple_choice
doc_to_text: q
doc_to_choice: options
doc_to_target: gold
process_results: !function graded_results.share_of_the_first
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
NATS = GRADED.replace("share_of_the_first", "nats_apart").replace("metric: acc", "metric: likelihood_diff")
STEREOTYPES = (
    GRADED.replace("share_of_the_first", "as_crows_pairs_does")
    .replace("metric: acc", "metric: likelihood_diff")
    .replace("true}]", "false},\n  {metric: pct_stereotype, aggregation: mean, higher_is_better: false}]")
)
UNEVEN = CHOICE.replace("{metric: acc_norm", "{metric: acc_mutual_info")
PROSE = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
"""
WRITTEN = """
output_type: generate_until
doc_to_text: q
doc_to_target: text
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


PROCESSING = """
import math

def share_of_the_first(doc, results):
    shares = [math.exp(log_prob) for log_prob, _ in results]
    return {"acc": shares[0] / sum(shares)}

def nats_apart(doc, results):
    return {"likelihood_diff": abs(results[0][0] - results[1][0])}

def as_crows_pairs_does(doc, results):
    return {**nats_apart(doc, results), "pct_stereotype": float(results[0][0] > results[1][0])}
"""


def write_task(folder, name, documents, settings):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    source = f"task: {name}\ntest_split: test\nmetadata: {{version: 1}}\n"
    hook = "custom_dataset: !function compress.data.tasks.read_documents\n"
    (folder / f"{name}.yaml").write_text(source + hook + settings)
