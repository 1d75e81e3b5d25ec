"""llama.cpp's test vectors, 46 texts or more for each vocabulary: out of its .gguf files and of others."""

import pytest
from real_tokenizers import path_of, tokenizer, vectors, vocabulary

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.errors import UserError
from tutelage.text.tokenizer import Tokenizer

slow = pytest.mark.slow
NAMES = ["llama-spm", "llama-bpe", "qwen2", "phi-3", "gpt-2"]
OTHERS = ["falcon", "deepseek-coder", "starcoder", "refact", "mpt", "command-r", "qwen35"]


def misses(ours: Tokenizer, name: str) -> list[tuple[str, list[int], list[int]]]:
    found = [(text, ours.encode(text), ids) for text, ids in vectors(name)]
    assert len(found) >= 46
    return [each for each in found if each[1] != each[2]]


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=slow) for name in OTHERS)])
def test_a_gguf_vocabulary_gives_the_ids_of_llama_cpps_vectors(name):
    assert misses(load_tokenizer(vocabulary(name)), name) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("gpt-2", "gpt2"),
        pytest.param("llama-bpe", "llama3", marks=slow),
        pytest.param("qwen2", "qwen3", marks=slow),
        pytest.param("llama-bpe", "llama3_ranks", marks=slow),
        pytest.param("llama-bpe", "llama3_1", marks=slow),
        pytest.param("qwen2", "qwen_ranks", marks=slow),
    ],
)
def test_the_files_of_the_same_vocabulary_do_too(name, source):
    assert misses(tokenizer(source), name) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bert-bge", "its tokenizer is of kind 'bert', which is not supported; supported are gpt2, llama"),
        (
            "nomic-bert-moe",
            "its tokenizer is of kind 't5', which is not supported; supported are gpt2, llama",
        ),
        ("gemma-4", "its tokenizer is of kind 'gemma4', which is not supported; supported are gpt2, llama"),
        ("deepseek-llm", "its tokenizer cuts text in the way 'deepseek-llm', which is not supported; "),
        ("gpt-neox", "its tokenizer cuts text in the way None, which is not supported; "),
    ],
)
def test_the_others_are_refused_by_name(name, reason):
    with pytest.raises(UserError) as refused:
        load_tokenizer(vocabulary(name))
    assert str(refused.value).startswith(f"{vocabulary(name)}: {reason}")


def test_phi_3s_control_tokens_are_those_of_its_vocabulary():
    ours = tokenizer("phi3")
    assert path_of("phi3") == vocabulary("phi-3")
    assert (ours.control["<|user|>"], ours.control["<|end|>"], ours.control["<|assistant|>"]) == (
        32010,
        32007,
        32001,
    )
