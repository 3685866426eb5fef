"""Item by item beside lm-eval's own Hugging Face model: what is asked, how likely each answer is, how it is judged."""

import json

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from compress.backends.interface import OpenOptions
from compress.backends.opening import open_artifact
from compress.errors import InputError
from compress.meters.lm_eval_model import BackendLM
from compress.meters.tasks import load_tasks, prepare_few_shot, run_tasks
from compress.models.special_ids import end_ids
from compress.records import Artifact
from tests.measure.conftest import CHOICE, GRADED, PROSE, WORDS, WRITTEN, write_task
from tests.meters.tiny_llama import write_llama

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
EXAMPLES = "fewshot_split: test\nnum_fewshot: 3\n"
DESCRIBED = "description: 'Answer in a word.'\n"


@pytest.fixture(scope="module", params=["bos", pytest.param("no bos", marks=pytest.mark.slow)])
def chatty(request, tmp_path_factory) -> Artifact:
    """A model that ends its turns with either of two ids, and talks by a template that begins texts itself."""
    folder = tmp_path_factory.mktemp("models") / "chatty"
    made = write_llama(folder, seed=3)
    GenerationConfig(bos_token_id=0, eos_token_id=[1, 40, 104], pad_token_id=2).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)  # what ends a turn is special, and no part of an answer
    ends = tokenizer.convert_ids_to_tokens([40, 104])
    tokenizer.add_special_tokens({"additional_special_tokens": ends})
    tokenizer.save_pretrained(folder)
    template = TEMPLATE if request.param == "bos" else TEMPLATE.replace("{{ bos_token }}", "")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    (folder / "graded_results.py").write_text(
        "import math\n\ndef share_of_the_first(doc, results):\n"
        "    shares = [math.exp(log_prob) for log_prob, _ in results]\n"
        "    return {'acc': shares[0] / sum(shares)}\n"
    )
    uneven = [
        {"q": f"{w} is", "options": [" ".join(WORDS[i : i + n]) for n in range(1, 3 + i % 3)], "gold": i % 2}
        for i, w in enumerate(WORDS[:8])
    ]
    write_task(folder, "uneven", uneven, CHOICE)
    write_task(folder, "shown", uneven, CHOICE + EXAMPLES + DESCRIBED)
    write_task(folder, "graded", [{"q": w, "options": WORDS[:3], "gold": 0} for w in WORDS[:6]], GRADED)
    says = [{"q": f"say {w}", "text": w} for w in WORDS[:6]]
    stops = WRITTEN.replace('["."]', '[" ", "e", "\\n\\n"]').replace("max_gen_toks: 4", "max_gen_toks: 24")
    write_task(folder, "stops", says, stops)
    write_task(folder, "ends", says, stops.replace('[" ", "e", "\\n\\n"]', "['never this']"))
    write_task(folder, "told", says, stops + EXAMPLES)
    write_task(folder, "prose", [{"q": "", "text": " ".join(WORDS[i:] * (i + 1))} for i in range(4)], PROSE)
    twice = [{"q": w, "options": WORDS[:3], "gold": 1} for w in WORDS[:4] * 3]
    write_task(folder, "twice", twice, CHOICE)
    return folder


def ours(artifact, folder, name, as_chat):
    lm = BackendLM(
        open_artifact(artifact, OpenOptions(widened=True)),
        AutoTokenizer.from_pretrained(artifact.path),
        batch_size=4,
        end_ids=end_ids(artifact.path),
    )
    (leaves,) = load_tasks([name], None, folder).values()
    prepare_few_shot(leaves, None)
    return [sample for _, sample in run_tasks(lm, name, leaves, None, as_chat=as_chat)]


def theirs(artifact, folder, name, as_chat):
    model = HFLM(
        pretrained=AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(artifact.path),
        softmax_dtype="float32",
        batch_size=1,
    )
    found = simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        fewshot_random_seed=0,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=as_chat,
        fewshot_as_multiturn=as_chat,
    )
    return found["samples"][name]


def flat(response):
    return list(response) if isinstance(response, list | tuple) else [response]


@pytest.mark.parametrize("as_chat", [False, True], ids=["as text", "as chat"])
@pytest.mark.parametrize("name", ["uneven", "shown", "graded", "stops", "ends", "told", "prose", "twice"])
def test_each_item_is_asked_and_judged_as_lm_eval_does(chatty, tasks, name, as_chat):
    if as_chat and name == "prose":
        pytest.skip("a text whose likelihood is asked for is no conversation: lm-eval has no rule for it")
    mine, reference = ours(chatty, tasks, name, as_chat), theirs(chatty, tasks, name, as_chat)
    assert len(mine) == len(reference) > 3
    key = ("filter", "doc_id")
    for one, other in zip(
        *(sorted(each, key=lambda s: [s[k] for k in key]) for each in (mine, reference)), strict=True
    ):
        assert [one[k] for k in (*key, "doc", "target")] == [other[k] for k in (*key, "doc", "target")]
        assert one["arguments"] == other["arguments"], "the same text is asked"
        for answered, expected in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
            for value, wanted in zip(flat(answered), flat(expected), strict=True):
                assert value == (
                    wanted if isinstance(wanted, str | bool) else pytest.approx(wanted, abs=1e-4)
                )
        assert one["metrics"] == other["metrics"]
        for metric in one["metrics"]:
            for value, wanted in zip(flat(one[metric]), flat(other[metric]), strict=True):
                assert value == pytest.approx(wanted, abs=1e-4)


def test_a_chat_is_another_question(chatty, tasks):
    plain, chat = (ours(chatty, tasks, "shown", as_chat) for as_chat in (False, True))
    asked = [json.dumps(samples[0]["arguments"]) for samples in (plain, chat)]
    assert (
        "<assistant>" in asked[1]
        and asked[1].count("<user>") == 4 * len(plain[0]["arguments"])
        and "<user>" not in asked[0]
    )


def test_some_answers_end_at_an_id_of_the_list(chatty, tasks):
    written = [sample["resps"][0][0] for sample in ours(chatty, tasks, "ends", True)]
    assert len({len(text) for text in written}) > 1


def test_a_chat_without_a_template_is_refused(original, tasks):
    with pytest.raises(InputError, match="no chat template"):
        ours(original, tasks, "twice", True)
