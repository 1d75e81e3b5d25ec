"""Tokenizers, chat templates and config files made to do harm: refused in words, soon, in little memory."""

import json
import struct

import pytest
from hostile import damaged, refusal, survives
from tiny_sentencepiece import write_model
from tiny_tokenizer import tiny_tokenizer

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.config import load
from tutelage.recipes.sft import SFTConfig
from tutelage.text import sandbox
from tutelage.text.sandbox import Probe, render_jinja
from tutelage.text.template import Template


@pytest.fixture
def directory(tmp_path):
    tiny_tokenizer().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("spm") / "tokenizer.model"
    write_model(path)
    return path.read_bytes()


def changed(path, **values):
    return json.dumps(json.loads(path.read_text()) | values)


TOKENIZERS = {
    "empty": lambda path: "",
    "cut short": lambda path: path.read_text()[:500],
    "a list": lambda path: "[]",
    "null": lambda path: "null",
    "nested 100,000 deep": lambda path: "[" * 100_000,
    "no model": lambda path: changed(path, model=None),
    "a model that is text": lambda path: changed(path, model="BPE"),
    "an unheard-of model": lambda path: changed(path, model={"type": "Magic", "vocab": {}}),
    "added tokens that are numbers": lambda path: changed(path, added_tokens=[1, 2]),
    "an added token without id": lambda path: changed(path, added_tokens=[{"content": "x"}]),
    "an added token far away": lambda path: changed(
        path, added_tokens=[{"id": 1 << 62, "content": "x", "special": True}]
    ),
    "a negative id": lambda path: changed(path, added_tokens=[{"id": -3, "content": "x", "special": True}]),
    "ids that are text": lambda path: changed(path, model={"type": "BPE", "vocab": {"a": "1"}, "merges": []}),
    "a vocabulary that is a list of numbers": lambda path: changed(
        path, model={"type": "BPE", "vocab": [1, 2], "merges": []}
    ),
    "merges of what is not there": lambda path: changed(
        path, model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}
    ),
    "not UTF-8": lambda path: b'{"a": "\xff"}',
    "half a surrogate": lambda path: '{"a": "\\ud800"}',
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers_made_to_do_harm_are_refused(directory, kind):
    path = directory / "tokenizer.json"
    content = TOKENIZERS[kind](path)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(load_tokenizer, directory, names=str(directory))


