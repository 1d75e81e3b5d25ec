"""Pretraining from shards, killed ten times with kill -9, alone and in two processes: nothing lost, nothing
repeated, the same weights."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parallel_runs import HERE, torchrun
from tiny_runs import differences, leavings, material, metrics
from tiny_shards import shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]
KILLS = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A place with a tokenizer and shards of 60 documents, some 160 rows of 24."""
    made = material(tmp_path_factory.mktemp("material"))
    shards(made.place, 60)
    return made


def begun(processes: int, notes: Path, words: list[str], log: Path) -> subprocess.Popen:
    """A recorded run, alone or under torchrun."""
    script = HERE / "recorded_run.py"
    if processes > 1:
        return torchrun(processes, script, notes, *words, log=log)
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent / 'src'}", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        command = [sys.executable, script, notes, *words]
        return subprocess.Popen([str(word) for word in command], stdout=file, stderr=file, env=environment)


def kill(process: subprocess.Popen) -> None:
    """kill -9, of torchrun and of all that it started; returns when the last is gone."""
    process.send_signal(signal.SIGSTOP)  # it starts no more of them meanwhile
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    for pid in children:
        if alive(pid):
            os.kill(int(pid), signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a process outlived the kill"
        time.sleep(0.01)


def alive(pid: str) -> bool:
    """Whether a process runs: the dead that nobody has waited for do not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def taken(notes: Path, processes: int) -> dict[int, list[list[str]]]:
    """By step the ids of the samples of every rank; taken again after a kill they must be the same."""
    steps: dict[int, list[list[str]]] = {}
    for rank in range(processes):
        own: dict[int, list[str]] = {}
        for line in notes.with_suffix(f".rank{rank}.jsonl").read_text().splitlines():
            step, ids = json.loads(line)
            assert own.setdefault(step, ids) == ids, f"step {step} had other samples the second time"
        for step, ids in own.items():
            steps.setdefault(step, []).append(ids)
    return steps


def step_of(out: Path) -> int:
    """The last step whose numbers were written."""
    try:
        return int(metrics(out)[-1]["step"])
    except (OSError, ValueError, IndexError):
        return 0


@pytest.mark.parametrize(("processes", "save_freq"), [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_ten_kills_at_random_moments(made, tmp_path, processes, save_freq):
    """Every fourth kill comes at any moment, starting up included; the others while it trains and saves."""
    log, whole, broken = tmp_path / "log", tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    settings = {
        "train_data_paths": made.place / "shards" / "train",
        "save_freq": save_freq,
        "train_epochs": 1,
    }
    settings |= {
        "micro_batch_size_per_gpu": 2,
        "gradient_accum_steps": 2 // processes,
        "pack_samples": "true",
    }
    for out in (whole, broken):
        out.parent.mkdir()
    unbroken = begun(processes, whole.parent / "notes", made.pretrain(whole, **settings), log)
    assert unbroken.wait() == 0, log.read_text()
    draw, seen = random.Random(processes + save_freq), []
    words = made.pretrain(broken, "--resume", **settings)
    for number in range(KILLS):
        before = step_of(broken)
        process = begun(processes, broken.parent / "notes", words, log)
        if number % 4 == 3:
            time.sleep(draw.uniform(0, 4))
        else:
            while process.poll() is None and step_of(broken) <= before:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.1))
        assert process.poll() is None, f"it was through before kill {number}: {log.read_text()}"
        kill(process)
        seen.append((step_of(broken), saved(broken)))
    assert begun(processes, broken.parent / "notes", words, log).wait() == 0, log.read_text()
    print(f"{processes} processes, killed at {seen}")
    assert differences(leavings(whole), leavings(broken)) == [], seen
    expected, found = (taken(out.parent / "notes", processes) for out in (whole, broken))
    assert found == expected and sorted(found) == list(range(1, len(metrics(whole)) + 1))
    ids = [name for ranks in found.values() for names in ranks for name in names]
    assert len(ids) == len(set(ids)) > 100, "every row once, none twice"


def saved(out: Path) -> list[str]:
    """What lies among the checkpoints, half written too."""
    directory = out / "checkpoints"
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []
