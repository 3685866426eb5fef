"""Chat templates and conversations over the tokenizers of the tests, whose special tokens are ``<s>`` and ``</s>``."""

from compress.data.conversation import Conversation

TURN = "<s>{{ m.role }}\n{{ m.content }}</s>\n"
ASKS = "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
PLAIN = f"{{% for m in messages %}}{TURN}{{% endfor %}}{ASKS}"
"""ChatML's kind."""
MARKED = (
    "{% for m in messages %}<s>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}</s>{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ m.content }}</s>\n{% endif %}{% endfor %}"
) + ASKS
"""The same, and says itself what the answers are."""
FORGETTING = PLAIN.replace(
    "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}(thinks) {% endif %}{{ m.content }}"
)
"""Writes an answer differently once another follows, as templates do that drop earlier reasoning."""
REFUSING = "{{ raise_exception('roles must alternate') }}"

MESSAGES = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where does Mira live?"},
    {"role": "assistant", "content": "In Arlen."},
    {"role": "user", "content": "12 + 3?  naïve 東京 🙂"},
    {"role": "assistant", "content": "  15 🙂!"},
)
CHAT = Conversation(MESSAGES, "chats.jsonl:3")
