"""What a parsed tokenizer.json must say of its tokens: checked before anything is made of it."""

from typing import Any

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Published vocabularies leave out some hundreds of numbers, and tiny ones may keep those of a large one.
_SPARSE, _SPARE = 10, 100_000


def check_vocabulary(vocabulary: Any) -> None:
    """ValueError, by its key, for tokens without text or number, and for numbers far beyond their count."""
    model = vocabulary.get("model") if isinstance(vocabulary, dict) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise ValueError("it has no model with a vocab")
    known, added = model["vocab"], vocabulary.get("added_tokens", [])
    _check_model(known)
    if not isinstance(added, list):
        raise ValueError(f"added_tokens = {_shown(added)}, wanted a list of tokens")
    for place, token in enumerate(added):
        _check_added(token, place)
    ids = [*(known.values() if isinstance(known, dict) else ()), *(token["id"] for token in added)]
    count = len(known) + len(added)
    if (last := max(ids, default=0)) > _SPARSE * count + _SPARE:
        raise ValueError(f"a token has the id {last:,}, and there are only {count:,} tokens")


def _check_model(known: Any) -> None:
    """Of BPE and words an object of tokens and ids; of Unigram a list of tokens with scores."""
    if isinstance(known, dict):
        wrong = next((token for token, index in known.items() if not _is_id(index)), None)
        if wrong is not None:
            raise ValueError(
                f"model.vocab gives {wrong[:80]!r} the id {_shown(known[wrong])}, no whole number"
            )
    elif isinstance(known, list):
        for place, entry in enumerate(known):
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
                raise ValueError(f"model.vocab[{place}] = {_shown(entry)}, wanted a token and its score")
    else:
        raise ValueError(f"model.vocab = {_shown(known)}, wanted an object of tokens and their ids")


def _check_added(token: Any, place: int) -> None:
    if not isinstance(token, dict):
        raise ValueError(f"added_tokens[{place}] = {_shown(token)}, wanted an object")
    if not _is_id(token.get("id")):
        raise ValueError(f"added_tokens[{place}].id = {_shown(token.get('id'))}, wanted a whole number")
    content = token.get("content")
    if not isinstance(content, str) or not content:
        raise ValueError(f"added_tokens[{place}].content = {_shown(content)}, wanted the token's text")
    for flag in _FLAGS:
        if not isinstance(token.get(flag), bool):
            raise ValueError(
                f"added_tokens[{place}].{flag} = {_shown(token.get(flag))}, wanted true or false"
            )


def _is_id(value: Any) -> bool:
    return type(value) is int and value >= 0


def _shown(value: Any) -> str:
    return repr(value)[:80]
