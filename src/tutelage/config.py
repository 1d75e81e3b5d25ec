"""One typed config per stage, from its defaults, then a YAML file, then flags; every mistake in either is
told at once.

A config is a frozen keyword-only dataclass. Both sources hand over text, which `convert` gives the field's
type."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_type_hints

from tutelage.errors import UserError
from tutelage.settings.file import read_config
from tutelage.settings.flags import Flag, read_flags
from tutelage.settings.notes import Note, field_notes
from tutelage.settings.values import accepted, convert, is_list, members, metavar, series, shown

C = TypeVar("C")


@dataclasses.dataclass(frozen=True, slots=True)
class _Setting:
    """A key, what it was given (text, None, or a list of these) and where, as the error message begins."""

    key: str
    value: Any
    where: str


def load(
    stage: str,
    config_class: type[C],
    argv: list[str],
    *,
    known: Mapping[str, set[str]] | None = None,
    positional: str | None = None,
) -> C:
    """The config of `stage` from defaults < `--config FILE.yaml` < flags.

    Raises one UserError that lists every mistake. `known` maps stages to their keys, asked only when a key is
    wrong; `positional` names the field that words without a flag belong to."""
    kinds = get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # pyright: ignore[reportArgumentType]
    kinds = {name: kinds[name] for name in fields}
    problems: list[str] = []
    settings = _gather(argv, kinds, positional, problems)
    values: dict[str, Any] = {}
    for setting in settings:
        if setting.key not in kinds:
            problems.append(f"{setting.where}: {_unknown(setting, stage, kinds, known or {})}")
            continue
        try:
            values[setting.key] = convert(setting.value, kinds[setting.key])
        except ValueError as error:
            problems.append(f"{setting.where}: {error}")
    given = {setting.key for setting in settings}
    for name, field in fields.items():
        if _required(field) and name not in given:
            words = "--" + name + (" or a word without a flag" if name == positional else "")
            problems.append(f"{words}: missing, accepted: {accepted(kinds[name])}")
    if problems:
        raise UserError(_paragraph(stage, problems))
    try:
        return config_class(**values)
    except ValueError as error:
        raise UserError(f"{stage}: {error}") from error


def help_text(stage: str, config_class: type, intro: str) -> str:
    """The help of a stage: what it is for, then every setting with its meaning, choices and default, in
    groups.

    tyro lays it out. Its parsing is not used, since it stops at the first mistake and reads no YAML; and it
    groups nested classes only, so a flat config is shown to it as one class per group."""
    import tyro

    notes = field_notes(config_class)
    kinds = get_type_hints(config_class)
    groups: dict[str, list[Any]] = {}
    for field in dataclasses.fields(config_class):
        note = notes.get(field.name, Note())
        meaning = f"{note.text} {_default(field, note)}".strip()
        argument = tyro.conf.arg(help=meaning, metavar=metavar(kinds[field.name]), help_behavior_hint="")
        kind = bool if bool in members(kinds[field.name]) else str  # the words shown for other types are ours
        default = dataclasses.field(default=field.default is True if kind is bool else "")
        group = groups.setdefault(re.sub(r"\W+", "_", note.group).strip("_") or "settings", [])
        group.append((field.name, Annotated[kind, argument], default))
    nested = [
        (name, Annotated[dataclasses.make_dataclass(name, rows), tyro.conf.OmitArgPrefixes])
        for name, rows in groups.items()
    ]
    capture = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(capture), contextlib.suppress(SystemExit):
        tyro.cli(
            dataclasses.make_dataclass("Shell", [*nested, *_shared_options()]),
            args=["--help"],
            use_underscores=True,
        )
    capture.seek(0)
    _, corner, boxes = capture.read().partition("\u256d")  # tyro's own head is dropped: ours has the intro
    text = corner + boxes
    for name in groups:
        text = text.replace(f" {name} options ", f" {name.replace('_', ' ')} ────────")  # its width, kept
    return f"usage: tutelage {stage} [--config FILE] [--flag value ...]\n\n{intro.strip()}\n\n{text}"


def dump(config: Any) -> str:
    """The config as YAML that `load` reads back to an equal one."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes and escapes what YAML would otherwise read back as a space or a line break."""

        def represent_str(self, data: str) -> yaml.ScalarNode:
            style = None if data.isprintable() else '"'
            return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, Dumper.represent_str)
    values = {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}
    options = {"sort_keys": False, "allow_unicode": True, "default_flow_style": None, "width": 2**20}
    return yaml.dump(values, Dumper=Dumper, **options)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _gather(
    argv: list[str], kinds: dict[str, Any], positional: str | None, problems: list[str]
) -> list[_Setting]:
    """What the file says, then what the flags say, so that the last setting of a key is the one that
    holds."""
    kinds = {**kinds, "config": Path}
    flags, stray = read_flags(argv, kinds, problems)
    if stray and positional:
        flags.append(Flag(positional, stray))
        if not is_list(kinds[positional]):
            problems.extend(f"{word}: one {positional} is wanted, and this is another" for word in stray[1:])
    else:
        problems.extend(f"{word}: this word belongs to no flag" for word in stray)
    from_file: list[_Setting] = []
    from_flags: list[_Setting] = []
    seen: set[str] = set()
    for flag in flags:
        if flag.key in seen:
            problems.append(f"{flag.shown}: given twice")
        elif not flag.words and not is_list(kinds.get(flag.key, list[str])):
            problems.append(f"{flag.shown}: takes a value")
        elif flag.key == "config":
            entries = read_config(Path(flag.words[0]).expanduser(), problems)
            from_file = [_Setting(entry.key, entry.value, f"{entry.where}: {entry.key}") for entry in entries]
        else:
            from_flags.append(
                _Setting(flag.key, _given(flag.words, kinds.get(flag.key, list[str])), flag.shown)
            )
        seen.add(flag.key)
    return from_file + from_flags


