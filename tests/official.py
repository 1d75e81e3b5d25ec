"""The tokenizers and the official chat templates that tests compare ours with."""

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import materials

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.text.tokenizer import Tokenizer

# a tokenizer that goes with each of our templates
SOURCE_OF = {"chatml": "qwen", "smollm2": "smollm2", "qwen2.5_instruct": "qwen", "llama3_instruct": "llama3"}
SOURCE_OF |= {"llama3.1_instruct": "llama3_1", "mistral_instruct": "mistral_v3"}


def trl_template(name: str) -> str:
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text()


def llama_cpp_template(name: str) -> str:
    """The Jinja template that llama.cpp's tests hold, as a C++ string, under a name that begins so."""
    source = materials.llama_cpp_file("tests/test-chat-template.cpp").read_text()
    found = re.search(rf'"{re.escape(name)}[^\n]*\n\s*/\* \.template_str= \*/ ("(?:[^"\\]|\\.)*")', source)
    assert found is not None
    return json.loads(found.group(1))


def chatml_template() -> str:
    return llama_cpp_template("teknium/OpenHermes-2.5-Mistral-7B")


def mistral_template() -> str:
    return llama_cpp_template("Mistral-Large-Instruct-2407 (mistralai 'v3' template")


def source_of(name: str) -> Path:
    """The files of smollm2, qwen, llama3, llama3_1, mistral_v1, mistral_v3 or mistral_v3_legacy."""
    if name == "smollm2":
        return materials.smollm2_gguf()
    if name.startswith("mistral_v3"):
        return materials.mistral_v3_tokenizer_dir(legacy=name.endswith("legacy"))
    return getattr(materials, f"{name}_tokenizer_dir")()


@cache
def tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(source_of(name))


@cache
def oracle(name: str) -> Any:
    """The same tokenizer as transformers reads it, from files; a GGUF file's is first written to some."""
    from transformers import AutoTokenizer

    path = source_of(name)
    if path.is_dir():
        return AutoTokenizer.from_pretrained(path)
    with TemporaryDirectory() as folder:
        tokenizer(name).save(Path(folder))
        return AutoTokenizer.from_pretrained(folder)
