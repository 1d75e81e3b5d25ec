"""The quickstart: every stage by a command that can be typed, and the same command again goes on."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.cli import configure
from tutelage.data.stories.pairs import is_happy, judge
from tutelage.data.stories.plots import verdict

STAGES = ("pretrain", "sft", "dpo", "reward")
ANSWERS = [
    "dpo/stories.jsonl",
    "pretrain/answers.jsonl",
    "sft/answers.jsonl",
    "sft/stories.jsonl",
    "reward/scores.jsonl",
]
NAMES_MOOD = re.compile(r"\b(happy|sad)\b")


def quickstart(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tutelage", "quickstart", "--output_dir", str(directory), *words]
    return subprocess.run(command, capture_output=True, text=True)


def stages(output: str) -> list[list[str]]:
    """The commands that were printed, as words."""
    return [shlex.split(line)[2:] for line in output.splitlines() if line.startswith("$ tutelage ")]


def messages(path: Path) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in path.open(encoding="utf-8")]


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
    assert names[4:10] == [*["generate"] * 2, "sft", *["generate"] * 2, "dpo"]
    assert names[10:] == [*["generate"] * 2, "reward", "reward score", *["generate"] * 3]


def test_everything_lies_where_it_says(life):
    directory, printed = life
    assert str(directory) in printed
    for name in ("pretrain", "sft", "dpo", "reward"):
        assert (directory / name / "model" / "model.safetensors").exists()
    told = [(name, "prompts", "answers") for name in ("pretrain", "sft", "dpo")]
    told += [(name, "requests", "stories") for name in ("sft", "dpo")]
    for name, asked, replied in told:
        answers = messages(directory / name / f"{replied}.jsonl")
        assert [answer[:-1] for answer in answers] == messages(directory / "data" / f"{asked}.jsonl")
        assert {answer[-1]["role"] for answer in answers} == {"assistant"}
    assert not any(
        NAMES_MOOD.search(asked["content"]) for (asked,) in messages(directory / "data/requests.jsonl")
    )
    columns = r"right, of held-out ones +pretrain +sft +dpo +reward"
    assert re.search(columns, printed)
    assert re.search(r"stories that end happily, drawn +\d/4 +\d/4", printed)
    assert re.search(r"a happy story above a sad one +\d+/\d+", printed)


def last_words(printed: str) -> list[list[str]]:
    """What to do next: to talk to the last model that writes, and to have its stories scored."""
    *_, talk, score = (line.partition(": tutelage ")[2] for line in printed.splitlines() if line)
    return [shlex.split(talk), shlex.split(score)]


def test_its_last_words_are_commands_that_parse(life):
    directory, printed = life
    talk, score = last_words(printed)
    assert [configure(words)[0] for words in (talk, score)] == ["chat", "reward score"]
    assert talk[1:] == [str(directory / "dpo")]


def test_the_same_command_again_leaves_what_is_there_and_goes_on_with_what_is_not(life):
    """Two stages lack their result, and answers and scores of others were not all written."""
    directory, _ = life
    kept = {name: (directory / name / "model" / "model.safetensors").read_bytes() for name in STAGES}
    whole = {name: (directory / name).read_text(encoding="utf-8") for name in ANSWERS}
    for name in ("sft", "reward"):
        for path in (directory / name / "model").iterdir():
            path.unlink()
    (directory / ANSWERS[0]).write_text(whole[ANSWERS[0]][:-1], encoding="utf-8")
    done = quickstart(directory, "--smoke")
    assert done.returncode == 0, done.stderr
    resumed = [words for words in stages(done.stdout) if words[0] in ("data", "tokenizer", *STAGES)]
    resumed = [words for words in resumed if words[:2] != ["reward", "score"]]
    assert [words[0] for words in resumed] == ["sft", "reward"]
    assert all("--resume" in words for words in resumed)
    for name, weights in kept.items():
        assert (directory / name / "model" / "model.safetensors").read_bytes() == weights
    assert {name: (directory / name).read_text(encoding="utf-8") for name in ANSWERS} == whole
    written = [words[words.index("--output") + 1] for words in stages(done.stdout) if "--output" in words]
    again = [ANSWERS[0], "sft/answers.jsonl", "sft/stories.jsonl", "reward/scores.jsonl"]
    assert sorted(written) == sorted(str(directory / name) for name in again)


def test_a_stage_that_fails_ends_it_with_the_same_exit_code(tmp_path):
    (tmp_path / "tokenizer").write_text("a file where a directory should be")
    done = quickstart(tmp_path, "--smoke")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert [words[0] for words in stages(done.stdout)] == ["data", "tokenizer"]


@pytest.mark.slow
def test_a_small_model_learns_to_write_to_do_as_it_is_told_to_end_well_and_to_judge(tmp_path):
    done = quickstart(tmp_path)
    assert done.returncode == 0, done.stderr
    right = {}
    for name, least, most in [("pretrain", 0.0, 0.1), ("sft", 0.85, 1.0), ("dpo", 0.85, 1.0)]:
        answers = messages(tmp_path / name / "answers.jsonl")
        right[name] = sum(verdict(answer)[1] for answer in answers) / len(answers)
        assert least <= right[name] <= most, done.stdout
    assert right["dpo"] >= right["sft"] - 0.03, done.stdout
    told = {name: judge(messages(tmp_path / name / "stories.jsonl")) for name in ("sft", "dpo")}
    before, after = ({kind: n / of for kind, (n, of) in told[name].items()} for name in told)
    assert before["stories that end happily"] < 0.65, done.stdout
    assert after["stories that end happily"] >= 0.95, done.stdout
    assert after["stories as asked for"] >= before["stories as asked for"] - 0.03, done.stdout
    scored = [json.loads(line) for line in (tmp_path / "reward" / "scores.jsonl").open(encoding="utf-8")]
    endings = [line["scores"] for line in scored if is_happy(line["rejected"]) is False]
    assert len(endings) > 250
    assert sum(better > worse for better, worse in endings) / len(endings) >= 0.95, done.stdout
    _, score = last_words(done.stdout)
    command = [sys.executable, "-m", "tutelage", *score]
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) == told["dpo"]["stories as asked for"][1], "one score a story"