def _given(words: list[str], kind: Any) -> Any:
    """The words of a flag as a YAML file would give them."""
    if words == ["null"] and NoneType in members(kind):
        return None
    return words if is_list(kind) else words[0]


def _unknown(setting: _Setting, stage: str, kinds: dict[str, Any], known: Mapping[str, set[str]]) -> str:
    """Why a key is refused, with the stages that know it or the nearest key that this one knows."""
    others = [other for other in known if other != stage and setting.key in known[other]]
    if others:
        verb = "do" if len(others) > 1 else "does"
        return f"{stage} does not use {setting.key} ({series(others, 'and')} {verb})"
    nearest = difflib.get_close_matches(setting.key, kinds, n=1)
    dashes = "--" if setting.where.startswith("--") else ""
    hint = f"did you mean {dashes}{nearest[0]}?" if nearest else f"`tutelage {stage} --help` lists them all"
    return f"no such setting, {hint}"


def _shared_options() -> list[Any]:
    """The flags that the command line handles itself, as fields for tyro."""
    import tyro

    config = tyro.conf.arg(
        help="settings from YAML; flags override them", metavar="FILE", help_behavior_hint=""
    )
    show = tyro.conf.arg(help="print every setting as YAML and stop", metavar="", help_behavior_hint="")
    kinds = {"config": Annotated[str, config], "print_config": Annotated[str, show]}
    return [(name, kind, dataclasses.field(default="")) for name, kind in kinds.items()]


def _default(field: dataclasses.Field[Any], note: Note) -> str:
    """What the setting is when nobody gives it, unless the note says already what null stands for."""
    if _required(field):
        return "(required)"
    if field.default is None and "default" in note.text:
        return ""
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # pyright: ignore
    return f"(default: {shown(default)})"


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _paragraph(stage: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"{stage}: {problems[0]}"
    return f"{stage}: {len(problems)} settings are wrong\n" + "\n".join(
        f"  {problem}" for problem in problems
    )
