"""What is wrong with a conversation is said in a few words."""

import pytest
from conversations import CHAT, say

from tutelage.text.messages import message_faults

FAULTS = {
    "messages is null, not a list": None,
    "messages is empty": [],
    "message 1 is a number, not an object with role and content": [1],
    "message 1 has no content": [{"role": "user"}],
    "message 1 has no role": [{"content": "x"}],
    "message 1 has a content that is null, not a string": [{"role": "user", "content": None}],
    "message 1 has a role that is a list, not a string": [{"role": [], "content": ""}],
    "message 1 has the unknown role 'bot'; roles are system, user, assistant, tool": say("bot: x"),
    "message 2 has a content with half a surrogate pair, which is no character": say(
        "user: é", "assistant: \udfff"
    ),
    "has a system message and nothing else": say("system: x"),
    "message 1 is an assistant message, but a conversation opens with the user": say("assistant: x"),
    "message 2 is a tool message, but a conversation opens with the user": say("system: x", "tool: x"),
    "message 3 is a system message, which may only come first": say("user: x", "assistant: x", "system: x"),
    "message 2 is a system message, which may only come first": say("system: x", "system: x", "user: x"),
    "message 2 is a user message right after a user message": say("user: x", "user: x", "assistant: x"),
    "message 3 is a tool message right after a user message": say("system: x", "user: x", "tool: x"),
    "message 4 is a user message right after a tool message": say(
        "user: x", "assistant: x", "tool: x", "user: x"
    ),
    "message 3 is an assistant message right after an assistant message": say(
        "user: x", *["assistant: x"] * 2
    ),
    "has no assistant message": say("user: x"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_conversations_are_named(fault):
    assert message_faults(FAULTS[fault]) == fault


def test_good_conversations_have_no_fault():
    assert message_faults(CHAT) is None
    assert message_faults(say("user: ", "assistant: ")) is None
    assert message_faults(say("user: x"), answered=False) is None
    calls = say("user: x", "assistant: x", "tool: x", "tool: x", "assistant: x", "user: x")
    assert message_faults(calls) is None
    assert (
        message_faults([{**message, "name": "extra keys are nobody's business"} for message in CHAT]) is None
    )
