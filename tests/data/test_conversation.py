import json

import pytest

from compress.data.conversation import Conversation, document
from compress.errors import InputError


def test_a_text_stays_what_it_is():
    assert document("text", "here") == "text"


def test_messages_become_a_conversation_without_the_keys_that_hold_nothing():
    value = [{"role": "user", "content": "hi", "name": None}, {"role": "assistant", "content": "ho"}]
    plain = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"})
    assert document(value, "here") == Conversation(plain, "here")


def test_a_turn_that_only_calls_tools_needs_no_content():
    calls = [{"function": {"name": "f", "arguments": {}}}]
    (message,) = document([{"role": "assistant", "content": None, "tool_calls": calls}], "here").messages
    assert message == {"role": "assistant", "tool_calls": calls}


TEXT = {"type": "text", "text": "hi, "}


def said(*parts):
    return {"role": "user", "content": list(parts)}


def test_content_in_parts_of_text_is_their_text():
    """As columnar files hold it, whose parts all have the keys of any."""
    value = [said(TEXT, {"type": "text", "text": "ho\n", "image": None}), said(TEXT), said()]
    assert [message["content"] for message in document(value, "here").messages] == ["hi, ho\n", "hi, ", ""]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "here holds neither text nor a list of messages but int"),
        (None, "here holds neither text nor a list of messages but null"),
        ([], "here holds a conversation without messages"),
        (["hi"], "here, message 1: expected {role, content}, found str"),
        ([{"from": "human", "value": "hi"}], "expected the texts `role` and `content`, found from, value"),
        ([{"role": "user"}], "message 1: expected the texts `role` and `content`, found role"),
        ([{"role": "user", "content": {"text": "hi"}}], "message 1: `content` must be text, found dict"),
        ([{"role": 1, "content": "hi"}], "message 1: `role` must be text, found int"),
        ([{"role": "assistant", "content": 3, "tool_calls": []}], "1: `content` must be text, found int"),
        ([{"role": "user", "content": None}], "expected the texts `role` and `content`, found role$"),
        ([said("hi")], "1: only text can be read: part 1 of `content` must be {type: text, .*, found str"),
        ([said(TEXT, {"type": "image"})], "part 2 of `content` must be .*, found the type 'image'"),
        ([said({"text": "hi"})], "part 1 of `content` must be .*, found the type None"),
        ([said({"type": "text", "text": 3})], "part 1 of `content` must be .*, found int as its text"),
        ([{"role": "user", "content": "hi"}, {}], "message 2: expected .* found nothing"),
    ],
)
def test_anything_else_is_told_with_its_place(value, message):
    with pytest.raises(InputError, match=message):
        document(value, "here")


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ("so 🙂" + HALF, "here:"),
        ([{"role": "user", "content": "hi"}, {"role": "user", "content": HALF}], "here, message 2:"),
        ([{"role": HALF, "content": "hi"}], "here, message 1:"),
        ([{"role": "user", "content": "hi", "tool_calls": [{"name": [HALF]}]}], "here, message 1:"),
        ([{"role": "user", "content": "hi", "tool_calls": [{HALF: 1}]}], "here, message 1:"),
    ],
)
def test_half_a_character_is_told_with_its_place(value, where):
    with pytest.raises(InputError, match=rf"{where} .*half a character.*\\ud83d"):
        document(value, "here")


def test_both_halves_of_a_character_are_one():
    assert document(json.loads(r'"\ud83d\ude42"'), "here") == "🙂"
