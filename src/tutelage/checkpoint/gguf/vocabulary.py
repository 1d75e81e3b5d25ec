"""A tokenizer as a GGUF file states it, key for key as llama.cpp's converter writes it."""

import json
import re
from typing import Any

from tutelage.checkpoint.gguf.cuts import name_of_cut
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.text.sentencepiece_file import read_model
from tutelage.text.sentencepiece_model import Kind
from tutelage.text.special_tokens import complete, model_ids
from tutelage.text.tokenizer import Tokenizer

_IDS = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # sep, cls and mask are BERT's
_ADDED_SCORE, _NO_SCORE = -1000.0, -10000.0  # of added tokens, and of ids that no token has
_SPACE = "\u2581"  # how SentencePiece writes a space
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Tokens that count as control tokens though their own model does not call them so: of Gemma, DeepSeek, Phi.
_LOOKS_SPECIAL = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<｜.*｜>|<unused.*>", re.DOTALL)


def vocabulary_settings(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, Any]:
    """The keys of `tokenizer.`: the token of every id, how text becomes tokens, and which are special.

    UserError where llama.cpp would make other tokens of a text.
    """
    if tokenizer.size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.size} tokens and the model embeds {config.vocab_size}; GGUF keeps "
            "one list for both: give the tokenizer that the model was trained with by --tokenizer"
        )
    vocabulary = json.loads(tokenizer.source)
    complete(vocabulary, tokenizer.settings)
    model = vocabulary["model"]
    if model.get("type") != "BPE":
        raise UserError(f"the tokenizer is of type {model.get('type')}; as GGUF only BPE can be written")
    kept = _sentencepiece if model.get("byte_fallback") else _byte_level
    settings = kept(tokenizer, vocabulary, config.vocab_size) | _special(tokenizer, config)
    if begins := _begins_with(vocabulary):
        settings["tokenizer.ggml.add_bos_token"] = begins == tokenizer.named.get("bos_token")
    for name in ("bos", "eos"):
        key = f"add_{name}_token"
        if isinstance(tokenizer.settings.get(key), bool):
            settings[f"tokenizer.ggml.{key}"] = tokenizer.settings[key]
    # what llama.cpp takes for granted by the kind of vocabulary is stated, so that nobody guesses
    settings.setdefault("tokenizer.ggml.add_bos_token", False)
    if tokenizer.chat_template is not None:
        settings["tokenizer.chat_template"] = tokenizer.chat_template
    return settings


def _byte_level(tokenizer: Tokenizer, vocabulary: dict[str, Any], size: int) -> dict[str, Any]:
    """GPT-2's BPE over bytes."""
    cut = name_of_cut(vocabulary)
    if not vocabulary["model"]["merges"]:
        raise UserError("the tokenizer has no merges, only bytes, and llama.cpp loads none without any")
    tokens = [f"[PAD{token}]" for token in range(size)]
    kinds: list[int] = [Kind.UNUSED] * size
    for content, token in model_ids(vocabulary).items():
        tokens[token], kinds[token] = content, Kind.NORMAL
    for added in vocabulary["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = _added(added)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": cut,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [_merge(pair) for pair in vocabulary["model"]["merges"]],
    }


def _sentencepiece(tokenizer: Tokenizer, vocabulary: dict[str, Any], size: int) -> dict[str, Any]:
    """SentencePiece's BPE, of the model it was made of, or where none is kept of what tokenizer.json says."""
    tokens = [f"[PAD{token}]" for token in range(size)]
    scores = [_NO_SCORE] * size
    kinds: list[int] = [Kind.UNUSED] * size
    if tokenizer.sentencepiece is not None:
        try:
            model, _ = read_model(tokenizer.sentencepiece)
        except ValueError as error:
            raise UserError(
                "the tokenizer.model beside tokenizer.json, which GGUF takes scores from, cannot be used: "
                f"{error}"
            ) from error
        found, prefix = zip(model.tokens, model.scores, model.kinds, strict=True), model.prefix
    else:
        found, prefix = _pieces(vocabulary), _has_prefix(vocabulary)
    for token, (content, score, kind) in enumerate(found):
        tokens[token], scores[token], kinds[token] = content, score, kind
    stated = {int(token) for token in tokenizer.settings.get("added_tokens_decoder", {})}
    for added in vocabulary["added_tokens"]:
        token = added["id"]
        if kinds[token] == Kind.UNUSED or token in stated:
            tokens[token], kinds[token] = _added(added)
            scores[token] = _ADDED_SCORE
    settings = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
    }
    return settings if prefix else settings | {"tokenizer.ggml.add_space_prefix": False}


