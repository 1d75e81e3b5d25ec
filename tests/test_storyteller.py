"""TinyStories' prompts, rewritten, and what of a story is learned: worked by hand after the reference."""

import json

import pytest
import tokenizers
from story_shards import OPENING, item, write_shards
from tiny_data import refusal
from tokenizers import decoders, models, pre_tokenizers

from tutelage.data.stories.storyteller import (
    FEATURES,
    conversation_of,
    items_of,
    rewrite_prompt,
    shards_of,
    story_prompt,
)
from tutelage.text.roles import ROLES
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

SHORT = (
    'Write a story. In the story, try to use the verb "climb", the noun "ring" and the adjective "messy". '
    "Possible story:"
)
REWRITTEN = {
    "words": (
        f'{OPENING} In the story, try to at some point use the verb "climb", the noun "ring" and the '
        'adjective "messy". Remember to only use simple words!',
        SHORT,
    ),
    "already asking for a story": (
        f'{OPENING} In the story, try to at some point use the verb "climb", the noun "ring" and the '
        'adjective "messy". Remember to only use simple words!\n\nPossible story:',
        SHORT,
    ),
    "features": (
        f'{OPENING} The story should use the verb "hang", the noun "foot" and the adjective "cute". The '
        "story has the following features: the story should contain at least one dialogue. Remember to "
        "only use simple words!\n\nPossible story:",
        'Write a story. The story should use the verb "hang", the noun "foot" and the adjective "cute". The '
        "story has the following features: the story should contain at least one dialogue. Possible story:",
    ),
    "another prompt": ("Tell me of a café.", "Tell me of a café. Possible story:"),
    "rewritten before": (SHORT, SHORT),
    "empty": ("", " Possible story:"),
}


@pytest.mark.parametrize("case", REWRITTEN)
def test_prompts_are_rewritten_as_the_reference_does(case):
    prompt, expected = REWRITTEN[case]
    assert rewrite_prompt(prompt) == expected


def test_a_prompt_from_words_is_the_one_trained_on():
    assert story_prompt(["climb", "ring", "messy"]) == SHORT
    prompt, expected = REWRITTEN["features"]
    ending = expected[expected.index(" The story has") :]
    assert story_prompt(["hang", "foot", "cute"], ["Dialogue"]).endswith(ending)
    assert story_prompt(["a", "b", "c"], ["BadEnding", "it rains"]).endswith(
        "The story has the following features: the story has a bad ending, it rains. Possible story:"
    )
    assert set(FEATURES) == {"Dialogue", "BadEnding", "MoralValue", "Foreshadowing", "Twist", "Conflict"}
    given = "words: three are wanted, a verb, a noun and an adjective; given were"
    assert refusal(story_prompt, ["climb", "ring", "messy"], ["Dialog"]).startswith(
        "features: 'Dialog' is none of Dialogue, BadEnding, MoralValue"
    )
    assert refusal(story_prompt, ["climb", "ring"]) == f"{given} 'climb', 'ring'"
    assert refusal(story_prompt, ["climb", "ring", " "]) == f"{given} 'climb', 'ring', ' '"


def byte_tokenizer() -> Tokenizer:
    made = tokenizers.Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(made.to_str(), {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})


def test_the_prompt_has_no_bos_and_bos_story_eos_are_learned():
    """Golden: prompt, BOS, story, EOS; the first thing learned is BOS, right after the prompt."""
    tokenizer, template = byte_tokenizer(), Template.load("storyteller")
    bos, eos = tokenizer.control["<s>"], tokenizer.control["</s>"]
    prompt, story = tokenizer.encode("Go:"), tokenizer.encode("A é.")
    messages = [{"role": "user", "content": " Go: "}, {"role": "assistant", "content": "\nA é.\n"}]
    encoded = template.encode(messages, tokenizer)
    assert encoded.tokens == [*prompt, bos, *story, eos]
    assert encoded.weights == [0.0] * 3 + [1.0] * (1 + 5 + 1)
    assert [ROLES[role] for role in encoded.roles] == ["user"] * 3 + ["assistant"] * 7
    assert template.stop_ids(tokenizer) == {eos}


