"""The whole life of a small model, on CPU, in minutes: it learns to write, to do as told, to please and
to judge.

    tutelage quickstart --output_dir quickstart

Small stories are made up, a tokenizer is trained on them, they are tokenized into shards, a model is trained
on those and then fine-tuned to follow instructions. From there one learns by DPO that stories are to end
well, and another to score them. Answers to held-out prompts are shown and judged before and after. Every
stage is a command that is printed, and that can be typed again with other settings. Interrupted, the same
command goes on.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.data.stories.plots import Messages

Counts = dict[str, tuple[int, int]]  # by kind: how many are right, and how many there are

PRETRAIN = shlex.split("--model stories840K --max_seq_len 256 --micro_batch_size_per_gpu 12 --lr 3e-3")
PRETRAIN += shlex.split("--warmup_steps 50 --val_freq 350")
SFT = shlex.split("--max_seq_len 256 --pack_samples --micro_batch_size_per_gpu 12 --lr 1e-3 --wd 0.1")
SFT += shlex.split("--lr_scheduler cosine --warmup_steps 20 --loss_reduction tokens")
PAIRS = shlex.split("--max_seq_len 256 --micro_batch_size_per_gpu 8 --lr_scheduler cosine --warmup_steps 5")
PAIRS += shlex.split("--val_freq 0")
DPO = shlex.split("--lr 5e-5 --dpo_beta 1")
REWARD = shlex.split("--lr 3e-4")
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
    pairs: int = 4_000
    judged: int = 100  # held-out conversations answered before and after
    told: int = 400  # stories that are told for held-out requests, before and after
    pretrain_steps: int = 800
    sft_steps: int = 600
    dpo_steps: int = 100
    reward_steps: int = 60


def run(config: QuickstartConfig) -> None:
    """Every stage in order; one whose result is there already is left alone."""
    out = config.output_dir
    size = _Size(200, 100, 20, 4, 4, 3, 3, 3, 3) if config.smoke else _Size()
    data, tokenizer, shards = (out / name for name in ("data", "tokenizer", "shards"))
    base, tuned, pleasing, judging = (out / name for name in ("pretrain", "sft", "dpo", "reward"))
    if config.overwrite:
        for directory in (data, tokenizer, shards, base, tuned, pleasing, judging):
            shutil.rmtree(directory, ignore_errors=True)

    _title("Stories, conversations about them, and pairs of a better and a worse one")
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
    judged = {base: _judge(base, data)}

    _title("Fine-tuning: it learns to do as it is told")
    words = ["--ckpt_paths", str(base / "model"), "--train_data_paths", f"jsonl:{data / 'chats.jsonl'}"]
    _train("sft", tuned, [*words, *SFT, *_length(size.sft_steps, config)])
    judged[tuned] = _judge(tuned, data) | _judge_endings(tuned, data)

    _title("Preferences: it learns that stories end well")
    words = ["--ckpt_paths", str(tuned / "model"), "--train_data_paths", f"jsonl:{data / 'pairs.jsonl'}"]
    words += ["--val_data_paths", f"jsonl:{data / 'held_out_pairs.jsonl'}", *PAIRS]
    _train("dpo", pleasing, [*words, *DPO, *_length(size.dpo_steps, config)])
    judged[pleasing] = _judge(pleasing, data) | _judge_endings(pleasing, data)

    _title("A reward model: it learns to judge")
    _train("reward", judging, [*words, *REWARD, *_length(size.reward_steps, config)])
    judged[judging] = _judge_scores(judging, data)

    _title("Before and after")
    for model in (base, tuned, pleasing):
        _tutelage("generate", str(model), "--prompt", REQUEST, QUESTION, "--max_new_tokens", "200")
    _say(_table(judged))
    seconds = {run.name: _seconds(run) for run in judged}
    stages = ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())
    _say(f"\ntraining took {sum(seconds.values()):.0f} seconds: {stages}")
    _where_it_lies(out)


def _where_it_lies(out: Path) -> None:
    _title("What lies where")
    _say(f"{out / 'data'}: what it learned from, and prompts.jsonl and requests.jsonl, what it was asked")
    _say(f"{out / 'shards'}: the stories as tokens")
    _say(f"{out / 'pretrain' / 'model'}: the model that can write")
    _say(f"{out / 'sft' / 'model'}: the one that can be asked")
    _say(f"{out / 'dpo' / 'model'}: the one whose stories end well")
    _say(f"{out / 'reward' / 'model'}: the one that scores stories")
    _say("answers.jsonl and stories.jsonl beside them: what they answered, and the stories they told")
    stories = shlex.quote(str(out / "dpo" / "stories.jsonl"))
    _say(f"\ntalk to it: tutelage chat {shlex.quote(str(out / 'dpo'))}")
    _say(f"score its stories: tutelage reward score {shlex.quote(str(out / 'reward'))} --input {stories}")


def _length(steps: int, config: QuickstartConfig) -> list[str]:
    return ["--train_steps", str(steps), "--seed", str(config.seed)]


def _make_data(directory: Path, size: _Size, seed: int) -> None:
    """The stories, conversations and pairs of `seed`, and the prompts that the model is judged by."""
    if not (directory / "requests.jsonl").exists():
        counts = ["--stories", str(size.stories), "--conversations", str(size.conversations)]
        counts += ["--pairs", str(size.pairs), "--seed", str(seed)]
        _tutelage("data", "build", "stories", "--output_dir", str(directory), *counts)
        chats = [chat["messages"][:-1] for chat in _lines(directory / "held_out.jsonl")]
        _write_prompts(directory / "prompts.jsonl", chats[: size.judged])
        asked = [pair["prompt"] for pair in _lines(directory / "held_out_pairs.jsonl")]
        requests = [[{"role": "user", "content": request}] for request in asked[: size.told]]
        _write_prompts(directory / "requests.jsonl", requests)
    with (directory / "stories.txt").open(encoding="utf-8") as file:
        _say(f"the first line of {directory / 'stories.txt'} is\n{file.readline().rstrip()}")


def _write_prompts(path: Path, prompts: list[Messages]) -> None:
    lines = [json.dumps({"messages": prompt}) + "\n" for prompt in prompts]
    path.write_text("".join(lines), encoding="utf-8")


def _train(stage: str, directory: Path, words: list[str]) -> None:
    """Run a stage, go on with one that was interrupted, or leave a whole result (its card comes last)."""
    if (directory / "model" / "README.md").exists():
        _say(f"{directory / 'model'} is there already")
        return
    for name in ("answers.jsonl", "stories.jsonl", "scores.jsonl"):
        (directory / name).unlink(missing_ok=True)
    resume = ["--resume"] if directory.exists() else []
    _tutelage(stage, *words, *QUIET, "--output_dir", str(directory), *resume)


def _judge(run_directory: Path, data: Path) -> Counts:
    """Of every kind of held-out prompt, how many replies of the model are right, and how many there are."""
    from tutelage.data.stories.plots import verdict

    right, asked = Counter[str](), Counter[str]()
    for messages in _replies(run_directory, data / "prompts.jsonl", "answers.jsonl"):
        kind, good = verdict(messages)
        right[kind] += good
        asked[kind] += 1
    return {kind: (right[kind], asked[kind]) for kind in sorted(asked)}


def _judge_endings(run_directory: Path, data: Path) -> Counts:
    """Of stories for requests that name no mood, drawn at temperature 1, how many are what was wanted."""
    from tutelage.data.stories.pairs import judge

    drawn = _replies(run_directory, data / "requests.jsonl", "stories.jsonl", "--temperature", "1")
    return {f"{kind}, drawn": counts for kind, counts in judge(drawn).items()}


def _replies(run_directory: Path, prompts: Path, name: str, *sampling: str) -> list[Messages]:
    """What the model replies to every prompt, kept under `name`; half a file is written again."""
    replies = run_directory / name
    words = ["--input", str(prompts), "--output", str(replies), "--max_new_tokens", "200"]
    if not replies.exists() or len(_lines(replies)) < len(_lines(prompts)):
        _tutelage("generate", str(run_directory), *words, "--batch_size", "50", *sampling)
    return [line["messages"] for line in _lines(replies)]


def _judge_scores(run_directory: Path, data: Path) -> Counts:
    """Of held-out pairs, by what they are about, how many the reward model scores in the right order."""
    from tutelage.data.stories.pairs import is_happy

    pairs, scores = data / "held_out_pairs.jsonl", run_directory / "scores.jsonl"
    words = ["--input", str(pairs), "--output", str(scores), "--overwrite"]
    if not scores.exists() or len(_lines(scores)) < len(_lines(pairs)):
        _tutelage("reward", "score", str(run_directory), *words)
    counts = {"a happy story above a sad one": (0, 0), "a story asked for above another": (0, 0)}
    for line in _lines(scores):
        kind = list(counts)[bool(is_happy(line["rejected"]))]
        right, asked = counts[kind]
        better, worse = line["scores"]
        counts[kind] = right + (better > worse), asked + 1
    return counts


def _table(judged: dict[Path, Counts]) -> str:
    """A row of every kind of prompt, a column of every model that was asked."""
    kinds = list(dict.fromkeys(kind for counts in judged.values() for kind in counts))
    columns = "".join(f"{run.name:>10}" for run in judged)
    rows = [f"{'right, of held-out ones':<34}{columns}"]
    for kind in kinds:
        shares = [counts.get(kind) for counts in judged.values()]
        cells = [f"{share[0]}/{share[1]}" if share else "" for share in shares]
        rows.append(f"{kind:<34}{''.join(f'{cell:>10}' for cell in cells)}".rstrip())
    rows.append("drawn: at temperature 1, for requests that name no mood; the other answers are greedy")
    return "\n".join(rows)


def _lines(path: Path) -> list[Any]:
    """The values in a file of JSON lines; a last line that is cut off is not one."""
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in whole]


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