def _pieces(vocabulary: dict[str, Any]) -> list[tuple[str, float, int]]:
    """Text, score and kind of each token of a tokenizer.json that SentencePiece's BPE was made into.

    Its merges are in the order of their tokens' scores, so that their places serve as scores.
    """
    ids = model_ids(vocabulary)
    unknown = vocabulary["model"].get("unk_token")
    control = {added["id"] for added in vocabulary["added_tokens"] if added["special"]}
    scores: dict[str, float] = {}
    last = ""
    for place, pair in enumerate(vocabulary["model"]["merges"]):
        content = "".join(pair.split(" ", 1) if isinstance(pair, str) else pair)
        if content in scores and content != last:
            raise UserError(
                f"the tokenizer's merges are not in an order of scores (those that make {content!r} lie "
                "apart), so they are not SentencePiece's and cannot be written as GGUF; put its "
                "tokenizer.model beside tokenizer.json"
            )
        scores.setdefault(content, float(-place))
        last = content

    def kind(content: str, token: int) -> int:
        if content == unknown:
            return Kind.UNKNOWN
        if _BYTE.fullmatch(content):
            return Kind.BYTE
        return Kind.CONTROL if token in control else Kind.NORMAL

    spelled = {token: content for content, token in ids.items()}
    fewest = -float(len(vocabulary["model"]["merges"]))
    missing = ("", _NO_SCORE, int(Kind.UNUSED))
    return [
        (spelled[token], scores.get(spelled[token], fewest), kind(spelled[token], token))
        if token in spelled
        else missing
        for token in range(1 + max(spelled, default=-1))
    ]


def _has_prefix(vocabulary: dict[str, Any]) -> bool:
    """Whether a text is read with a space before it."""
    steps = json.dumps([vocabulary.get("normalizer"), vocabulary.get("pre_tokenizer")])
    return '"Prepend"' in steps or '"always"' in steps or '"first"' in steps


def _added(added: dict[str, Any]) -> tuple[str, int]:
    """Text and kind of an added token."""
    content = added["content"]
    if added["special"] or _LOOKS_SPECIAL.fullmatch(content):
        return content, Kind.CONTROL
    return content.replace(_SPACE, " "), Kind.USER_DEFINED


def _merge(pair: str | list[str]) -> str:
    """`left right`; a space within either is spelled as bytes are."""
    return pair if isinstance(pair, str) else " ".join(part.replace(" ", "\u0120") for part in pair)


def _begins_with(vocabulary: dict[str, Any]) -> str | None:
    """The control token that the post-processor puts before every text."""
    processor = vocabulary.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        single = step.get("single", [])
        if step.get("type") == "TemplateProcessing" and len(single) > 1:
            return single[0].get("SpecialToken", {}).get("id")
    return None


def _special(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, int]:
    """Ids of BOS, EOS and their kin: the tokenizer's, else the model's; and another end of replies."""
    ids = {name: tokenizer.control.get(tokenizer.named.get(f"{name}_token", "")) for name in _IDS}
    first = config.eos[0] if config.eos else None
    own = {"bos": config.bos, "eos": first, "pad": config.pad, "unk": None}
    ids = {name: own[name] if token is None else token for name, token in ids.items()}
    ends = [token for token in config.eos if token != ids["eos"]]
    settings = {f"tokenizer.ggml.{_IDS[name]}_token_id": token for name, token in ids.items()}
    settings |= {"tokenizer.ggml.eot_token_id": ends[0] if ends else None}
    return {key: token for key, token in settings.items() if token is not None}
