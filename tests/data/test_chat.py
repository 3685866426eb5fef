import pytest
from transformers import AutoTokenizer

from compress.data.chat import TODAY, ChatTemplate
from compress.data.conversation import Conversation
from compress.data.encode import Encoder
from compress.errors import InputError
from tests.data.chats import ASKS, CHAT, FORGETTING, MARKED, MESSAGES, PLAIN, REFUSING
from tests.models import small_tokenizers


@pytest.fixture(params=small_tokenizers.KINDS)
def tokenizer(request, tmp_path):
    return AutoTokenizer.from_pretrained(small_tokenizers.write(request.param, tmp_path))


@pytest.fixture
def bytes_tokenizer(byte_tokenizer):
    return AutoTokenizer.from_pretrained(byte_tokenizer.path)


def encoded(tokenizer, conversation=CHAT, template=None):
    return next(Encoder(tokenizer, None, template).encode(iter([conversation])))


def answers(tokenizer, template, conversation=CHAT):
    rendered = ChatTemplate(tokenizer, template).render(conversation)
    return [rendered.text[start:stop] for start, stop in rendered.answers]


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_ids_are_those_the_chat_template_gives(tokenizer, template):
    tokenizer.chat_template = template
    expected = tokenizer.apply_chat_template(list(MESSAGES), tokenize=True, return_dict=False)
    assert encoded(tokenizer).ids.tolist() == expected


def test_a_template_that_marks_no_answers_gives_the_mask_of_one_that_does(tokenizer):
    # transformers loses an answer that begins with space which the tokenizer drops, and all after it
    messages = [{**message, "content": message["content"].strip()} for message in MESSAGES]
    expected = tokenizer.apply_chat_template(
        messages, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )["assistant_masks"]
    for template in (PLAIN, MARKED):
        learned = encoded(tokenizer, Conversation(tuple(messages), "here"), template).learned
        assert learned.astype(int).tolist() == expected


def test_learned_is_each_answer_with_the_token_that_ends_it_and_nothing_else(bytes_tokenizer):
    made = encoded(bytes_tokenizer, template=PLAIN)
    assert bytes_tokenizer.decode(made.ids[made.learned]) == "In Arlen.</s>  15 🙂!</s>"
    assert bytes_tokenizer.decode(made.ids[~made.learned]) == (
        "<s>system\nBe brief.</s>\n<s>user\nWhere does Mira live?</s>\n<s>assistant\n\n"
        "<s>user\n12 + 3?  naïve 東京 🙂</s>\n<s>assistant\n\n"
    )


def test_a_turn_that_ends_with_no_token_of_its_own_keeps_the_space_that_ends_it(bytes_tokenizer):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    assert answers(bytes_tokenizer, template) == ["In Arlen.\n", "  15 🙂!\n"]


def test_a_template_that_rewrites_what_it_wrote_is_refused(bytes_tokenizer):
    with pytest.raises(
        InputError, match=r"chats\.jsonl:3: .* writes message 3 differently .* `chat_template`"
    ):
        answers(bytes_tokenizer, FORGETTING)


def test_a_template_that_asks_otherwise_than_it_answers_is_refused(bytes_tokenizer):
    template = PLAIN.replace("<s>assistant\n", "<s>assistant\n(thinks)")
    with pytest.raises(InputError, match="asks for message 3 with words it does not begin with"):
        answers(bytes_tokenizer, template)


@pytest.mark.parametrize("template", [PLAIN, MARKED], ids=["plain", "marked"])
def test_a_template_that_leaves_an_answer_out_is_refused(bytes_tokenizer, template):
    """As those do that read contents as lists of parts."""
    with pytest.raises(InputError, match="leaves out what message 3 says"):
        answers(bytes_tokenizer, template.replace("m.content", "m.content.parts"))


def test_what_an_answer_thinks_may_be_dropped(bytes_tokenizer):
    thinks = Conversation(
        (MESSAGES[1], {"role": "assistant", "content": "<think>Where?</think>\n\nThere."}), "here"
    )
    template = PLAIN.replace("m.content", "m.content.split('</think>')[-1].strip()")
    assert answers(bytes_tokenizer, template, thinks) == ["There.</s>"]


def test_a_template_that_rewrites_still_renders_a_conversation_with_one_answer(bytes_tokenizer):
    once = Conversation(MESSAGES[:3], "here")
    assert answers(bytes_tokenizer, FORGETTING, once) == ["(thinks) In Arlen.</s>"]


def test_a_tokenizer_without_a_template_is_refused_naming_the_way_out(bytes_tokenizer):
    with pytest.raises(
        InputError, match="no chat template for them: give the path of one as `chat_template`"
    ):
        encoded(bytes_tokenizer)


def test_what_a_template_refuses_is_told_with_its_place(bytes_tokenizer):
    with pytest.raises(
        InputError, match=r"chats\.jsonl:3: the chat template refuses it: roles must alternate"
    ):
        encoded(bytes_tokenizer, template=REFUSING)