def test_a_story_is_asked_for_with_the_very_tokens_it_is_trained_on():
    """Training and inference differed in the reference: BOS after the prompt here, before it there."""
    tokenizer, template = byte_tokenizer(), Template.load("storyteller")
    messages = conversation_of(item(1))
    trained = template.encode(messages, tokenizer).tokens
    asked = template.encode(messages[:1], tokenizer, reply=True)
    assert trained[: len(asked.tokens)] == asked.tokens
    assert asked.tokens[-1] == tokenizer.bos
    assert asked.tokens.count(tokenizer.bos) == 1
    assert not any(asked.weights)


def test_a_model_that_carries_the_template_is_recognised_by_it():
    """So `generate MODEL` needs no --template_config; a system message has no form in it."""
    template = Template.load("storyteller")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template.jinja
    assert Template.recognise(tokenizer).name == "storyteller"
    tokenizer.chat_template = template.jinja.replace("raise_exception(", "(")
    assert refusal(Template.recognise, tokenizer).startswith("the model's own chat template is none of")
    fault = template.fault([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}])
    assert fault is not None


UNUSABLE = {
    "no object": (["x"], "not an object with a story"),
    "no story": ({"instruction": {}}, "not an object with a story"),
    "no instruction": ({"story": "x"}, 'no instruction with a "prompt:" (the colon belongs to the key)'),
    "another key": (
        {"story": "x", "instruction": {"prompt": "y"}},
        'no instruction with a "prompt:" (the colon belongs to the key)',
    ),
    "empty": (item(0, story=" \n"), "the story is empty"),
    "half a character": (
        item(0, story="x\ud800"),
        "message 2 has a content with half a surrogate pair, which is no character",
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_item_that_is_no_story_is_told(case):
    given, message = UNUSABLE[case]
    assert conversation_of(given) == message


def test_an_item_becomes_a_conversation():
    assert conversation_of(item(7)) == [
        {"role": "user", "content": SHORT.replace("messy", "messy7")},
        {"role": "assistant", "content": "Once upon a time, Zoë found ring 7.\n\nThe end."},
    ]


@pytest.mark.parametrize("block", [3, 50, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_shard_is_read_piece_by_piece(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr("tutelage.data.stories.storyteller._BLOCK", block)
    items = [item(number, story='Zoë said: "]" and \\ 🦜') for number in range(3)]
    path = tmp_path / "data00.json"
    path.write_text(json.dumps(items, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert list(items_of(path)) == items
    path.write_text(" [ ]\n")
    assert list(items_of(path)) == []


def test_a_shard_that_is_damaged_is_refused(tmp_path):
    path = tmp_path / "data00.json"
    whole = json.dumps([item(0), item(1)])
    for text, message in (
        (whole[:-30], f"{path} is damaged after its item 1 ("),
        (whole[:-1], f"{path} is damaged after its item 2 (it ends in the middle of an item)"),
        ("{}", f"{path} is no shard of TinyStories, which is one JSON array"),
        ("", f"{path} is no shard of TinyStories, which is one JSON array"),
    ):
        path.write_text(text)
        assert refusal(lambda: list(items_of(path))).startswith(message)
    path.write_bytes(b'["\xff"]')
    assert refusal(lambda: list(items_of(path))).startswith(f"{path} is damaged after its item 0 (")


def test_shards_are_found_where_the_download_puts_them_in_order(tmp_path):
    directory = tmp_path / "TinyStories_all_data"
    paths = write_shards(directory, 1, 1, 1)
    (directory / "data2x.json").write_text("")
    (directory / "data100.json").write_text("[]")
    assert shards_of(tmp_path) == shards_of(directory) == [*paths, directory / "data100.json"]
    assert refusal(shards_of, tmp_path / "none").startswith(
        f"{tmp_path / 'none'} holds no shards data00.json"
    )
