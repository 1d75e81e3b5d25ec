"""The tokenizer inside a GGUF file gives the ids of the one it was converted from."""

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from gguf import GGUFWriter
from gguf_files import write, write_settings
from materials import llama3_tokenizer_dir, mistral_sentencepiece, qwen_tokenizer_dir
from transformers import AutoTokenizer

from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.errors import UserError
from tutelage.text.byte_level import CUTS

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "  two spaces, then three   and a tab\tand a newline\n\n and one more \n",
    "It's we'll I'VE they'd DON'T",
    "1 12 123 1234 12345 3.14159 1,000,000 x86-64 ½ ² ٣٤",
    "    def f(x):\n        return x ** 2  # comment\n",
    "naïve café, Ünïcödé, e\u0301 decomposed, ﬁ ligature",
    "日本語のテキスト 中文 한국어 العربية עברית हिन्दी ไทย",
    "emoji 😀👍🏽 👨‍👩‍👧 🇫🇷 and \u200b zero width \ufeff",
    "<|im_start|>user\nhi<|im_end|><|eot_id|></s><s>[INST]",
    "▁ the underline itself ▁▁, and a \x00 control \x07 character",
    "x" * 200 + " " * 50 + "\n" * 5,
]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def write_vocabulary(path: Path, settings: dict) -> Path:
    writer = GGUFWriter(path, "llama")
    settings = {"llama.block_count": 1} | settings
    write_settings(writer, {key: value for key, value in settings.items() if value is not None})
    return write(writer, path)


def settings_of(directory: Path, cuts: str) -> dict:
    """What llama.cpp's converter writes about a byte-level tokenizer.json."""
    content = json.loads((directory / "tokenizer.json").read_text())
    named = json.loads((directory / "tokenizer_config.json").read_text())
    vocabulary = dict(content["model"]["vocab"])
    kinds = dict.fromkeys(vocabulary, NORMAL)
    for token in content["added_tokens"]:
        vocabulary[token["content"]] = token["id"]
        kinds[token["content"]] = CONTROL if token["special"] else USER_DEFINED
    size = max(vocabulary.values()) + 1 + 7  # models pad their vocabulary
    spelled = {token: content for content, token in vocabulary.items()}
    tokens = [spelled.get(token, f"[PAD{token}]") for token in range(size)]
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cuts,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(content, UNUSED) for content in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": vocabulary[named["eos_token"]],
        "tokenizer.ggml.bos_token_id": vocabulary.get(named.get("bos_token")),
        "tokenizer.ggml.padding_token_id": vocabulary.get(named.get("pad_token")),
        "tokenizer.ggml.add_bos_token": cuts == "llama-bpe",
        "tokenizer.chat_template": named["chat_template"],
    }


@pytest.mark.parametrize(
    ("directory", "cuts"), [(llama3_tokenizer_dir, "llama-bpe"), (qwen_tokenizer_dir, "qwen2")]
)
def test_byte_level_vocabularies_give_the_ids_of_the_official_tokenizer(directory, cuts, tmp_path):
    settings = settings_of(directory(), cuts)
    ours = load_tokenizer(write_vocabulary(tmp_path / "model.gguf", settings))
    official = AutoTokenizer.from_pretrained(directory())
    assert ours.size == len(official), "what pads the vocabulary is no token"
    assert ours.chat_template == official.chat_template
    assert (ours.bos, ours.eos, ours.pad) == (
        official.bos_token_id,
        official.eos_token_id,
        official.pad_token_id,
    )
    specials = {token.content: token_id for token_id, token in official.added_tokens_decoder.items()}
    assert set(ours.control.items()) <= set(specials.items())
    words = [official.decode([token]) for token in range(0, len(official), 41)]  # some no merges lead to
    for text in TEXTS + words:
        plain = text.replace("<|", "< |")  # only our tokenizer tells text from control tokens
        wanted = official(plain, add_special_tokens=False).input_ids
        assert ours.encode(plain) == wanted, text
        assert ours.decode(wanted) == official.decode(wanted, skip_special_tokens=True)


def byte_level(cuts) -> tokenizers.Tokenizer:
    """A tokenizer as its family trains it, on too little text."""
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    digits = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if cuts == "smollm" else []
    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*digits, words])
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS * 3 + ["  1  22   333 "] * 20, trainer)
    return library


