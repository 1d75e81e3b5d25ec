"""Which tokens of a vocabulary are control tokens, from tokenizer.json and the settings files beside it."""

import json
from pathlib import Path
from typing import Any

from tutelage.errors import UserError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LISTED = ("additional_special_tokens", "extra_special_tokens")


def read_settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, with special_tokens_map.json and chat_template.jinja where these exist.

    The map goes before older settings, and after those that number their added tokens, as in transformers."""
    settings = _read_json(directory / "tokenizer_config.json")
    named = _read_json(directory / "special_tokens_map.json")
    settings = {**named, **settings} if "added_tokens_decoder" in settings else {**settings, **named}
    declared = settings.get("added_tokens_decoder", {})
    if not isinstance(declared, dict) or not all(map(_declares, declared.items())):
        raise UserError(
            f"{directory / 'tokenizer_config.json'}: added_tokens_decoder is no object of numbers and tokens "
            "with a content, as transformers writes it"
        )
    template = directory / "chat_template.jinja"
    if template.is_file():
        try:
            settings["chat_template"] = template.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{template} is not text in UTF-8: {error}") from error
    written = settings.get("chat_template")
    templates = [each["template"] for each in written] if isinstance(written, list) else [written]
    if not any(map(_says, templates)):
        settings.pop("chat_template", None)
    return settings


def added_beside(settings: dict[str, Any], directory: Path, *, normalized: bool = True) -> dict[str, Any]:
    """The settings with what an added_tokens.json numbers, as directories without tokenizer.json have it.

    Not `normalized` are those of SentencePiece, whose normaliser would put a space before each."""
    special = _special_names(settings)
    declared = dict(settings.get("added_tokens_decoder", {}))
    known = {token["content"] for token in declared.values()}
    numbers = _read_json(directory / "added_tokens.json")
    if not all(isinstance(index, int) for index in numbers.values()):
        raise UserError(f"{directory / 'added_tokens.json'}: an object of tokens and their numbers is wanted")
    for content, index in numbers.items():
        if content not in known:
            flags = {"special": content in special, "normalized": normalized and content not in special}
            declared.setdefault(str(index), {"content": content, **flags})
    return {**settings, "added_tokens_decoder": declared} if declared else settings


def complete(vocabulary: dict[str, Any], settings: dict[str, Any]) -> None:
    """Put into a parsed tokenizer.json the added tokens that only the settings declare, special as they say.

    Those that they name without a number come after all others. Transformers does the same on loading;
    without it ids would differ from its."""
    added = {token["id"]: token for token in vocabulary.get("added_tokens", [])}
    for index, token in settings.get("added_tokens_decoder", {}).items():
        added.setdefault(int(index), {"id": int(index), **_FLAGS, **token})
    special, model = _special_names(settings), model_ids(vocabulary)
    known, after = (
        {token["content"] for token in added.values()},
        1 + max([*added, *model.values()], default=-1),
    )
    for content in special:
        if content not in known:
            place = model.get(content, after)
            added.setdefault(place, {"id": place, "content": content, **_FLAGS})
            after += place == after
    for token in added.values():
        token["special"] = token["special"] or token["content"] in special
    vocabulary["added_tokens"] = [added[index] for index in sorted(added)]


def bounds(bos: tuple[str, int] | None, eos: tuple[str, int] | None = None) -> dict[str, Any] | None:
    """What transformers puts around a text when asked to, each a token and its id; our templates write it."""
    if bos is None and eos is None:
        return None
    one, two = ([{"Sequence": {"id": name, "type_id": kind}}] for kind, name in enumerate("AB"))

    def bounded(text: list[dict[str, Any]], kind: int) -> list[dict[str, Any]]:
        before, after = (
            [] if token is None else [{"SpecialToken": {"id": token[0], "type_id": kind}}]
            for token in (bos, eos)
        )
        return [*before, *text, *after]

    return {
        "type": "TemplateProcessing",
        "single": bounded(one, 0),
        "pair": [*bounded(one, 0), *bounded(two, 1)],
        "special_tokens": {
            token[0]: {"id": token[0], "ids": [token[1]], "tokens": [token[0]]}
            for token in (bos, eos)
            if token is not None
        },
    }


def control_tokens(vocabulary: dict[str, Any]) -> dict[str, int]:
    """The control tokens of a completed tokenizer.json, with their ids, in the order of these."""
    return {token["content"]: token["id"] for token in vocabulary["added_tokens"] if token["special"]}


def model_ids(vocabulary: dict[str, Any]) -> dict[str, int]:
    """The ids that the model, without added tokens, knows."""
    known = vocabulary["model"]["vocab"]
    return known if isinstance(known, dict) else {token: index for index, (token, _) in enumerate(known)}


def content_of(token: Any) -> str | None:
    """The text of a token as settings write it: a string, or an object with `content`; "" is no token."""
    return (token.get("content") if isinstance(token, dict) else token) or None


def default_template(template: Any) -> str | None:
    """The chat template of settings that hold one, or a list of named ones; an empty one is none."""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if _says(template) else None


def _says(template: str | None) -> bool:
    return bool(template and template.strip())


_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _declares(entry: tuple[str, Any]) -> bool:
    index, token = entry
    if not (index.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)):
        return False
    return token["content"] != "" and all(isinstance(token.get(flag, False), bool) for flag in _FLAGS)


def _special_names(settings: dict[str, Any]) -> dict[str, None]:
    """What the settings call special, each once, in the order in which transformers looks at them."""
    named = [settings.get(name) for name in NAMED]
    for key in LISTED:
        listed = settings.get(key) or []
        named += listed.values() if isinstance(listed, dict) else listed
    return dict.fromkeys(content for token in named if (content := content_of(token)) is not None)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deep for a file of settings") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, an object is wanted")
    _check(content, path)
    return content


def _check(settings: dict[str, Any], path: Path) -> None:
    """Refuse tokens and templates that are neither text nor an object with their text."""
    said = [(name, settings.get(name)) for name in NAMED]
    for key in LISTED:
        tokens = settings.get(key) or []
        if not isinstance(tokens, list | dict):
            raise UserError(f"{path}: {key} is {repr(tokens)[:80]}, wanted a list of tokens, or an object")
        said += [(key, token) for token in (tokens.values() if isinstance(tokens, dict) else tokens)]
    for key, token in said:
        content = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(content, str):
            raise UserError(f"{path}: {key}: {repr(token)[:80]} stands for a token, and is no text")
    template = settings.get("chat_template")
    if template is not None and not isinstance(template, str | list):
        raise UserError(f"{path}: chat_template is {repr(template)[:80]}, not a text")
    for entry in template if isinstance(template, list) else []:
        words = [entry.get("name"), entry.get("template")] if isinstance(entry, dict) else [None]
        if not all(isinstance(word, str) for word in words):
            raise UserError(
                f"{path}: chat_template has {repr(entry)[:80]}, wanted an object with a name and a template"
            )
