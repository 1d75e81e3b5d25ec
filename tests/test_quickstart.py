"""The quickstart: every stage by a command that can be typed, and the same command again goes on."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.cli import configure
from tutelage.data.stories import verdict


def quickstart(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tutelage", "quickstart", "--output_dir", str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True)


def stages(output: str) -> list[list[str]]:
    """The commands that were printed, as words."""
    return [shlex.split(line)[2:] for line in output.splitlines() if line.startswith("$ tutelage ")]


@pytest.fixture(scope="module")
def life(tmp_path_factory) -> tuple[Path, str]:
    """A smoke run: its directory and what it printed."""
    directory = tmp_path_factory.mktemp("quickstart") / "life of a model"
    done = quickstart(directory, "--smoke")
    assert done.returncode == 0, done.stderr
    return directory, done.stdout


def test_every_stage_is_a_command_that_parses(life):
    _, printed = life
    names = [configure(words)[0] for words in stages(printed)]
    assert names[:4] == ["data build stories", "tokenizer train", "data build pretrain", "pretrain"]
    assert names[4:] == [*["generate"] * 2, "sft", *["generate"] * 3]


def test_everything_lies_where_it_says(life):
    directory, printed = life
    assert str(directory) in printed
    for name in ("pretrain", "sft"):
        assert (directory / name / "model" / "model.safetensors").exists()
        answers = [json.loads(line)["messages"] for line in (directory / name / "answers.jsonl").open()]
        prompts = [json.loads(line)["messages"] for line in (directory / "data" / "prompts.jsonl").open()]
        assert [answer[:-1] for answer in answers] == prompts
        assert {answer[-1]["role"] for answer in answers} == {"assistant"}
    assert "right, of held-out prompts" in printed


def test_the_same_command_again_leaves_what_is_there_and_goes_on_with_what_is_not(life):
    directory, _ = life
    before = (directory / "pretrain" / "model" / "model.safetensors").read_bytes()
    weights = directory / "sft" / "model" / "model.safetensors"
    trained = weights.read_bytes()
    for path in (directory / "sft" / "model").iterdir():
        path.unlink()
    done = quickstart(directory, "--smoke")
    assert done.returncode == 0, done.stderr
    assert [words[0] for words in stages(done.stdout)].count("sft") == 1
    assert "--resume" in next(words for words in stages(done.stdout) if words[0] == "sft")
    assert not [words for words in stages(done.stdout) if words[0] in ("data", "tokenizer", "pretrain")]
    assert (directory / "pretrain" / "model" / "model.safetensors").read_bytes() == before
    assert weights.read_bytes() == trained


def test_a_stage_that_fails_ends_it_with_the_same_exit_code(tmp_path):
    (tmp_path / "tokenizer").write_text("a file where a directory should be")
    done = quickstart(tmp_path, "--smoke")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert [words[0] for words in stages(done.stdout)] == ["data", "tokenizer"]


@pytest.mark.slow
def test_a_small_model_learns_to_write_and_then_to_do_as_it_is_told(tmp_path):
    done = quickstart(tmp_path)
    assert done.returncode == 0, done.stderr
    for name, least, most in [("pretrain", 0.0, 0.1), ("sft", 0.85, 1.0)]:
        lines = (tmp_path / name / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        right = sum(verdict(json.loads(line)["messages"])[1] for line in lines)
        assert least <= right / len(lines) <= most, done.stdout
