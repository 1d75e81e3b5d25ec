"""The YAML file of a chat template, read and checked; `templates/README.md` explains every key."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import UserError
from tutelage.text.pieces import Piece
from tutelage.text.roles import MESSAGE_ROLES, ROLE_IDS

BUILT_INS = Path(__file__).parent / "templates"
OTHER = ROLE_IDS["other"]


@dataclass(frozen=True)
class Turn:
    """What a template writes around the messages of one role."""

    start: tuple[Piece, ...]  # the header
    lead: tuple[Piece, ...]  # opens the message itself: has its role, and is learned with it
    end: tuple[Piece, ...]  # closes the message: has its role, and is learned with it
    after: tuple[Piece, ...]
    open: tuple[Piece, ...]  # before the first of several messages of this role in a row
    close: tuple[Piece, ...]  # after the last of them
    strip: bool  # the message loses the white space around it
    learned: bool


@dataclass(frozen=True)
class TemplateFile:
    """A checked template file. With `into`, a system text and this separator open the last user message."""

    control: tuple[str, ...]
    bos: tuple[Piece, ...]
    turns: dict[str, Turn]
    into: str | None
    default_system: str | None
    reply: tuple[Piece, ...]
    stop: tuple[str, ...]
    jinja: str


def built_in_names() -> list[str]:
    """The templates that come with the program."""
    return sorted(path.stem for path in BUILT_INS.glob("*.yaml"))


def find_template(name_or_path: str | Path) -> Path:
    """The file of a built-in, named with or without .yaml, or the path itself."""
    given = Path(name_or_path)
    name = given.name.removesuffix(".yaml")
    if len(given.parts) == 1 and name in built_in_names():
        return BUILT_INS / f"{name}.yaml"
    if not given.is_file():
        raise UserError(
            f"--template_config {name_or_path} is neither a file nor a built-in template; "
            f"these are {', '.join(built_in_names())}"
        )
    return given


def read_template(path: Path) -> TemplateFile:
    """The template in a YAML file; UserError names the file and the key of the first mistake."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Once)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deep for a template") from error
    return _Reader(path).template(content)


class _Once(yaml.SafeLoader):
    """Refuses a key that is given twice: of two values one would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.value in seen or seen.add(key.value)):
                raise yaml.MarkedYAMLError(None, None, f"{key.value} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


_STRING, _OPTIONAL, _STRINGS, _FLAG, _SECTION = (
    "a string",
    "a string or null",
    "a list of strings",
    "true or false",
    "a section of keys",
)
_TURN_KEYS = {"start": _STRING, "lead": _STRING, "end": _STRING, "after": _STRING, "strip": _FLAG}
_RUN_KEYS = {"open": _STRING, "close": _STRING}
_INTO_KEYS = {"into": _STRING, "separator": _STRING}
_KEYS = {"control": _STRINGS, "bos": _STRING, "system": _SECTION, "user": _SECTION, "assistant": _SECTION}
_KEYS |= {"tool": _SECTION, "default_system": _OPTIONAL, "learned": _STRINGS, "reply": _STRINGS}
_KEYS |= {"stop": _STRINGS, "jinja": _STRING}
_REQUIRED = ("control", "user", "assistant", "stop", "jinja")


class _Reader:
    """Turns the content of one file into a TemplateFile, and knows the file's name for its complaints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.control = re.compile("(?!)")

    def template(self, content: Any) -> TemplateFile:
        if not isinstance(content, dict):
            raise UserError(f"{self.path} holds no keys; a template has at least {', '.join(_REQUIRED)}")
        self._check(content, _KEYS, "")
        missing = [key for key in _REQUIRED if key not in content]
        if missing:
            raise UserError(f"{self.path} lacks {', '.join(missing)}")
        control = tuple(content["control"])
        if control:
            self.control = re.compile(
                "(" + "|".join(re.escape(c) for c in sorted(control, key=len)[::-1]) + ")"
            )
        learned = content.get("learned", ["assistant"])
        self._among(learned, MESSAGE_ROLES, "learned")
        self._among(content["stop"], control, "stop", "control")
        system = content.get("system")
        into = self._into(system) if system and "into" in system else None
        turns = {
            role: self._turn(content[role], role, role in learned)
            for role in MESSAGE_ROLES
            if content.get(role) is not None and not (role == "system" and into is not None)
        }
        return TemplateFile(
            control=control,
            bos=self._pieces(content.get("bos", "")),
            turns=turns,
            into=into,
            default_system=content.get("default_system"),
            reply=self._reply(content.get("reply", ["start", "lead"]), turns["assistant"]),
            stop=tuple(content["stop"]),
            jinja=content["jinja"],
        )

    def _turn(self, section: dict[str, Any], role: str, learned: bool) -> Turn:
        self._check(section, _TURN_KEYS | (_RUN_KEYS if role == "tool" else {}), f"{role}.")
        texts = {key: section.get(key, "") for key in ("start", "lead", "end", "after", "open", "close")}
        own = {key: self._pieces(texts[key], ROLE_IDS[role], learned) for key in ("lead", "end")}
        around = {key: self._pieces(texts[key]) for key in ("start", "after", "open", "close")}
        return Turn(strip=section.get("strip", False), learned=learned, **own, **around)

    def _into(self, section: dict[str, Any]) -> str:
        self._check(section, _INTO_KEYS, "system.")
        if section["into"] != "last_user":
            raise UserError(f"{self.path}: system.into is {section['into']!r}; only last_user is known")
        return section.get("separator", "\n\n")

    def _reply(self, parts: list[str], assistant: Turn) -> tuple[Piece, ...]:
        self._among(parts, ("start", "lead"), "reply")
        lead = tuple(piece._replace(learned=False) for piece in assistant.lead) if "lead" in parts else ()
        return (assistant.start if "start" in parts else ()) + lead

    def _pieces(self, text: str, role: int = OTHER, learned: bool = False) -> tuple[Piece, ...]:
        """A text of the file, cut at its control tokens."""
        cut = self.control.split(text)  # every second part is a control token
        return tuple(Piece(part, role, learned, place % 2 == 1) for place, part in enumerate(cut) if part)

    def _check(self, section: Any, known: dict[str, str], where: str) -> None:
        """Refuse keys that nobody reads, and values of another type."""
        for key, value in section.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {where}{near[0]}?" if near else f"known are {', '.join(known)}"
                raise UserError(f"{self.path}: {where}{key}: no such key, {hint}")
            if not _is(value, known[key]):
                raise UserError(f"{self.path}: {where}{key} is {value!r}, {known[key]} is wanted")

    def _among(self, values: list[str], known: tuple[str, ...], key: str, listed_in: str = "") -> None:
        for value in values:
            if value not in known:
                where = f"not listed under {listed_in}" if listed_in else f"not one of {', '.join(known)}"
                raise UserError(f"{self.path}: {key} has {value!r}, which is {where}")


def _is(value: Any, wanted: str) -> bool:
    if wanted == _STRINGS:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    if wanted == _SECTION:
        return isinstance(value, dict)
    return isinstance(value, bool if wanted == _FLAG else str) or (wanted == _OPTIONAL and value is None)