@pytest.mark.parametrize(
    ("wrong", "line", "said"),
    [
        ("{{ m. }}", 1, "expected name or number"),
        ("\n{{ strftime_now('%d') }}\n{{ messages | nofilter }}", 3, "No filter named 'nofilter'"),
        ("{% generation %}", 1, "Unexpected end of template"),
    ],
)
def test_a_mistake_in_the_tokenizers_own_template_blames_no_data(bytes_tokenizer, wrong, line, said):
    bytes_tokenizer.chat_template = wrong
    with pytest.raises(
        InputError, match=rf"^the tokenizer's chat template:{line}: no valid chat template: {said}"
    ):
        encoded(bytes_tokenizer)


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("1 // 0", "ZeroDivisionError: integer division"),
        ("messages[0].content.index('missing')", "ValueError: substring not found"),
        ("messages[0].tool_calls[0]", "'dict object' has no attribute 'tool_calls'"),
        ("'%d' % 'x'", "TypeError: %d format"),
        ("namespace(a=1, **{'a': 2}).a", "TypeError: .*multiple values"),
        ("range(10 ** 9)", "OverflowError: Range too big"),
        ("'{x}'.format()", "KeyError: 'x'"),
    ],
)
def test_whatever_a_template_raises_is_told_with_its_place(bytes_tokenizer, expression, error):
    with pytest.raises(InputError, match=rf"chats\.jsonl:3: the chat template refuses it: {error}"):
        encoded(bytes_tokenizer, template=f"{{{{ {expression} }}}}" + PLAIN)


def test_a_template_that_calls_itself_for_ever_is_told_with_its_place(bytes_tokenizer):
    with pytest.raises(InputError, match=r"chats\.jsonl:3: .*RecursionError"):
        encoded(bytes_tokenizer, template="{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}")


def test_a_template_is_run_in_a_sandbox(bytes_tokenizer):
    with pytest.raises(InputError, match=r"refuses it: .*unsafe"):
        encoded(bytes_tokenizer, template="{{ ''.__class__.__mro__[1].__subclasses__() }}")


def test_a_tokenizer_that_cannot_tell_where_its_tokens_lie_is_refused(bytes_tokenizer, monkeypatch):
    monkeypatch.setattr(type(bytes_tokenizer), "is_fast", False)
    with pytest.raises(InputError, match="does not tell which characters a token covers"):
        encoded(bytes_tokenizer, template=PLAIN)


def test_texts_among_conversations_keep_their_own_marks(bytes_tokenizer):
    made = list(Encoder(bytes_tokenizer, None, PLAIN).encode(iter(["ab", CHAT, "c"])))
    assert bytes_tokenizer.decode(made[0].ids) == "<s>ab</s>"
    assert made[0].learned.all() and not made[1].learned.all()
    assert bytes_tokenizer.decode(made[2].ids) == "<s>c</s>"
    assert [len(e.ids) == len(e.learned) for e in made] == [True] * 3


def test_what_holds_nothing_is_no_document(bytes_tokenizer):
    said_nothing = Conversation(({"role": "user", "content": " "},), "here")
    blank = ["", " ", "\n\t", "\u3000", said_nothing] * 200  # more than are encoded at once
    made = list(Encoder(bytes_tokenizer, None, "{{ messages[0].content }}").encode(iter([*blank, " ab\n"])))
    assert [bytes_tokenizer.decode(document.ids) for document in made] == ["<s> ab\n</s>"]


def test_an_answer_without_words_still_ends_its_turn(bytes_tokenizer):
    silent = Conversation((MESSAGES[1], {"role": "assistant", "content": ""}), "here")
    assert answers(bytes_tokenizer, PLAIN, silent) == ["</s>"]


DATED = (
    "{%- if strftime_now is defined %}{%- set today = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set today = 'unknown' %}{%- endif %}"
    "Today Date: {{ today }}\n"
) + PLAIN
"""As Llama 3.2's template asks for the date."""


@pytest.mark.parametrize("template", [DATED, DATED + MARKED.replace(ASKS, "")], ids=["plain", "marked"])
def test_today_is_always_the_same_day_to_a_template(bytes_tokenizer, template):
    rendered = ChatTemplate(bytes_tokenizer, template).render(CHAT)
    assert rendered.text.startswith("Today Date: 26 Jul 2024\n<s>system")
    assert {rendered.text[start:stop] for start, stop in rendered.answers} == {
        "In Arlen.</s>",
        "  15 🙂!</s>",
    }


@pytest.mark.parametrize(
    "format",
    ["%Y-%m-%d", "%d %B %Y", "%A, %-d. %b %y", "%H:%M:%S %p %I", "%j %U %W %w %u %V %G", "%c|%x|%X|%D|%F|%T",
     "%%d is 100%%, %%%d", "no date", "%e %h %-m %-H %-I %-M %-S %-j %f %C %R"],
)  # fmt: skip
def test_a_template_writes_the_day_as_python_would(bytes_tokenizer, format):
    text = ChatTemplate(bytes_tokenizer, f"{{{{ strftime_now('{format}') }}}}" + PLAIN).render(CHAT).text
    assert text.partition("<s>")[0] == TODAY.strftime(format)


def test_a_template_may_ask_for_the_day_anywhere(bytes_tokenizer):
    template = "{% macro day() %}{{ strftime_now('%F') }}{% endmacro %}" + PLAIN.replace(
        "{{ m.content }}", "{{ day() }} {{ m.content }}"
    )
    assert ChatTemplate(bytes_tokenizer, template).render(CHAT).text.count("2024-07-26") == len(MESSAGES)


@pytest.mark.parametrize(
    "before", ["\n", "  ", "\n  \n", "{# a comment #}\n", "  {%- if true %}{% endif %}\n\n"]
)
def test_fixing_the_day_changes_nothing_else(bytes_tokenizer, before):
    plain = ChatTemplate(bytes_tokenizer, before + PLAIN).render(CHAT)
    with_day = ChatTemplate(
        bytes_tokenizer, before + PLAIN + "{% if false %}{{ strftime_now('') }}{% endif %}"
    )
    assert with_day.render(CHAT) == plain
