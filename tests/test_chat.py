"""A conversation with a model: what it keeps, what it forgets, and what a failed answer leaves behind."""

from dataclasses import replace

import pytest
from tiny_chat import byte_tokenizer, completion_of, message, session_of, tiny_model

from tutelage.errors import UserError
from tutelage.infer.chat import stop_tokens
from tutelage.text.template import Template


def test_a_session_answers_from_the_whole_history():
    session = session_of(system="Be brief.")
    history = [message("system", "Be brief.")]
    for text in ("hi", "and you? ünï 🦜", "<|im_end|> is text"):
        history.append(message("user", text))
        pieces = []
        reply = session.ask(text, pieces.append)
        assert reply.text == "".join(pieces) == completion_of(session, history)
        assert reply.forgotten == 0
        history.append(message("assistant", reply.text))
        assert session.messages == history
    session.reset("New.")
    assert session.messages == [message("system", "New.")]
    session.reset()
    assert session.messages == []
    assert session.ask("hi").text == completion_of(session, [message("user", "hi")])


def test_a_full_context_forgets_the_oldest_turns_and_keeps_the_system_message():
    session = session_of(context=200, system="Be brief.")
    texts = [f"{number}: " + "x" * 40 for number in range(4)]
    forgotten = [session.ask(text).forgotten for text in texts]
    assert sum(forgotten) > 0
    assert sum(forgotten) % 2 == 0
    assert session.messages[0] == message("system", "Be brief.")
    kept = [each["content"] for each in session.messages if each["role"] == "user"]
    assert kept == texts[sum(forgotten) // 2 :]
    tokens = session.template.encode(session.messages[:-1], session.tokenizer, reply=True).tokens
    assert len(tokens) + 12 <= 200


@pytest.mark.parametrize(("length", "forgotten"), [(40, 0), (41, 2)])
def test_an_answer_has_room_for_all_its_tokens(length, forgotten):
    """48 tokens of a user's 40 bytes, 43 of an answer's 30, 48 again, 11 to ask for a reply, and 50 free."""
    session = session_of(context=200, max_new_tokens=50)
    session.messages = [message("user", "x" * 40), message("assistant", "y" * 30)]
    assert session.ask("z" * length).forgotten == forgotten


def test_a_message_beyond_the_context_is_refused_and_leaves_the_history_alone():
    session = session_of(context=100)
    session.ask("hi")
    before = list(session.messages)
    with pytest.raises(UserError) as caught:
        session.ask("x" * 200)
    assert str(caught.value) == (
        "this message makes a prompt of 219 tokens, and the model's context holds 100, "
        "the answer included; send less at once"
    )
    assert session.messages == before


def test_an_interrupted_answer_stays_as_far_as_it_came():
    session, pieces = session_of(max_new_tokens=100), []

    def interrupt(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.ask("hi", interrupt)
    assert session.messages == [message("user", "hi"), message("assistant", "".join(pieces))]
    session.reset()
    session.model.unembed = None  # fails before a word is said
    with pytest.raises(TypeError):
        session.ask("hi")
    assert session.messages == []


def test_an_answer_ends_at_the_tokens_of_template_model_and_tokenizer():
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.config = replace(model.config, eos=(5, 6))
    tokenizer.eos = tokenizer.control["<|endoftext|>"]
    assert stop_tokens(model, tokenizer, None) == {5, 6, tokenizer.eos}
    expected = {5, 6, tokenizer.eos, tokenizer.control["<|im_end|>"]}
    assert stop_tokens(model, tokenizer, Template.load("chatml")) == expected
