"""What a tokenizer's files leave empty is not there, and what they say wrongly is refused by file and key."""

import json

import pytest
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoTokenizer

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.errors import UserError

SETTINGS, JSON, TEMPLATE = "tokenizer_config.json", "tokenizer.json", "chat_template.jinja"


@pytest.fixture
def directory(tmp_path):
    """A tiny tokenizer of bytes, all in tokenizer.json and tokenizer_config.json."""
    tiny_tokenizer(chat_template="{{ bos_token }}{{ messages[0].content }}").save(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    return tmp_path


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("empty", ["", {"content": "", "__type": "AddedToken"}])
def test_a_token_without_text_is_none(empty, directory):
    whole = load_tokenizer(directory)
    change(directory / SETTINGS, bos_token=empty, additional_special_tokens=[empty])
    tokenizer = load_tokenizer(directory)
    assert tokenizer.bos is None and "bos_token" not in tokenizer.named
    assert (tokenizer.size, tokenizer.control) == (whole.size, whole.control)
    tokenizer.save(directory / "again")
    assert len(AutoTokenizer.from_pretrained(directory / "again")) == whole.size


@pytest.mark.parametrize("empty", ["", "\n", [], [{"name": "default", "template": ""}]])
def test_an_empty_template_is_none_and_is_not_written_on(empty, directory):
    change(directory / SETTINGS, chat_template=empty)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.chat_template is None
    tokenizer.save(directory / "again")
    assert AutoTokenizer.from_pretrained(directory / "again").chat_template is None


def test_an_empty_file_of_the_template_goes_before_the_settings_as_any_other(directory):
    """As in transformers, which reads the file where there is one."""
    assert load_tokenizer(directory).chat_template is not None
    (directory / TEMPLATE).write_text("")
    assert load_tokenizer(directory).chat_template is None


def test_templates_of_which_none_is_the_default_are_kept(directory):
    named = [{"name": "tool_use", "template": "{{ tools }}"}]
    change(directory / SETTINGS, chat_template=named)
    tokenizer = load_tokenizer(directory)
    assert tokenizer.chat_template is None and tokenizer.settings["chat_template"] == named


def refusal(directory, name):
    """In one line that begins with the file."""
    with pytest.raises(UserError) as refused:
        load_tokenizer(directory)
    message = str(refused.value)
    assert message.startswith(str(directory / name)) and "\n" not in message and len(message) < 400, message
    return message.removeprefix(str(directory / name))


@pytest.mark.parametrize("entry", [{"name": "default"}, "x", {"name": 3, "template": "x"}, None, {}])
def test_a_list_of_templates_without_names_and_texts_is_refused(entry, directory):
    change(directory / SETTINGS, chat_template=[entry])
    message = f": chat_template has {entry!r}, wanted an object with a name and a template"
    assert refusal(directory, SETTINGS) == message


NO_TOKENS = {
    "extra_special_tokens": [(3, " is 3, wanted a list of tokens, or an object"), ("x", " is 'x', wanted a ")]
    + [({"img": 3}, ": 3 stands for a token, and is no text"), ([{}], ": {} stands for a token")],
    "bos_token": [(7, ": 7 stands for a token"), ({"content": None}, ": {'content': None} stands for a")],
    "added_tokens_decoder": [({"9": {"content": ""}}, " is no object of numbers and tokens with a content")]
    + [({"9": {"content": "x", "special": "yes"}}, " is no object of numbers and tokens with a content")],
}
WRONG_SETTINGS = [(key, bad, says) for key, cases in NO_TOKENS.items() for bad, says in cases]


@pytest.mark.parametrize(("key", "bad", "says"), WRONG_SETTINGS)
def test_what_settings_give_for_a_token_and_is_none_is_refused_by_file_and_key(key, bad, says, directory):
    change(directory / SETTINGS, **{key: bad})
    assert refusal(directory, SETTINGS).startswith(f": {key}{says}")


TOKEN = {"id": 256, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False}
TOKEN |= {"normalized": False, "special": True}
WRONG_ADDED = [
    (None, "added_tokens = None, wanted a list of tokens"),
    (["<x>"], "added_tokens[0] = '<x>', wanted an object"),
    ([{"content": "<x>"}], "added_tokens[0].id = None, wanted a whole number"),
    ([TOKEN, TOKEN | {"id": "257"}], "added_tokens[1].id = '257', wanted a whole number"),
    ([TOKEN | {"id": -1}], "added_tokens[0].id = -1, wanted a whole number"),
    ([TOKEN | {"content": ""}], "added_tokens[0].content = '', wanted the token's text"),
    ([TOKEN | {"special": 1}], "added_tokens[0].special = 1, wanted true or false"),
    ([{"id": 256, "content": "<x>"}], "added_tokens[0].single_word = None, wanted true or false"),
    ([TOKEN | {"id": 2**31 - 5}], "a token has the id 2,147,483,643, and there are only 257 tokens"),
]


@pytest.mark.parametrize(("added", "says"), WRONG_ADDED)
def test_added_tokens_that_are_none_are_refused_by_their_key(added, says, directory):
    change(directory / JSON, added_tokens=added)
    assert refusal(directory, JSON) == f" is not a tokenizer that can be read: {says}"


WRONG_VOCAB = [
    (None, "model.vocab = None, wanted an object of tokens and their ids"),
    ({"a": "0"}, "model.vocab gives 'a' the id '0', no whole number"),
    ({"a": -2}, "model.vocab gives 'a' the id -2, no whole number"),
    ({"a": True}, "model.vocab gives 'a' the id True, no whole number"),
    ([["a", 0.0], "b"], "model.vocab[1] = 'b', wanted a token and its score"),
    ({"a": 2**31 - 5}, "a token has the id 2,147,483,643, and there are only 1 tokens"),
]


@pytest.mark.parametrize(("vocab", "says"), WRONG_VOCAB)
def test_a_vocab_that_is_none_is_refused_by_its_key(vocab, says, directory):
    model = json.loads((directory / JSON).read_text())["model"]
    change(directory / JSON, model=model | {"vocab": vocab}, added_tokens=[])
    assert refusal(directory, JSON) == f" is not a tokenizer that can be read: {says}"


@pytest.mark.parametrize("model", [None, ["vocab"], "vocab", 3])
def test_a_model_that_is_none_is_refused(model, directory):
    change(directory / JSON, model=model)
    says = " is not a tokenizer that can be read: it has no model with a vocab"
    assert refusal(directory, JSON) == says


def test_a_vocab_that_leaves_out_numbers_is_read(directory):
    """gpt-oss leaves out a thousand, a word that was cut from a large vocabulary may keep its own."""
    made = json.loads((directory / JSON).read_text())
    change(directory / JSON, model=made["model"] | {"vocab": made["model"]["vocab"] | {"ab": 64_000}})
    change(directory / JSON, added_tokens=[])
    change(directory / SETTINGS, bos_token=None, eos_token=None, pad_token=None)
    assert load_tokenizer(directory).size == 64_001
