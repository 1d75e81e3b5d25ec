"""The tokenizers and the official chat templates that tests compare ours with."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import materials
from official_jinja import ALPACA, LLAMA2, OLMO2, PLAIN, STORYTELLER, TORCHLLMS, ZEPHYR

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.text.tokenizer import Tokenizer

# a tokenizer that goes with each of our templates
SOURCE_OF = {"chatml": "qwen", "smollm2": "smollm2", "qwen2.5_instruct": "qwen", "llama3_instruct": "llama3"}
SOURCE_OF |= {"llama3.1_instruct": "llama3_1", "mistral_instruct": "mistral_v3"}

BEGIN, END = "\ue000", "\ue001"  # what hand-marked templates write around what is learned
_BEGIN, _END = (f"('{mark}' if message['role'] == 'assistant' else '')" for mark in (BEGIN, END))


@dataclass(frozen=True)
class Official:
    """An official template, what of ours it is, and what of it is learned."""

    ours: str
    source: str  # of the tokenizer
    jinja: Callable[[], str]
    twin: str = ""  # TRL's template with generation marks, where there is one
    marks: tuple[tuple[str, str], ...] = ()  # else: pieces of the source, with << and >> where marks belong
    tools: bool = False  # knows tools, and calls of them
    results: bool = True  # knows results of tools
    options: tuple[tuple[str, Any], ...] = ()  # variables that the template is given

    @cache  # noqa: B019
    def marked(self) -> str:
        """The source that writes BEGIN and END around what is learned."""
        source = self.jinja()
        for plain, learned in self.marks:
            marked = learned.replace("<<", f"{_BEGIN} + ").replace(">>", f" + {_END}")
            assert plain in source, plain
            source = source.replace(plain, marked)
        return source


@cache
def trl_template(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


@cache
def llama_cpp_template(name: str) -> str:
    """The Jinja template that llama.cpp's tests hold, as a C++ string, under a name that begins so."""
    source = materials.llama_cpp_file("tests/test-chat-template.cpp").read_text()
    found = re.search(rf'"{re.escape(name)}[^\n]*\n\s*/\* \.template_str= \*/ ("(?:[^"\\]|\\.)*")', source)
    assert found is not None
    return json.loads(found.group(1).replace("\\'", "'"))


def chatml_template() -> str:
    return llama_cpp_template("teknium/OpenHermes-2.5-Mistral-7B")


def mistral_template() -> str:
    return llama_cpp_template("Mistral-Large-Instruct-2407 (mistralai 'v3' template")


_CHATML = (("message['content'] + '<|im_end|>'", "<<message['content'] + '<|im_end|>'>>"),)
_QWEN = (
    ("+ '\\n<think>\\n' +", "+ '\\n' + <<'<think>\\n' +"),
    ("+ message.role + '\\n' + content }}", "+ message.role + '\\n' + <<content }}"),
    (
        "        {{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\"",
        "        {{- '<|im_end|>\\n'>> }}\n    {%- elif message.role == \"tool\"",
    ),
)
_LLAMA31 = (
    (
        "'<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>'",
        "'<|end_header_id|>\\n\\n'+ <<message['content'] | trim + '<|eot_id|>'>>",
    ),
    ('{{- \'{"name": "\' + tool_call.name', '{{- <<\'{"name": "\' + tool_call.name'),
    ('        {{- "}" }}\n        {{- "<|eot_id|>" }}', '        {{- "}" + "<|eot_id|>">> }}'),
    (
        '            {{- "<|eot_id|>" }}\n        {%- endif %}',
        '            {{- "<|eot_id|>">> }}\n        {%- endif %}',
    ),
)
_PHI = (("{{message['content'] + '<|end|>' + '\n'}}", "{{<<message['content'] + '<|end|>' + '\n'>>}}"),)
_MISTRAL = (
    (
        '{{- " " + message["content"]|trim + eos_token}}',
        '{{- <<" " + message["content"]|trim + eos_token>>}}',
    ),
    ('{{- message["content"] + eos_token}}', '{{- <<message["content"] + eos_token>>}}'),
    ("{{- ' ' + message['content'] + eos_token}}", "{{- <<' ' + message['content'] + eos_token>>}}"),
    ("{{ ' ' + message['content'] + eos_token }}", "{{ <<' ' + message['content'] + eos_token>> }}"),
    ('{{- "[TOOL_CALLS] [" }}', '{{- <<"[TOOL_CALLS] [" }}'),
    ('{{- "[TOOL_CALLS][" }}', '{{- <<"[TOOL_CALLS][" }}'),
    ('{{- "]" + eos_token }}', '{{- "]" + eos_token>> }}'),
)
_V1, _V3 = _MISTRAL[2:3], (_MISTRAL[0], _MISTRAL[4], _MISTRAL[6])
_TEKKEN, _V7 = _MISTRAL[1:2] + _MISTRAL[5:], _MISTRAL[3:4]
_EOS = (("message.content + eos_token", "<<message.content + eos_token>>"),)

