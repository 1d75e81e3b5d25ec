"""The YAML file of a chat template, read and checked; `templates/README.md` explains every key."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import UserError
from tutelage.text.pieces import Piece
from tutelage.text.roles import MESSAGE_ROLES, ROLE_IDS
from tutelage.text.template_parts import Calls, Into, TemplateFile, Thinking, Tools, Turn

BUILT_INS = Path(__file__).parent / "templates"
OTHER = ROLE_IDS["other"]
_ALSO_CALLED = {"mistral_v3": "mistral_instruct"}


def built_in_names() -> list[str]:
    """The templates that come with the program."""
    return sorted(path.stem for path in BUILT_INS.glob("*.yaml"))


def find_template(name_or_path: str | Path) -> Path:
    """The file of a built-in, named with or without .yaml or _instruct, or the path itself."""
    given = Path(name_or_path)
    name = given.name.removesuffix(".yaml")
    if len(given.parts) == 1:
        for known in (name, f"{name}_instruct", _ALSO_CALLED.get(name)):
            if known in built_in_names():
                return BUILT_INS / f"{known}.yaml"
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


_STRING, _OPTIONAL, _STRINGS, _FLAG, _SECTION, _NUMBER = (
    "a string",
    "a string or null",
    "a list of strings",
    "true or false",
    "a section of keys",
    "a whole number",
)
_TURN = {"start": _STRING, "lead": _STRING, "end": _STRING, "after": _STRING, "strip": _FLAG}
_ONLY = {  # keys that only the turns of one role have
    "system": {"omit_empty": _FLAG},
    "user": {},
    "assistant": {"between": _STRING, "thinking": _SECTION, "calls": _SECTION},
    "tool": {"open": _STRING, "close": _STRING, "form": _STRING},
}
_INTO = {"into": _STRING, "lead": _STRING, "separator": _STRING, "strip": _FLAG, "strip_joined": _FLAG}
_CALLS = {"separator": _STRING, "open": _STRING, "each": _STRING, "between": _STRING, "close": _STRING}
_CALLS |= {"alone": _FLAG, "single": _FLAG, "id_length": _NUMBER}
_TOOLS = {"into": _STRING, "system_start": _STRING, "separator": _STRING, "lead": _STRING, "each": _STRING}
_TOOLS |= {"between": _STRING, "end": _STRING, "indent": _NUMBER}
_THINKING = {"open": _STRING, "close": _STRING}
_KEYS = {"control": _STRINGS, "bos": _STRING, "eos": _STRING, "system": _SECTION, "user": _SECTION}
_KEYS |= {"assistant": _SECTION, "tool": _SECTION, "tools": _SECTION, "default_system": _OPTIONAL}
_KEYS |= {"learned": _STRINGS, "reply": _STRINGS, "stop": _STRINGS}
_REQUIRED = ("control", "user", "assistant", "stop")
_USERS = ("first_user", "last_user")
_FORMS = ("text", "json", "value")


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
            longest_first = sorted(control, key=len, reverse=True)
            self.control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
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
        tools = content.get("tools")
        return TemplateFile(
            control=control,
            bos=self._pieces(content.get("bos", "")),
            eos=self._pieces(content.get("eos", "")),
            turns=turns,
            into=into,
            default_system=content.get("default_system"),
            tools=self._tools(tools) if tools is not None else None,
            reply=self._reply(content.get("reply", ["start", "lead"]), turns["assistant"]),
            stop=tuple(content["stop"]),
        )

    def _turn(self, section: dict[str, Any], role: str, learned: bool) -> Turn:
        self._check(section, _TURN | _ONLY[role], f"{role}.")
        own = {key: self._pieces(section.get(key, ""), ROLE_IDS[role], learned) for key in ("lead", "end")}
        around = {
            key: self._pieces(section.get(key, "")) for key in ("start", "after", "between", "open", "close")
        }
        form = section.get("form", "text")
        self._among([form], _FORMS, f"{role}.form")
        calls, thinking = section.get("calls"), section.get("thinking")
        return Turn(
            strip=section.get("strip", False),
            learned=learned,
            omit_empty=section.get("omit_empty", False),
            form=form,
            calls=self._calls(calls, learned) if calls is not None else None,
            thinking=self._thinking(thinking) if thinking is not None else None,
            **own,
            **around,
        )

    def _into(self, section: dict[str, Any]) -> Into:
        self._check(section, _INTO, "system.")
        self._among([section["into"]], _USERS, "system.into")
        return Into(
            user=section["into"],
            lead=section.get("lead", ""),
            separator=section.get("separator", "\n\n"),
            strip=section.get("strip", False),
            strip_joined=section.get("strip_joined", False),
        )

    def _calls(self, section: dict[str, Any], learned: bool) -> Calls:
        self._check(section, _CALLS, "assistant.calls.")
        role = ROLE_IDS["assistant"]
        return Calls(
            separator=section.get("separator", ""),
            open=self._pieces(section.get("open", ""), role, learned),
            each=section.get("each", ""),
            between=section.get("between", ""),
            close=self._pieces(section.get("close", ""), role, learned),
            alone=section.get("alone", False),
            single=section.get("single", False),
            id_length=section.get("id_length"),
        )

    def _tools(self, section: dict[str, Any]) -> Tools:
        self._check(section, _TOOLS, "tools.")
        into = section.get("into", "system")
        self._among([into], ("system", "first_user", "before_last_user"), "tools.into")
        role = ROLE_IDS["system"]
        start = section.get("system_start")
        return Tools(
            into=into,
            system_start=None if start is None else self._pieces(start),
            separator=section.get("separator", ""),
            lead=self._pieces(section.get("lead", ""), role),
            each=section.get("each", "$tool"),
            between=section.get("between", ""),
            end=self._pieces(section.get("end", ""), role),
            indent=section.get("indent"),
        )

    def _thinking(self, section: dict[str, Any]) -> Thinking:
        self._check(section, _THINKING, "assistant.thinking.")
        return Thinking(open=section.get("open", ""), close=section.get("close", ""))

    def _reply(self, parts: list[str], assistant: Turn) -> tuple[Piece, ...]:
        self._among(parts, ("start", "lead", "no_thinking"), "reply")
        reply = assistant.start if "start" in parts else ()
        if "lead" in parts:
            reply += tuple(piece._replace(learned=False) for piece in assistant.lead)
        if "no_thinking" in parts and assistant.thinking is not None:
            empty = assistant.thinking.open + assistant.thinking.close
            reply += self._pieces(empty, ROLE_IDS["assistant"])
        return reply

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
    if wanted == _NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted == _SECTION:
        return isinstance(value, dict)
    return isinstance(value, bool if wanted == _FLAG else str) or (wanted == _OPTIONAL and value is None)
