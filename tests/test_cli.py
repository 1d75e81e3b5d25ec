"""The command line as a person meets it: what it prints, where, and how it exits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tutelage import cli
from tutelage.commands import Command
from tutelage.config import load
from tutelage.errors import Interrupted, UserError

SOURCE = Path(__file__).parent.parent / "src"


@dataclass(frozen=True, kw_only=True, slots=True)
class ToyConfig:
    steps: int = 3  # how many
    ending: str = "well"
    ckpt_paths: list[str] | None = None


def run_toy(config: ToyConfig) -> None:
    endings = {
        "mistake": UserError("data.jsonl:3: no messages\n  and more"),
        "interrupt": KeyboardInterrupt(),
        "signal": Interrupted(15),
        "exit": SystemExit(7),
        "pipe": BrokenPipeError(),
        "bug": RuntimeError("ours"),
    }
    if config.ending in endings:
        raise endings[config.ending]
    print(config.steps, config.ckpt_paths)


@pytest.fixture
def toy(monkeypatch):
    """A stage of our own in the table of commands, and a second one that knows a key more."""
    module = ModuleType("tutelage.recipes.toy")
    module.__doc__ = "Count steps.\n\n    tutelage toy --steps 3"
    vars(module).update(ToyConfig=ToyConfig, run=run_toy)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    commands = {"toy": Command("toy", "ToyConfig", "count", positional="ckpt_paths")}
    commands["toy train"] = Command("toy", "ToyConfig", "count more")
    monkeypatch.setattr(cli, "COMMANDS", {"sft": cli.COMMANDS["sft"], **commands})


def ask(capsys, *words: str) -> tuple[int, str, str]:
    """The exit code, standard output and standard error of one command."""
    code = 0
    try:
        cli.main(list(words))
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def shell(*words: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, **options
    )


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(capsys, words):
    code, out, err = ask(capsys, *words)
    assert (code, err) == (0, "")
    for name, command in cli.COMMANDS.items():
        assert f"tutelage {name}" in out
        assert command.help in out


def test_a_group_lists_its_commands(capsys, toy):
    code, out, _ = ask(capsys, "toy", "--help")
    assert code == 0
    assert "count more" in out
    assert "sft" not in out


def test_a_stage_explains_itself(capsys, toy):
    code, out, _ = ask(capsys, "toy", "train", "--steps", "x", "--help")
    assert code == 0
    assert "tutelage toy --steps 3" in out
    assert "how many (default: 3)" in out


def test_a_stage_runs_with_its_flags(capsys, toy):
    assert ask(capsys, "toy", "--steps", "4") == (0, "4 None\n", "")
    assert ask(capsys, "toy", "train", "--steps=5") == (0, "5 None\n", "")
    assert ask(capsys, "toy", "a", "--steps", "4") == (0, "4 ['a']\n", "")


def test_print_config_prints_what_reruns_the_run(capsys, toy, tmp_path):
    code, out, err = ask(capsys, "toy", "--print-config", "--steps", "9")
    assert (code, err) == (0, "")
    (tmp_path / "config.yaml").write_text(out)
    assert load("toy", ToyConfig, ["--config", str(tmp_path / "config.yaml")]) == ToyConfig(steps=9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["toy", "--ending", "mistake"], "error: data.jsonl:3: no messages\n  and more\n"),
        (["to"], "error: to: no such command, did you mean toy?\n"),
        (["zzz"], "error: zzz: no such command, `tutelage --help` lists them\n"),
        (["--steps"], "error: --steps: no such command, `tutelage --help` lists them\n"),
        (["toy", "--stepps", "4"], "error: toy: --stepps: no such setting, did you mean --steps?\n"),
        (["toy", "train", "x"], "error: toy train: x: this word belongs to no flag\n"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_2(capsys, toy, words, message):
    assert ask(capsys, *words) == (2, "", message)


def test_an_unknown_command_of_a_group_is_refused_with_the_known_ones(capsys):
    assert ask(capsys, "tokenizer", "trian") == (
        2,
        "",
        "error: there is no `tutelage tokenizer trian`; "
        "choose from: tutelage tokenizer train, tutelage tokenizer inspect\n",
    )


def test_a_key_of_another_stage_is_refused_as_such(capsys, monkeypatch, toy):
    @dataclass(frozen=True, kw_only=True, slots=True)
    class OtherConfig:
        dpo_beta: float = 0.1

    sys.modules["tutelage.recipes.toy"].OtherConfig = OtherConfig
    commands = {"dpo": Command("toy", "OtherConfig", ""), "toy": Command("toy", "ToyConfig", "")}
    monkeypatch.setattr(cli, "COMMANDS", commands)
    _, _, err = ask(capsys, "toy", "--dpo_beta", "1")
    assert err == "error: toy: --dpo_beta: toy does not use dpo_beta (dpo does)\n"


@pytest.mark.parametrize(("ending", "code"), [("interrupt", 130), ("signal", 143), ("exit", 7)])
def test_an_end_that_is_no_bug_says_nothing(capsys, toy, ending, code):
    assert ask(capsys, "toy", "--ending", ending) == (code, "", "")


def test_a_bug_of_ours_shows_its_traceback(capsys, toy):
    code, out, err = ask(capsys, "toy", "--ending", "bug")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert err.endswith("RuntimeError: ours\n")


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "tutelage", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("statement", ["import tutelage", "from tutelage import cli, config, dist, errors"])
def test_importing_tutelage_imports_nothing_heavy(statement):
    heavy = "{'torch', 'numpy', 'transformers', 'rich', 'tyro', 'pydantic', 'tokenizers'}"
    done = shell("-c", f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "words",
    [["--help"], *(name.split() + ["--help"] for name in cli.COMMANDS), ["sft", "--no_such_flag"]],
    ids=" ".join,
)
def test_help_and_mistakes_answer_without_torch(words):
    program = (
        f"import sys; from tutelage import cli\ntry: cli.main({words})\n"
        "except SystemExit as end: assert end.code in (0, 2), end.code\n"
        "assert 'torch' not in sys.modules, 'torch is imported'"
    )
    done = shell("-c", program)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
