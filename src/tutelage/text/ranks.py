"""Vocabularies kept as ranks: tiktoken's files, a token and its rank a line, and Mistral's tekken.json.

Neither says all: how Llama 3 and Qwen cut text, and what their control tokens are, stands in their programs.
"""

import base64
import binascii
import json
import re
from typing import Any

from tutelage.text.byte_level import CUTS, Cut, ranked
from tutelage.text.sentencepiece_model import Kind, added_tokens

_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")
_LLAMA3_CONTROL = [  # meta-llama/llama-models, models/llama3/tokenizer.py
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
    *("<|eot_id|>", "<|python_tag|>", "<|image|>"),
    *(f"<|reserved_special_token_{number}|>" for number in range(2, 246)),
]
_QWEN_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))]
_TEKKEN_CONTROL = [  # of files up to version 7, which do not list them
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"),
    *("[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
]


def is_ranks(content: bytes) -> bool:
    """Whether a file begins as tiktoken's do."""
    return _LINE.match(content) is not None


def tiktoken_files(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer.json` and `tokenizer_config.json`, parsed, of a file of ranks; ValueError, saying why."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"line {number} is not a token in base64 and its rank") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("its ranks are not 0, 1, 2 and so on, each once: it is damaged")
    if len(ranks) == 128000:
        named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
        named["pad_token"] = "<|finetune_right_pad_id|>"
        return _files(ranked(ranks, CUTS["llama-bpe"]), _LLAMA3_CONTROL, named, first=len(ranks))
    if len(ranks) == 151643:
        named = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
        return _files(ranked(ranks, CUTS["qwen2"]), _QWEN_CONTROL, named, first=len(ranks))
    raise ValueError(
        f"it holds {len(ranks):,} ranks and does not say how text is cut before; "
        "known are Llama 3's file of 128,000 and Qwen's of 151,643"
    )


def tekken_files(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of a parsed tekken.json, where control tokens come first; ValueError, saying why."""
    try:
        config = content["config"]
        size, n_control = config["default_vocab_size"], config["default_num_special_tokens"]
        ranks = {
            base64.b64decode(token["token_bytes"]): token["rank"]
            for token in content["vocab"][: size - n_control]
        }
        cut = Cut((config["pattern"],), whole=True)
        listed = content.get("special_tokens")
        control = _TEKKEN_CONTROL if listed is None else [token["token_str"] for token in listed]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("it is damaged, or no tekken.json") from error
    if sorted(ranks.values()) != list(range(size - n_control)) or len(control) > n_control:
        raise ValueError(
            f"it does not hold {size - n_control:,} ranks and at most {n_control:,} control tokens"
        )
    control = [*control, *(f"<SPECIAL_{number}>" for number in range(len(control), n_control))]
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    named = {name: token for name, token in named.items() if token in control}
    parts = ranked(ranks, cut, first=n_control)
    parts["model"]["vocab"] = dict(zip(control, range(n_control), strict=True)) | parts["model"]["vocab"]
    if len(parts["model"]["vocab"]) < size:
        raise ValueError("a control token is also an ordinary one")
    return _files(parts, control, named, first=0)


def is_tekken(content: Any) -> bool:
    """Whether parsed JSON is laid out as a tekken.json."""
    return isinstance(content, dict) and isinstance(content.get("config"), dict) and "vocab" in content


def parse_tekken(content: bytes) -> dict[str, Any]:
    """The parsed file; ValueError where it is none."""
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise ValueError(f"it is not valid JSON: {error}") from error
    if not is_tekken(parsed):
        raise ValueError("it is no tekken.json: it has no config with a pattern, or no vocab")
    return parsed


def _files(
    parts: dict[str, Any], control: list[str], named: dict[str, str], *, first: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both files, the control tokens having the ids from `first` on."""
    added = added_tokens(control, [Kind.CONTROL] * len(control), (Kind.CONTROL,))
    added = [{**token, "id": token["id"] + first} for token in added]
    made = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **parts}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    return made, config | {"add_bos_token": "bos_token" in named}
