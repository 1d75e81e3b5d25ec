"""Speed and memory against the peers, measured so that it can be believed: `make bench`.

    python -m benchmarks [--only pretrain15m sft rates] [--rounds 5] [--steps 2] [--threads 2]
        [--peers PYTHON] [--clock wall|cpu] [--minutes 13] [--output runs/benchmarks]

Contestants run in processes of their own and take turns on the same machine, round after round; what is
reported are medians of the rounds' ratios. PYTHON is an interpreter that has benchmarks/requirements.txt;
without one, .venv-bench is made. On a machine that does other things, one thread and CPU time
(--threads 1 --clock cpu) still mean something; wall time does not.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import venv
from pathlib import Path

from benchmarks.cases import chats, settings
from benchmarks.race import ROOT, Contestant, environment, race
from benchmarks.tables import Case, markdown

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
KEPT = f"GLIBC_TUNABLES=glibc.malloc.mmap_threshold={2**32 - 1}:glibc.malloc.trim_threshold={2**33}"


def main() -> None:
    words = _words()
    peers = words.peers or str(peers_environment(ROOT / ".venv-bench"))
    deadline = time.monotonic() + 60 * words.minutes
    load = os.getloadavg()[0]
    if load > 0.5 and words.clock == "wall":
        print(f"load is {load:.1f}: this machine does other things, and wall time will mean little")
    cases = []
    for name in ("pretrain15m", "sft"):
        if name in words.only:
            # The first may use as much of the time as leaves the second its share.
            share = 0.35 if name == "pretrain15m" and "sft" in words.only else 1.0
            end = time.monotonic() + share * (deadline - time.monotonic())
            cases.append(_run(name, words, peers, end))
    rates = _rates(words) if "rates" in words.only else []
    report = {
        "machine": _machine(words.threads),
        "clock": words.clock,
        "rates": rates,
        "cases": [case.as_dict(words.clock) for case in cases],
    }
    words.output.mkdir(parents=True, exist_ok=True)
    (words.output / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    table = markdown(report)
    (words.output / "results.md").write_text(table)
    print(f"\n{table}\nwritten to {words.output}/results.json and results.md")


def peers_environment(directory: Path) -> Path:
    """The interpreter of the peers' virtual environment, made at the first call."""
    python, stamp = directory / "bin" / "python", directory / ".installed"
    if not stamp.exists() or stamp.stat().st_mtime < REQUIREMENTS.stat().st_mtime:
        print(f"making {directory.name} for the peers", flush=True)
        venv.create(directory, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
        stamp.touch()
    return python


def contestants(name: str, peers: str, *, tiny: bool) -> list[Contestant]:
    """Ours first: everybody else is compared with it."""
    small = ["--tiny"] if tiny else []
    ours, theirs = [sys.executable, "-m", "benchmarks.ours", name], [peers, "-m", "benchmarks.peers"]
    if name == "pretrain15m":
        return [
            Contestant("tutelage --compile", [*ours, "--compile", "--profile", *small]),
            Contestant("transformers.Trainer", [*theirs, "hugging_face", *small]),
            # Not how it comes, but what a user who knows malloc gets.
            Contestant("transformers.Trainer, memory kept", ["env", KEPT, *theirs, "hugging_face", *small]),
        ]
    return [
        Contestant("tutelage --compile", [*ours, "--compile", "--profile", *small]),
        Contestant("tutelage", [*ours, *small]),
        Contestant("TRL SFTTrainer, padded", [*theirs, "trl_padded", *small]),
        Contestant("TRL SFTTrainer, best-fit packed", [*theirs, "trl_packed", *small]),
    ]


def _run(name: str, words: argparse.Namespace, peers: str, deadline: float) -> Case:
    of = settings(words.tiny)
    print(f"{name}, {words.threads} threads", flush=True)
    field = contestants(name, peers, tiny=words.tiny)
    if name == "pretrain15m":
        steps, tokens, context = words.steps, words.steps * of.rows * of.length, (of.length + 1) / 2
    else:
        lengths = [len(tokens) for tokens, _ in chats(of)]
        steps, tokens = None, sum(lengths)
        context = sum(n * (n + 1) / 2 for n in lengths) / tokens
    rounds = race(field, rounds=words.rounds, steps=steps, threads=words.threads, deadline=deadline)
    return Case(name, rounds, tokens, of.shape.flops(tokens, context), field)


def _rates(words: argparse.Namespace) -> list[dict]:
    command = [sys.executable, "-m", "benchmarks.rates", *(["--tiny"] if words.tiny else [])]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(words.threads), check=True, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _machine(threads: int) -> str:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, {threads} threads used, {platform.system()}"


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ["pretrain15m", "sft", "rates"]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of pretraining, a round; fine-tuning: a pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", help="an interpreter that has benchmarks/requirements.txt")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--minutes", type=float, default=13, help="fewer rounds rather than more than this")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--tiny", action="store_true", help="a toy, to see that everything runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
