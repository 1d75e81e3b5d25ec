"""What keeps the code small enough to read: raising one of these numbers is a change that says why."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINES_PER_FILE = 300
LINES_PER_FUNCTION = 80
LINES_OF_TRAINER = 199
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc", "tools"}


def test_every_file_keeps_its_budget():
    files = [path for part in ("src", "tests", "benchmarks") for path in sorted((ROOT / part).rglob("*.py"))]
    found = [problem for path in files for problem in overruns(path, ROOT)]
    assert not found, "\n".join(found)


def test_an_overrun_is_named_with_its_file_line_and_rule(tmp_path):
    body = "    x = 1\n" * 80
    path = tmp_path / "trainer.py"
    path.write_text(f"def short(**options): ...\ndef long():\n{body}\nclass Trainer:\n{body * 3}")
    assert overruns(path, tmp_path) == [
        "trainer.py:1: 324 lines, a file has at most 300",
        "trainer.py:1: short takes **options, name its arguments",
        "trainer.py:2: long has 81 lines, a function has at most 80",
        "trainer.py:84: Trainer has 241 lines, it has at most 199: see docs/decisions.md",
    ]
    for name, problem in [
        ("utils.py", "utils.py:1: a file is named after what it holds, not 'utils'"),
        (
            "data/__init__.py",
            "data/__init__.py:1: a package's __init__.py is empty, import from the module that defines it",
        ),
    ]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x = 1\n")
        assert overruns(path, tmp_path) == [problem]


def overruns(path: Path, root: Path) -> list[str]:
    """The budgets that `path` breaks, each as `file:line: rule`."""
    place, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
    found, tree = [], ast.parse(text)
    if (lines := len(text.splitlines())) > LINES_PER_FILE:
        found.append(f"{place}:1: {lines} lines, a file has at most {LINES_PER_FILE}")
    found += [
        f"{place}:1: a file is named after what it holds, not {part!r}"
        for part in path.relative_to(root).with_suffix("").parts
        if part in NAMELESS
    ]
    if path.name == "__init__.py" and text and place != "src/tutelage/__init__.py":
        found.append(f"{place}:1: a package's __init__.py is empty, import from the module that defines it")
    for node in sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0)):
        found += [f"{place}:{problem}" for problem in _overruns_of(node, place.startswith("tests/"))]
    return found


def _overruns_of(node: ast.AST, in_tests: bool) -> list[str]:
    found = []
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        length = node.end_lineno - node.lineno + 1
        if length > LINES_PER_FUNCTION:
            found.append(
                f"{node.lineno}: {node.name} has {length} lines, a function has at most {LINES_PER_FUNCTION}"
            )
        if node.args.kwarg and not in_tests:
            found.append(f"{node.lineno}: {node.name} takes **{node.args.kwarg.arg}, name its arguments")
    if isinstance(node, ast.ClassDef) and node.name == "Trainer":
        length = node.end_lineno - node.lineno + 1
        if length > LINES_OF_TRAINER:
            found.append(
                f"{node.lineno}: Trainer has {length} lines, it has at most {LINES_OF_TRAINER}: "
                "see docs/decisions.md"
            )
    return found
