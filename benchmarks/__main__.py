"""Speed and memory against the peers, measured so that it can be believed: `make bench`.

    python -m benchmarks [--only pretrain15m pretrain110m sft rates] [--rounds 5] [--steps 2] [--threads 2]
        [--against transformers litgpt nanogpt trl] [--peers PYTHON] [--clock wall|cpu] [--minutes 30]
        [--output runs/benchmarks]

Contestants run in processes of their own and take turns on the same machine, round after round; what is
reported are medians of the rounds' ratios. PYTHON is an interpreter that has what benchmarks/requirements.txt
and requirements-no-deps.txt name; without one, .venv-bench is made. On a machine that does other things, one
thread and CPU time (--threads 1 --clock cpu) still mean something; wall time does not.
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

from benchmarks.cases import CASES, chats, settings
from benchmarks.field import RIVALS, heats, needs_peers
from benchmarks.race import ROOT, Contestant, environment, race
from benchmarks.tables import Case, markdown

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
WITHOUT_DEPENDENCIES = Path(__file__).parent / "requirements-no-deps.txt"
SHARES = {"pretrain15m": 1.0, "pretrain110m": 1.0, "sft": 2.0}  # of the time


def main() -> None:
    words = _words()
    names = [case for case in CASES if case in words.only]
    peers = words.peers or ""
    if needs_peers(names, words.against) and not peers:
        peers = str(peers_environment(ROOT / ".venv-bench"))
    deadline = time.monotonic() + 60 * words.minutes
    load = os.getloadavg()[0]
    if load > 0.5 and words.clock == "wall":
        print(f"load is {load:.1f}: this machine does other things, and wall time will mean little")
    cases = []
    for number, name in enumerate(names):
        # Each case may use as much of the time as leaves those after it their shares.
        share = SHARES[name] / sum(SHARES[later] for later in names[number:])
        field = heats(name, words.against, peers, tiny=words.tiny)
        if field:
            end = time.monotonic() + share * (deadline - time.monotonic())
            cases.append(_run(name, field, words, end))
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
    newest = max(path.stat().st_mtime for path in (REQUIREMENTS, WITHOUT_DEPENDENCIES))
    if not stamp.exists() or stamp.stat().st_mtime < newest:
        print(f"making {directory.name} for the peers", flush=True)
        venv.create(directory, with_pip=True)
        install = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*install, "-r", REQUIREMENTS], check=True)
        subprocess.run([*install, "--no-deps", "-r", WITHOUT_DEPENDENCIES], check=True)
        stamp.touch()
    return python


def _run(name: str, field: list[list[Contestant]], words: argparse.Namespace, deadline: float) -> Case:
    of = settings(name, tiny=words.tiny)
    if name == "sft":
        lengths = [len(tokens) for tokens, _ in chats(of)]
        steps, tokens = None, sum(lengths)
        context = sum(n * (n + 1) / 2 for n in lengths) / tokens
    else:
        steps, tokens, context = words.steps, words.steps * of.rows * of.length, (of.length + 1) / 2
    for number, heat in enumerate(field):
        print(f"{name}, heat {number + 1} of {len(field)}, {words.threads} threads", flush=True)
        end = time.monotonic() + (deadline - time.monotonic()) / (len(field) - number)
        race(heat, rounds=words.rounds, steps=steps, threads=words.threads, deadline=end)
        for contestant in heat:
            if contestant.facts["parameters"] != of.shape.parameters:
                raise SystemExit(f"{contestant.name} trains a model of another size: {contestant.facts}")
    return Case(name, tokens, of.shape.flops(tokens, context), field)


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
    names, rivals = [*CASES, "rates"], sorted({rival for group in RIVALS.values() for rival in group})
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--against", nargs="+", choices=rivals, default=rivals)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of pretraining, a round; fine-tuning: a pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", help="an interpreter that has benchmarks/requirements.txt")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--minutes", type=float, default=30, help="fewer rounds rather than more than this")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--tiny", action="store_true", help="a toy, to see that everything runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
