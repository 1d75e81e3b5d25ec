"""What a tokenizer's files leave empty is not there, and what they say wrongly is refused by file and key."""

import json

import pytest
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoTokenizer

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.errors import UserError

SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


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
