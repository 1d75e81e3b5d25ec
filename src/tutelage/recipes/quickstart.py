"""The whole life of a small model, on CPU, in minutes: it learns to write stories, then to do as it is told.

    tutelage quickstart --output_dir quickstart

Small stories are made up, a tokenizer is trained on them, they are tokenized into shards, a model is trained
on those and then fine-tuned to follow instructions; its answers to held-out ones are shown and judged before
and after. Every stage is a command that is printed, and that can be typed again with other settings.
Interrupted, the same command goes on.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PRETRAIN = shlex.split("--model stories840K --max_seq_len 256 --micro_batch_size_per_gpu 12 --lr 3e-3")
PRETRAIN += shlex.split("--warmup_steps 50 --val_freq 350")
SFT = shlex.split("--max_seq_len 256 --pack_samples --micro_batch_size_per_gpu 12 --lr 1e-3 --wd 0.1")
SFT += shlex.split("--lr_scheduler cosine --warmup_steps 20 --loss_reduction tokens")
QUIET = shlex.split("--no_visualize_dataset --print_freq 100")
BEGINNING = "Once upon a time, there was a"
REQUEST = "Write a story about a rabbit named Jack and a purple box."
QUESTION = "What does an owl say?"


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartConfig:
    output_dir: Path = Path("quickstart")
    overwrite: bool = False  # begin again where output_dir holds a life already
    smoke: bool = False  # a few steps of everything, to see that it runs; nothing is learned
    seed: int = 1


@dataclass(frozen=True, slots=True)
class _Size:
    """How much of everything there is."""

    stories: int = 24_000
    conversations: int = 12_000
    judged: int = 100  # held-out conversations answered before and after
    pretrain_steps: int = 800
    sft_steps: int = 600


def run(config: QuickstartConfig) -> None:
    """Every stage in order; one whose result is there already is left alone."""
    out = config.output_dir
    size = _Size(200, 100, 4, 3, 3) if config.smoke else _Size()
    data, tokenizer, shards = (out / name for name in ("data", "tokenizer", "shards"))
    base, tuned = out / "pretrain", out / "sft"
    if config.overwrite:
        for directory in (data, tokenizer, shards, base, tuned):
            shutil.rmtree(directory, ignore_errors=True)

    _title("Stories, and conversations about them")
    _make_data(data, size, config.seed)

    _title("A tokenizer")
    words = ["--train_data_paths", f"text:{data / 'stories.txt'}", "--vocab_size", "768"]
    if not (tokenizer / "tokenizer.json").exists():
        _tutelage("tokenizer", "train", *words, "--output_dir", str(tokenizer))

    _title("Shards: the stories as tokens, some of them held out")
    words = ["--tokenizer", str(tokenizer), "--train_data_paths", f"text:{data / 'stories.txt'}"]
    if not (shards / "train" / "meta.json").exists():
        _tutelage("data", "build", "pretrain", *words, "--val_percent", "2", "--output_dir", str(shards))

    _title("Pretraining: it learns to write")
    words = ["--tokenizer", str(tokenizer), "--train_data_paths", f"shards:{shards / 'train'}"]
    words += ["--val_data_paths", f"shards:{shards / 'val'}", *PRETRAIN, "--sample_prompts", BEGINNING]
    _train("pretrain", base, [*words, *_length(size.pretrain_steps, config)])
    _tutelage("generate", str(base), "--raw", "--prompt", BEGINNING, "--temperature", "0.7")
    before = _judge(base, data)

    _title("Fine-tuning: it learns to do as it is told")
    words = ["--ckpt_paths", str(base / "model"), "--train_data_paths", f"jsonl:{data / 'chats.jsonl'}"]
    _train("sft", tuned, [*words, *SFT, *_length(size.sft_steps, config)])
    after = _judge(tuned, data)

    _title("Before and after")
    for model in (base, tuned):
        _tutelage("generate", str(model), "--prompt", REQUEST, QUESTION, "--max_new_tokens", "200")
    _say(_table(before, after))
    _say(f"\ntraining took {_seconds(base) + _seconds(tuned):.0f} seconds")
    _title("What lies where")
    _say(f"{data}: what it learned from, and prompts.jsonl, what it was asked; {shards}: the same as tokens")
    _say(f"{base / 'model'}: the model that can write, {tuned / 'model'}: the one that can be asked")
    _say(f"{tuned / 'answers.jsonl'}: its answers to the held-out prompts")
    _say(f"\ntalk to it: tutelage chat {shlex.quote(str(tuned))}")


def _length(steps: int, config: QuickstartConfig) -> list[str]:
    return ["--train_steps", str(steps), "--seed", str(config.seed)]


def _make_data(directory: Path, size: _Size, seed: int) -> None:
    """The stories and conversations of `seed`, and the prompts that the model is judged by."""
    if not (directory / "prompts.jsonl").exists():
        counts = ["--stories", str(size.stories), "--conversations", str(size.conversations)]
        _tutelage("data", "build", "stories", "--output_dir", str(directory), *counts, "--seed", str(seed))
        chats = [json.loads(line) for line in (directory / "held_out.jsonl").open(encoding="utf-8")]
        prompts = [{"messages": chat["messages"][:-1]} for chat in chats[: size.judged]]
        lines = [json.dumps(prompt) + "\n" for prompt in prompts]
        (directory / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    with (directory / "stories.txt").open(encoding="utf-8") as file:
        _say(f"the first line of {directory / 'stories.txt'} is\n{file.readline().rstrip()}")


def _train(stage: str, directory: Path, words: list[str]) -> None:
    """Run a stage, go on with one that was interrupted, or leave a whole result (its card comes last)."""
    if (directory / "model" / "README.md").exists():
        _say(f"{directory / 'model'} is there already")
        return
    (directory / "answers.jsonl").unlink(missing_ok=True)
    resume = ["--resume"] if directory.exists() else []
    _tutelage(stage, *words, *QUIET, "--output_dir", str(directory), *resume)


def _judge(run_directory: Path, data: Path) -> dict[str, tuple[int, int]]:
    """Of every kind of held-out prompt, how many replies of the model are right, and how many there are."""
    from tutelage.data.stories import verdict

    answers = run_directory / "answers.jsonl"
    words = ["--input", str(data / "prompts.jsonl"), "--output", str(answers), "--max_new_tokens", "200"]
    if not answers.exists():
        _tutelage("generate", str(run_directory), *words, "--batch_size", "50")
    right, asked = Counter[str](), Counter[str]()
    for line in answers.open(encoding="utf-8"):
        kind, good = verdict(json.loads(line)["messages"])
        right[kind] += good
        asked[kind] += 1
    return {kind: (right[kind], asked[kind]) for kind in sorted(asked)}


def _table(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> str:
    rows = [f"{'right, of held-out prompts':<30}{'before':>10}{'after':>10}"]
    for kind, (right, asked) in after.items():
        rows.append(f"{kind:<30}{f'{before[kind][0]}/{asked}':>10}{f'{right}/{asked}':>10}")
    return "\n".join(rows)


def _seconds(run_directory: Path) -> float:
    """How long the steps of a run took, those before an interruption too."""
    with (run_directory / "metrics.jsonl").open(encoding="utf-8") as file:
        return sum(json.loads(line).get("seconds", 0.0) for line in file)


def _tutelage(*words: str) -> None:
    """Run a command as a user would type it; one that fails ends the quickstart with its exit code."""
    _say(f"\n$ {shlex.join(['tutelage', *words])}")
    process = subprocess.Popen([sys.executable, "-m", "tutelage", *words])
    while process.returncode is None:
        try:
            process.wait()
        except KeyboardInterrupt:  # it has been told too, and saves before it ends
            continue
    if process.returncode:
        sys.exit(process.returncode)


def _title(text: str) -> None:
    _say(f"\n── {text} {'─' * (76 - len(text))}")


def _say(text: str) -> None:
    print(text, flush=True)
