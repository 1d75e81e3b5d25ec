"""What each memory setting saves and costs: SmolLM2-135M, rows of 1,024 tokens, two a micro-batch.

    python -m benchmarks.memory [--model GGUF] [--only NAME ...] [--steps 3] [--threads 2] [--clock wall|cpu]
        [--output FILE.md]

A configuration is a list of flags for `tutelage sft`. Each runs in a process of its own, up to its last step:
loading, the rehearsal and the steps count, the export does not. On a machine that does other things, one
thread and CPU time (--threads 1 --clock cpu) still mean something; wall time does not. Flags that this
version does not know, and those that this machine refuses, are left out of the table with a note.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pace import peak_mb
from benchmarks.race import ROOT, environment

PATIENCE = 1200  # seconds that a configuration may take
RELEASED = ["--gradient_release", "--clip_grad_norm", "0"]
EVERY = ["--selective_ac_ratio", "1"]
CONFIGURATIONS: dict[str, list[str]] = {
    "bf16": [],
    "fp32": ["--precision", "fp32"],
    "bf16_pure": ["--precision", "bf16_pure"],
    "ac 1/2": ["--selective_ac_ratio", "0.5"],
    "ac 1": EVERY,
    "ac 1/2, matmuls kept": ["--selective_ac_ratio", "0.5", "--ac_policy", "matmul"],
    "ac 1, matmuls kept": [*EVERY, "--ac_policy", "matmul"],
    "compile": ["--compile"],
    "compile, ac 1": ["--compile", *EVERY],
    "bf16 moments": ["--optimizer_state", "bf16"],
    "8-bit moments": ["--optimizer_state", "8bit"],
    "released": RELEASED,
    "ac 1, released": [*EVERY, *RELEASED],
    "ema": ["--ema_decay", "0.999"],
    "half frozen": ["--frozen_layers", "15"],
    "lora": ["--lora"],
    "lora, ac 1": ["--lora", *EVERY],
    "qlora": ["--lora", "--quant", "nf4"],
    "all of full training": [*EVERY, "--optimizer_state", "8bit", *RELEASED],
    "all, bf16_pure": [*EVERY, "--optimizer_state", "8bit", *RELEASED, "--precision", "bf16_pure"],
}
_TABLE = "| configuration | peak MB | change | a step, seconds | change |\n|---|---|---|---|---|\n"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a configuration took."""

    name: str
    flags: list[str]
    peak_mb: float
    seconds: float  # a step, the median


def main() -> None:
    words = _words()
    if words.child:
        _measure(words.child, words.steps, time.process_time if words.clock == "cpu" else time.perf_counter)
        return
    rows: list[Measured] = []
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "chats.jsonl"
        data.write_text(chats())
        for name in words.only or CONFIGURATIONS:
            command = sft(words.model or _smollm2(), data, Path(place) / "out", CONFIGURATIONS[name])
            told = _in_a_process(command, words)
            print(f"{name}: {told}", file=sys.stderr, flush=True)
            if "refused" in told:
                notes.append(f"- {name} (`{' '.join(CONFIGURATIONS[name])}`) was left out: {told['refused']}")
            else:
                rows.append(Measured(name, CONFIGURATIONS[name], **told))
    text = markdown(rows, notes)
    print(text)
    if words.output:
        words.output.write_text(text)


def chats() -> str:
    """Conversations whose answers are longer than any row, of random common words."""
    draw = random.Random(0)
    vocabulary = ["the", "a", "of", "and", "to", "in", "is", "was", "he", "for", "on", "are", "with", "his"]
    answers = (" ".join(draw.choices(vocabulary, k=1200)) for _ in range(16))
    lines = (
        [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": answer}]
        for answer in answers
    )
    return "".join(json.dumps({"messages": messages}) + "\n" for messages in lines)


def sft(model: Path, data: Path, out: Path, flags: Sequence[str]) -> list[str]:
    """The words of the command: two rows of one document each a step, cut to their 1,024 positions."""
    settings: dict[str, Any] = {
        "ckpt_paths": model,
        "train_data_paths": f"jsonl:{data}",
        "cache_dir": out.parent / "cache",
        "max_seq_len": 1024,
        "max_cut_percent": 100,
        "micro_batch_size_per_gpu": 2,
        "lr": 1e-5,
        "device": "cpu",
        "output_dir": out,
    }
    given = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
    return ["sft", *given, "--overwrite", "--no_visualize_dataset", *flags]


def markdown(rows: Sequence[Measured], notes: Sequence[str]) -> str:
    """A table of the rows against the first of them, and the notes."""
    lines = []
    for row in rows:
        flags = f" `{' '.join(row.flags)}`" if row.flags else ""
        space, pace = row.peak_mb / rows[0].peak_mb - 1, row.seconds / rows[0].seconds - 1
        lines.append(
            f"| {row.name}{flags} | {row.peak_mb:,.0f} | {space:+.0%} | {row.seconds:.2f} | {pace:+.0%} |\n"
        )
    return _TABLE + "".join(lines) + "".join(f"\n{note}" for note in notes)


def _in_a_process(command: list[str], words: argparse.Namespace) -> dict[str, Any]:
    """What the configuration took, or why it was refused."""
    how = ["--steps", str(words.steps), "--clock", words.clock]
    child = [sys.executable, "-m", "benchmarks.memory", *how, "--child", *command]
    done = subprocess.run(
        child, cwd=ROOT, env=environment(words.threads), capture_output=True, text=True, timeout=PATIENCE
    )
    if done.returncode == 2:
        return {"refused": " ".join(done.stderr.split("error: ")[-1].split())}
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(command: list[str], steps: int, clock: Callable[[], float]) -> None:
    """Run the command up to its `steps`-th step, in this process, and print what that took."""
    from tutelage import cli
    from tutelage.allocation import keep_memory
    from tutelage.train.trainer import Trainer

    class Enough(BaseException):
        """All that was to be measured has been; the command takes it for no error of its own."""

    seconds: list[float] = []

    def fit(trainer: Trainer) -> None:
        for _ in range(steps):
            started = clock()
            trainer.train_step(next(trainer.source))
            trainer.step += 1
            seconds.append(clock() - started)
        raise Enough

    keep_memory()  # as the command does
    Trainer.fit = fit
    with suppress(Enough):
        cli.main(command)
    print(json.dumps({"peak_mb": peak_mb(), "seconds": statistics.median(seconds)}))


def _smollm2() -> Path:
    """The file that the slow tests use, downloaded if it is not in their cache."""
    sys.path.insert(0, str(ROOT / "tests"))
    from materials import smollm2_gguf

    return smollm2_gguf()


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, help="default: SmolLM2-135M from the tests' cache")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
