"""Imports only go down the floors, and packages on one floor do not know each other."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "tutelage"
FLOORS = {
    "__main__": 7,
    "cli": 6,
    "commands": 5,
    "recipes": 5,
    "train": 4,
    "rl": 4,
    "serve": 4,
    "report": 4,
    "objectives": 3,
    "data": 2,
    "checkpoint": 2,
    "infer": 2,
    "text": 1,
    "model": 1,
    "config": 0,
    "allocation": 0,
    "disk": 0,
    "dist": 0,
    "errors": 0,
    "settings": -1,  # what config is made of
}
ORACLES = {"transformers", "peft", "trl", "accelerate", "litgpt", "torchtune"}


def test_imports_only_go_down():
    found = [problem for path in sorted(SOURCE.rglob("*.py")) for problem in breaches(path, SOURCE)]
    assert not found, "\n".join(found)


def test_a_breach_is_named_with_its_file_line_and_rule(tmp_path):
    (tmp_path / "text").mkdir()
    path = tmp_path / "text" / "roles.py"
    path.write_text(
        "import json\n"
        "from tutelage.errors import UserError\n"
        "from tutelage.text.template import Template\n"
        "def f():\n"
        "    import tutelage.data.pack\n"
        "    from ..model import rope\n"
        "    from tutelage import cli, dist\n"
        "    from transformers import Trainer\n"
    )
    assert breaches(path, tmp_path) == [
        "text/roles.py:5: text (floor 1) imports data (floor 2): imports only go down",
        "text/roles.py:6: text (floor 1) imports model (floor 1): one floor, no imports",
        "text/roles.py:7: text (floor 1) imports cli (floor 6): imports only go down",
        "text/roles.py:8: imports transformers: the oracles are for tests only",
    ]
    (tmp_path / "utilities.py").write_text("")
    (problem,) = breaches(tmp_path / "utilities.py", tmp_path)
    assert problem == "utilities.py:1: utilities stands on no floor: give it one in tests/test_floors.py"


def test_what_is_imported_is_declared():
    """An import that only another package's dependencies bring would break with that package."""
    project = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *(line for extra in ("wandb", "quant") for line in extras[extra])]
    names = {re.split(r"[<>=]", line)[0].replace("pyyaml", "yaml") for line in declared}
    used = {
        name.split(".")[0]: f"{path.relative_to(SOURCE)}:{line}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, name in imported(ast.parse(path.read_text(encoding="utf-8")), ("tutelage", "x"))
    }
    missing = {name: where for name, where in used.items() if name not in names | sys.stdlib_module_names}
    assert set(missing) <= {"tutelage"}, missing
    assert names <= set(used), f"declared and never imported: {sorted(names - set(used))}"


def breaches(path: Path, root: Path) -> list[str]:
    """What `path` imports against the rules, each as `file:line: rule`."""
    module = path.relative_to(root).with_suffix("").parts
    here, place = module[0], path.relative_to(root).as_posix()
    if here == "__init__":
        here = "errors"  # the root may import what everything may
    if here not in FLOORS:
        return [f"{place}:1: {here} stands on no floor: give it one in tests/test_floors.py"]
    found = []
    for line, name in imported(ast.parse(path.read_text(encoding="utf-8")), ("tutelage", *module)):
        top, *rest = name.split(".")
        if top in ORACLES:
            found.append(f"{place}:{line}: imports {top}: the oracles are for tests only")
        if top != "tutelage" or not rest or rest[0] in ("errors", here) or rest[0] not in FLOORS:
            continue
        edge = f"{place}:{line}: {here} (floor {FLOORS[here]}) imports {rest[0]} (floor {FLOORS[rest[0]]})"
        if FLOORS[rest[0]] > FLOORS[here]:
            found.append(f"{edge}: imports only go down")
        elif FLOORS[rest[0]] == FLOORS[here]:
            found.append(f"{edge}: one floor, no imports")
    return found


def imported(tree: ast.AST, module: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Every (line, full dotted name) that `module` imports, inside functions and for typing too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module[: len(module) - node.level]) if node.level else ""
            prefix = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
