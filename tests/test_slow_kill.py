"""The command itself, killed ten times with kill -9 wherever it happens to be, ends as an unbroken run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_runs import end, killed_ever_later, start
from tiny_runs import differences, leavings, material, metrics, run_here

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def command(words: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tutelage", *words], stdout=file, stderr=file, env=environment
        )


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        (0, {"precision": "fp32"}),
        (1, {"precision": "bf16", "pack_samples": True, "max_seq_len": 80, "num_loader_workers": 2}),
    ],
)
def test_ten_kills_at_random_moments(made, tmp_path, seed, settings):
    """Every other kill comes soon after a step's numbers are written: that is where it saves."""
    settings = {"train_steps": 40, "save_freq": 1, "val_data_paths": made.held_out, "val_freq": 7} | settings
    log, whole, broken = tmp_path / "log", tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    assert command(made.sft(whole, **settings), log).wait() == 0, log.read_text()
    draw, words, seen = random.Random(seed), made.sft(broken, "--resume", **settings), []
    for kill in range(10):
        before = step_of(broken)
        process = command(words, log)
        while process.poll() is None and step_of(broken) <= before:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.02 if kill % 2 else 0.3))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, log.read_text()
        seen.append((step_of(broken), sorted(path.name for path in (broken / "checkpoints").iterdir())))
    assert command(words, log).wait() == 0, log.read_text()
    assert differences(leavings(whole), leavings(broken)) == [], seen
    assert any(name.startswith(".") for _, names in seen for name in names), f"no kill while saving: {seen}"


def step_of(out: Path) -> int:
    """The last step whose numbers were written."""
    try:
        return int(metrics(out)[-1]["step"])
    except (OSError, ValueError, IndexError):
        return 0


def test_killed_at_every_single_change_it_makes_to_its_files(made, tmp_path):
    settings = {"train_steps": 8, "save_freq": 1, "val_data_paths": made.held_out, "val_freq": 4}
    log, whole, broken = tmp_path / "log", tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    assert end(start(run_here, made.sft(whole, **settings), log=log, directory=whole)) == 0, log.read_text()
    words = made.sft(broken, "--resume", **settings)
    kills = killed_ever_later(
        lambda kill_at: start(run_here, words, log=log, directory=broken, kill_at=kill_at), log=log
    )
    assert kills > 20
    assert differences(leavings(whole), leavings(broken)) == []
