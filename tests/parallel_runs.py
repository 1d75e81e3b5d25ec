"""Commands that torchrun runs one after another in the same processes, and the commands under it themselves.

torchrun --nproc_per_node 2 tests/parallel_runs.py RUNS.json
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import Ended, run_here, watched

from tutelage import dist

HERE = Path(__file__).parent


def torchrun(processes: int, *words: object, log: Path) -> subprocess.Popen:
    """A script and its words, or `-m tutelage` and its, begun in several processes; they write to `log`."""
    paths = [str(HERE.parent / "src"), str(HERE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    with log.open("wb") as file:
        return subprocess.Popen(
            [str(word) for word in (*command, *words)], stdout=file, stderr=file, env=environment
        )


def ended(process: subprocess.Popen, log: Path, *, seconds: float = 150) -> Ended:
    """How torchrun ended, with what it and its processes wrote."""
    try:
        code = process.wait(seconds)
    finally:
        process.kill()
    return Ended(code, "", log.read_text())


def all_of(place: Path, runs: list[list[str]], mishaps: dict[int, dict]) -> str:
    """Run commands in two processes, under one torchrun; returns what they say.

    `mishaps` has, by the number of a run, what a `Watch` makes of the steps of its last process. Each run
    leaves the ids of its samples by step and rank, and the exit codes, beside its output directory.
    """
    listed = [[words, mishaps.get(number, {})] for number, words in enumerate(runs)]
    (place / "runs.json").write_text(json.dumps(listed))
    log = place / "torchrun.log"
    done = ended(torchrun(2, HERE / "parallel_runs.py", place / "runs.json", log=log), log)
    assert done.code == 0, done.err
    return done.err


def seen(out: Path, processes: int = 2) -> tuple[list[int], dict[int, list[str]]]:
    """The exit codes of the processes of a run, and by step the ids of the samples of all."""
    reports = [json.loads(out.with_suffix(f".rank{rank}.json").read_text()) for rank in range(processes)]
    steps = {int(step) for report in reports for step in report["ids"]}
    ids = {step: [name for report in reports for name in report["ids"][str(step)]] for step in sorted(steps)}
    return [report["code"] for report in reports], ids


def main(runs: list[tuple[list[str], dict]]) -> None:
    """Run each command to its end in this process, which meets the others once."""
    dist.start()
    rank = dist.rank()
    for words, mishaps in runs:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("start", "stop"):
                patch.setattr(dist, name, lambda: None)
            patch.setattr("tutelage.train.ema.RAMP", 1)
            watch, code = watched(patch), 0
            if rank == dist.launched() - 1:
                watch.signals = {int(step): signal.SIGTERM for step in mishaps.get("signals", [])}
                watch.poison = set(mishaps.get("poison", []))
            try:
                run_here(words)
            except SystemExit as end:
                code = int(end.code or 0)
        out = Path(words[words.index("--output_dir") + 1])
        report = {"code": code, "ids": watch.ids}
        out.with_suffix(f".rank{rank}.json").write_text(json.dumps(report))
    dist.stop()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