OFFICIAL = {
    "chatml": Official("chatml", "qwen", chatml_template, marks=_CHATML),
    "smollm2": Official(
        "smollm2", "smollm2", lambda: tokenizer("smollm2").chat_template or "", marks=_CHATML
    ),
    "qwen2.5": Official(
        "qwen2.5_instruct", "qwen", lambda: trl_template("qwen2_5"), "qwen2_5_training", tools=True
    ),
    "qwen2.5_torchllms": Official(
        "qwen2.5_torchllms",
        "qwen",
        lambda: TORCHLLMS,
        marks=(("message.content | trim + '<|im_end|>'", "<<message.content | trim + '<|im_end|>'>>"),),
    ),
    "qwen3": Official("qwen3", "qwen", lambda: trl_template("qwen3"), marks=_QWEN, tools=True),
    "qwen3, in its package": Official(
        "qwen3", "qwen", lambda: tokenizer("qwen").chat_template or "", marks=_QWEN, tools=True
    ),
    "qwen3, not thinking": Official(
        "qwen3_no_thinking",
        "qwen",
        lambda: trl_template("qwen3"),
        marks=_QWEN,
        tools=True,
        options=(("enable_thinking", False),),
    ),
    "qwen3, not thinking, of July 2025": Official(
        "qwen3_instruct_2507",
        "qwen",
        lambda: trl_template("qwen3_instruct_2507"),
        "qwen3_instruct_2507_training",
        tools=True,
    ),
    "llama2": Official(
        "llama2",
        "llama2",
        lambda: LLAMA2,
        marks=(
            (
                "' ' + message.content.strip() + ' ' + eos_token",
                "<<' ' + message.content.strip() + ' ' + eos_token>>",
            ),
        ),
    ),
    "llama3": Official("llama3_instruct", "llama3", lambda: trl_template("llama3"), "llama3_training"),
    "llama3.1": Official(
        "llama3.1_instruct",
        "llama3_1",
        lambda: trl_template("llama3_1"),
        marks=_LLAMA31[:2] + _LLAMA31[3:],
        tools=True,
    ),
    "llama3.2": Official(
        "llama3.2_instruct",
        "llama3_1",
        lambda: trl_template("llama3_2"),
        marks=_LLAMA31[:3],
        tools=True,
        options=(("date_string", "25 Sep 2024"),),
    ),
    "olmo2": Official(
        "olmo2_instruct",
        "qwen",
        lambda: OLMO2,
        marks=_EOS,
        options=(("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>")),
    ),
    "gemma": Official("gemma", "gemma", lambda: trl_template("gemma"), "gemma_training"),
    "gemma3": Official("gemma3", "gemma3", lambda: trl_template("gemma3"), "gemma3_training"),
    "phi3": Official("phi3", "phi3", lambda: trl_template("phi3"), "phi3_training"),
    "phi3.5": Official("phi3.5", "phi3", lambda: trl_template("phi3_5"), "phi3_5_training"),
    "phi3_small": Official(
        "phi3_small",
        "phi3",
        lambda: llama_cpp_template("Phi-3-small"),
        marks=(
            ("message['content'] + '<|end|>\n' }}", "<<message['content'] + '<|end|>\n'>> }}"),
            (
                "{{ eos_token }}",
                "{{ eos_token if messages[-1]['role'] != 'assistant' else '"
                + BEGIN
                + "' + eos_token + '"
                + END
                + "' }}",
            ),
        ),
    ),
    "phi3_medium": Official("phi3_medium", "phi3", lambda: llama_cpp_template("Phi-3-medium"), marks=_PHI),
    "phi3_mini_2024-04": Official(
        "phi3_mini_2024-04", "phi3", lambda: llama_cpp_template("Phi-3-mini"), marks=_PHI
    ),
    "mistral_v1": Official(
        "mistral_v1",
        "mistral_v1_spaced",
        lambda: llama_cpp_template("mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1'"),
        marks=_V1,
    ),
    "mistral_instruct": Official("mistral_instruct", "mistral_v3", mistral_template, marks=_V3, tools=True),
    "mistral_instruct, first published": Official(
        "mistral_instruct", "mistral_v3_legacy", mistral_template, marks=_V3, tools=True
    ),
    "mistral_tekken": Official(
        "mistral_tekken",
        "mistral_tekken",
        lambda: llama_cpp_template("Mistral-Nemo-Instruct-2407"),
        marks=_TEKKEN,
        tools=True,
    ),
    "mistral_v7": Official(
        "mistral_v7",
        "mistral_v7",
        lambda: llama_cpp_template("mistralai/Mistral-Large-Instruct-2411"),
        marks=_V7,
        results=False,
    ),
    "zephyr": Official(
        "zephyr",
        "mistral_v1_spaced",
        lambda: ZEPHYR,
        marks=(("message['content'] + eos_token", "<<message['content'] + eos_token>>"),),
    ),
    "alpaca": Official("alpaca", "mistral_v1_spaced", lambda: ALPACA, marks=_EOS),
    "plain": Official(
        "plain",
        "llama2",
        lambda: PLAIN,
        marks=(
            ("{{- message.content -}}", "{{- <<message.content -}}"),
            ("{{- eos_token -}}", "{{- eos_token>> -}}"),
        ),
    ),
    "storyteller": Official(
        "storyteller",
        "llama2",
        lambda: STORYTELLER,
        marks=(
            (
                "bos_token + message.content.strip() + eos_token",
                "<<bos_token + message.content.strip() + eos_token>>",
            ),
        ),
    ),
}


def source_of(name: str) -> Path:
    """The files of smollm2, qwen, llama3, llama3_1, mistral_v1, mistral_v3, mistral_v3_legacy and others."""
    if name == "smollm2":
        return materials.smollm2_gguf()
    if name.startswith("mistral_v3"):
        return materials.mistral_v3_tokenizer_dir(legacy=name.endswith("legacy"))
    if name == "llama2":
        return materials.llama_cpp_file("models/ggml-vocab-llama-spm.gguf")
    return getattr(materials, f"{name}_tokenizer_dir")()


@cache
def tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(source_of(name))


@cache
def oracle(name: str) -> Any:
    """The same tokenizer as transformers reads it, from files; a single file is first written to some."""
    from transformers import AutoTokenizer

    path = source_of(name)
    if path.is_dir():
        return AutoTokenizer.from_pretrained(path)
    with TemporaryDirectory() as folder:
        tokenizer(name).save(Path(folder))
        return AutoTokenizer.from_pretrained(folder)