SETTINGS = {
    "no JSON": "{",
    "a list": "[1]",
    "nested 100,000 deep": '{"a":' * 100_000,
    "not UTF-8": b'{"a": "\xff"}',
    "a token that is a number": '{"bos_token": 7}',
    "a token that is a list": '{"eos_token": ["a"]}',
    "added tokens with names for ids": '{"added_tokens_decoder": {"x": {"content": "y"}}}',
    "added tokens that are a list": '{"added_tokens_decoder": [1]}',
    "an added token that is text": '{"added_tokens_decoder": {"3": "x"}}',
    "special tokens that are numbers": '{"additional_special_tokens": [1, 2]}',
    "a template that is a number": '{"chat_template": 7}',
    "templates without names": '{"chat_template": [{"x": 1}]}',
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_of_tokenizers_made_to_do_harm_are_refused(directory, kind):
    content = SETTINGS[kind]
    path = directory / "tokenizer_config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(load_tokenizer, directory, names=str(directory))


def field(number, value):
    return bytes([number << 3 | 2]) + struct.pack("B", len(value)) + value


MODELS = {
    "empty": b"",
    "zeros": bytes(1000),
    "text": b"this is no model at all, only words",
    "a length beyond the file": b"\x0a\xff\xff\xff\xff\x0fabc",
    "a number without end": b"\x0a" + b"\xff" * 1000,
    "groups, which nobody writes": b"\x0b" * 1000,
    "pieces without text": field(1, b"") * 5,
    "a piece that is not UTF-8": field(1, field(1, b"\xff\xfe")),
    "a text that is a number": field(1, b"\x08\x05"),
    "a kind that is a text": field(1, field(1, b"a") + field(3, b"b")),
    "a kind that is none": field(1, field(1, b"a") + b"\x18\x63"),
    "a trainer that is a number": field(1, field(1, b"a") + b"\x18\x02") + b"\x10\x05",
    "characters that are a number": field(1, field(1, b"a") + b"\x18\x02") + field(3, b"\x10\x05"),
    "no unknown token": field(1, field(1, b"a")),
}


@pytest.mark.parametrize("kind", MODELS)
def test_sentencepiece_models_made_to_do_harm_are_refused(tmp_path, kind):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(MODELS[kind])
    refusal(load_tokenizer, path, names=str(path))


@pytest.mark.parametrize("seeds", [range(25), pytest.param(range(25, 800), marks=pytest.mark.slow)])
def test_random_damage_to_tokenizers_is_harmless(directory, tmp_path, sentencepiece, seeds):
    failed, model = 0, tmp_path / "spm" / "tokenizer.model"
    model.parent.mkdir()
    for path in (directory / "tokenizer.json", directory / "tokenizer_config.json", model):
        sound = sentencepiece if path == model else path.read_bytes()
        for seed in seeds:
            path.write_bytes(damaged(sound, seed))
            failed += not survives(load_tokenizer, path.parent)
        path.write_bytes(sound)
    assert failed > len(seeds)


LAUGHS = "a: &a [x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
TEMPLATES = {
    "empty": "",
    "a list": "- a\n",
    "a tab": "control:\t[a]\n\tb: c\n",
    "a tag of Python": "control: !!python/object/apply:os.system ['true']\n",
    "a cycle": "control: &a [*a]\nuser: {}\nassistant: {}\nstop: []\njinja: x\n",
    "a section that is itself": "control: []\nuser: &u {start: *u}\nassistant: {}\nstop: []\njinja: x\n",
    "a billion laughs": LAUGHS,
    "laughs where strings belong": LAUGHS + "control: *l\nuser: {}\nassistant: {}\nstop: []\njinja: x\n",
    "nested 20,000 deep": "[" * 20_000,
    "a key given twice": "control: []\ncontrol: [a]\nuser: {}\nassistant: {}\nstop: []\njinja: x\n",
    "an unhashable key": "{[a]: b}\n",
    "not UTF-8": b"control: [\xff]\n",
    "a NUL": "control: ['\0']\n",
    "a date": "control: [2001-01-01]\nuser: {}\nassistant: {}\nstop: []\njinja: x\n",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_made_to_do_harm_are_refused(tmp_path, kind):
    path, content = tmp_path / "template.yaml", TEMPLATES[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(Template.load, str(path), names=str(path))


CONFIGS = {
    "a cycle": "lr: &a [*a]\n",
    "a billion laughs": LAUGHS,
    "a tag of Python": "lr: !!python/object/apply:os.system ['true']\n",
    "a key given twice": "lr: 1\nlr: 2\n",
    "a tab": "lr:\t1\n\tseed: 2\n",
    "nested 20,000 deep": "[" * 20_000,
    "a list": "- lr\n",
    "not UTF-8": b"lr: \xff\n",
    "a number of 100,000 digits": f"seed: {'9' * 100_000}\n",
    "a NUL": "lr: \0\n",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_config_files_made_to_do_harm_are_refused(tmp_path, kind):
    path, content = tmp_path / "sft.yaml", CONFIGS[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(load, "sft", SFTConfig, ["--config", str(path)], names=str(path))


JINJA = {
    "an endless loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a huge output": "{{ 'x' * 100000000 }}",
    "a huge number": "{{ 9 ** 99999999 }}",
    "a loop in a huge range": "{% for a in range(10 ** 12) %}{% endfor %}",
    "no template": "{% if %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "nested 3,000 deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
}


@pytest.mark.parametrize("kind", JINJA)
def test_a_models_own_template_cannot_run_for_ever(monkeypatch, kind):
    monkeypatch.setattr(sandbox, "_SECONDS", 4)
    probe = Probe([{"role": "user", "content": "x"}], reply=False)
    try:
        texts = render_jinja(JINJA[kind], [probe], tiny_tokenizer())
    except Exception as error:
        assert type(error).__name__ == "UserError" and "the model's own chat template" in str(error)
    else:
        assert texts == [None]  # refused for that conversation


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['resource'] }}",
    "{{ (lipsum|attr('__globals__'))['os'] }}",
    "{{ '%s'|format(messages.append(1)) }}",
    "{{ '{0.__class__}'.format(messages) }}",
]


def test_a_models_own_template_reaches_nothing_of_the_program():
    texts = [
        text
        for escape in ESCAPES
        for text in render_jinja(escape, [Probe([{"role": "user", "content": "x"}], False)], tiny_tokenizer())
    ]
    assert [text for text in texts if text and text.strip()] == []
