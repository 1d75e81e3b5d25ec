"""YAML config files, read with the line of every key and without ever building an object that YAML asks for.

Scalars stay the text that was written, so that `lr: 1e-5`, which YAML 1.1 calls a string, and `lang: no`,
which it calls false, mean what `--lr 1e-5` and `--lang no` mean; only an unquoted `null`, `~` or nothing is
None."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

_TAG = "tag:yaml.org,2002:"
_NAMES = ("null", "bool", "int", "float", "str", "timestamp", "value", "seq", "map")
_TAGS = {_TAG + name for name in _NAMES}


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of the file with its value as text, None or a flat list of these."""

    key: str
    value: str | None | list[str | None]
    where: str


def read_config(path: Path, problems: list[str]) -> list[Entry]:
    """Every key of a YAML file, in order; what is wrong with the file goes to `problems` as `file:line:
    reason`."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.append(f"{path}:{line}: not YAML: {error.problem}")
        return []
    except yaml.YAMLError as error:
        problems.append(f"{path}: not YAML: {' '.join(str(error).split())}")
        return []
    except RecursionError:
        problems.append(f"{path}: nested too deep; a config is one level of `key: value`")
        return []
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})")
        return []
    except OSError as error:
        problems.append(f"--config: cannot read {path}: {(error.strerror or str(error)).lower()}")
        return []
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        problems.append(f"{path}:{root.start_mark.line + 1}: a config is `key: value` lines, this is not")
        return []
    return _entries(root, path, problems)


def _entries(root: yaml.MappingNode, path: Path, problems: list[str]) -> list[Entry]:
    lines: dict[str, int] = {}
    entries = []
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        where = f"{path}:{line}"
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(f"{where}: a key is a plain word, this is not")
            continue
        key = key_node.value.replace("-", "_")
        if key in lines:
            problems.append(f"{where}: {key}: given twice, first in line {lines[key]}")
            continue
        lines[key] = line
        try:
            entries.append(Entry(key, _value(value_node), where))
        except ValueError as error:
            problems.append(f"{where}: {key}: {error}")
    return entries


def _value(node: yaml.Node) -> str | None | list[str | None]:
    """The text of a scalar, or of the items of a list. Stopping there is what makes alias bombs and cycles
    harmless."""
    if isinstance(node, yaml.SequenceNode) and node.tag in _TAGS:
        return [_scalar(item) for item in node.value]
    return _scalar(node)


def _scalar(node: yaml.Node) -> str | None:
    if node.tag not in _TAGS:
        raise ValueError(f"the tag {node.tag.removeprefix(_TAG)} is not accepted")
    if not isinstance(node, yaml.ScalarNode):
        kind = "mapping" if isinstance(node, yaml.MappingNode) else "list"
        raise ValueError(f"holds a nested {kind}; a setting is one value or a flat list of values")
    return None if node.tag == _TAG + "null" else node.value