@pytest.mark.parametrize("cuts", ["gpt-2", "smollm"])
def test_gpt2_and_smollm_cut_text_as_they_were_trained(cuts, tmp_path):
    library = byte_level(cuts)
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": "{{ messages }}"}
        )
    )
    ours = load_tokenizer(write_vocabulary(tmp_path / "model.gguf", settings_of(tmp_path, cuts)))
    for text in TEXTS:
        plain = text.replace("<|", "< |")
        assert ours.encode(plain) == library.encode(plain).ids
        assert ours.decode(ours.encode(text)) == text
    assert ours.control == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_vocabularies_give_the_ids_of_sentencepiece(prefix, tmp_path):
    model = sentencepiece.SentencePieceProcessor(str(mistral_sentencepiece()))
    tests = [(CONTROL, model.is_control), (UNKNOWN, model.is_unknown), (BYTE, model.is_byte)]
    size = model.vocab_size()
    kinds = [next((kind for kind, test in tests if test(token)), NORMAL) for token in range(size)]
    settings = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(token) for token in range(size)],
        "tokenizer.ggml.scores": [model.get_score(token) for token in range(size)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    ours = load_tokenizer(write_vocabulary(tmp_path / "model.gguf", settings))
    assert (ours.size, ours.bos, ours.eos, ours.pad) == (size, model.bos_id(), model.eos_id(), None)
    special = [token for token in range(size) if kinds[token] in (CONTROL, UNKNOWN)]
    assert ours.control == {model.id_to_piece(token): token for token in special} and len(special) > 5
    for text in TEXTS:
        # Without the prefix the piece for a leading space is written by hand, and cut off again.
        wanted = model.encode(text) if prefix else model.encode("\n" + text)[2:]
        found = ours.encode(text)
        assert found == wanted, text
        assert ours.decode(found) == text.replace("\u2581", " ")  # a space to SentencePiece
    ours.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved("Hello").input_ids == [model.bos_id(), *ours.encode("Hello")]


def test_a_directory_prefers_its_own_tokenizer_files(tmp_path):
    library = byte_level("gpt-2")
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    write_vocabulary(tmp_path / "model.gguf", {"tokenizer.ggml.model": "rwkv"})
    assert load_tokenizer(tmp_path).encode("Hello") == library.encode("Hello").ids


_GPT2 = {"tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": ["a b"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, " carries no tokenizer; give the directory of one"),
        (
            {"tokenizer.ggml.model": "rwkv"},
            ": its tokenizer is of kind 'rwkv', which is not supported; supported are gpt2, llama",
        ),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "bloom"},
            ": its tokenizer cuts text in the way 'bloom', which is not supported; "
            f"supported are {', '.join(CUTS)}",
        ),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"},
            " has no list of tokenizer.ggml.merges; give the directory of a tokenizer",
        ),
        (
            {"tokenizer.ggml.model": "llama"},
            " has no list of tokenizer.ggml.scores; give the directory of a tokenizer",
        ),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.5]},
            ": tokenizer.ggml.scores are 1, and there are 2 tokens",
        ),
        (
            {"tokenizer.ggml.model": "llama", "tokenizer.ggml.token_type": [1]},
            ": tokenizer.ggml.token_type are 1, and there are 2 tokens",
        ),
        (
            {"tokenizer.ggml.model": "gpt2"} | _GPT2 | {"tokenizer.ggml.eos_token_id": 2},
            ": tokenizer.ggml.eos_token_id = 2, and there are 2 tokens",
        ),
        (
            {"tokenizer.ggml.model": "gpt2"},
            ": its tokenizer cuts text in the way None, which is not supported; "
            f"supported are {', '.join(CUTS)}",
        ),
    ],
)
def test_tokenizers_that_cannot_be_rebuilt_are_refused(settings, message, tmp_path):
    vocabulary = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.token_type": [1, 1]}
    path = write_vocabulary(tmp_path / "model.gguf", vocabulary | settings)
    with pytest.raises(UserError) as refused:
        load_tokenizer(path)
    assert str(refused.value) == f"{path}{message}"
