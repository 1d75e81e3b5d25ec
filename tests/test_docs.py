"""What the documents say can be done: every command parses, every snippet compiles, every page is linked."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.cli import configure, find_command
from tutelage.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = [
    path for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
]
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`tutelage ([^`\n]+)`(?!`)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def fences(page: Path, *languages: str) -> list[tuple[int, str]]:
    """The (first line's number, text) of every fenced block of `page` in one of `languages`."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start(4)) + 1, match.group(4))
        for match in FENCE.finditer(text)
        if match.group(2) in languages
    ]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The (file:line, words) of every command in the shell blocks of `page`, continued lines joined."""
    found = []
    for start, block in fences(page, "bash", "sh", "shell", "console"):
        lines = block.splitlines()
        while lines:
            line, number = lines.pop(0), start
            start += 1
            while line.endswith("\\") and lines:
                line, start = line[:-1] + lines.pop(0), start + 1
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                found.append((f"{page.name}:{number}", words))
    return found


def stage_arguments(words: list[str]) -> list[str] | None:
    """What follows `tutelage` or `… -m tutelage`; None where it is another command."""
    for at, word in enumerate(words):
        if word == "tutelage" and (at == 0 or words[at - 1] == "-m"):
            return [word for word in words[at + 1 :] if word not in (">", "2>", "|")]
    return None


def test_commands_are_found_in_every_form(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\ntutelage chat out/model  # talk\n\n$ tutelage sft \\\n    --lr 1e-5\nmake test\n```\n"
        "- item\n  ```bash\n  torchrun --nproc_per_node 2 -m tutelage sft --lr 1\n  ```\n"
        "```python\ntutelage\n```\n"
    )
    assert [(where, stage_arguments(words)) for where, words in commands(page)] == [
        ("page.md:2", ["chat", "out/model"]),
        ("page.md:4", ["sft", "--lr", "1e-5"]),
        ("page.md:6", None),
        ("page.md:10", ["sft", "--lr", "1"]),
    ]


@each_page
def test_every_command_parses(page, tmp_path, monkeypatch):
    """A file given to --config is a yaml block of the same page, with title="its name"."""
    monkeypatch.chdir(tmp_path)
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        if title := re.search(r'title="([^"]+)"', match.group(3)):
            Path(title.group(1)).parent.mkdir(parents=True, exist_ok=True)
            Path(title.group(1)).write_text(match.group(4))
    faults = []
    for where, words in commands(page):
        arguments = stage_arguments(words)
        if arguments and not {"--help", "-h"} & set(arguments):
            try:
                configure([word for word in arguments if word != "--print_config"])
            except UserError as error:
                faults.append(f"{where}: {error}")
    assert not faults, "\n".join(faults)


@each_page
def test_every_command_named_in_a_sentence_exists(page):
    for match in INLINE.finditer(page.read_text(encoding="utf-8")):
        words = shlex.split(match.group(1))
        if words[0][0].islower():
            find_command(words)


@each_page
def test_every_python_snippet_compiles(page):
    for line, snippet in fences(page, "python"):
        compile("\n" * (line - 1) + snippet, str(page), "exec")


@each_page
def test_every_marked_snippet_runs(page, tmp_path, monkeypatch):
    """Snippets after `<!-- runs -->` are one program, from the top of the page to its end."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    marked = [match for match in FENCE.finditer(text) if text[: match.start()].endswith("<!-- runs -->\n")]
    assert len(marked) == text.count("<!-- runs -->")
    names: dict[str, object] = {}
    for match in marked:
        above = "\n" * text.count("\n", 0, match.start(4))
        exec(compile(above + match.group(4), str(page), "exec"), names)


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = {words[1] for _, words in commands(page) if words[0] == "make" and len(words) > 1}
        named |= set(re.findall(r"`make ([\w-]+)`", page.read_text(encoding="utf-8")))
        assert named <= targets, (
            f"{page.name} names make targets that do not exist: {sorted(named - targets)}"
        )


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
