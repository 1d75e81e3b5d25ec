"""The memory benchmark measures a command in a process of its own, and its table is right."""

import json
import subprocess
import sys

import pytest
from tiny_runs import material

from benchmarks.memory import CONFIGURATIONS, Measured, chats, markdown, sft
from benchmarks.race import ROOT, environment
from tutelage.cli import configure


def test_a_table_compares_with_its_first_row():
    """300 of 400 MB are 25 % less, 3 of 2 seconds half as much again."""
    rows = [Measured("bf16", [], 400.0, 2.0), Measured("ac 1", ["--selective_ac_ratio", "1"], 300.0, 3.0)]
    assert markdown(rows, ["- lora was left out"]).splitlines() == [
        "| configuration | peak MB | change | a step, seconds | change |",
        "|---|---|---|---|---|",
        "| bf16 | 400 | +0% | 2.00 | +0% |",
        "| ac 1 `--selective_ac_ratio 1` | 300 | -25% | 3.00 | +50% |",
        "",
        "- lora was left out",
    ]


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if "qlora" not in name])
def test_every_configuration_is_one(name, tmp_path):
    (tmp_path / "chats.jsonl").write_text(chats())
    flags = CONFIGURATIONS[name]
    if "8bit" in flags:
        pytest.importorskip("bitsandbytes")
    configure(sft(tmp_path / "model", tmp_path / "chats.jsonl", tmp_path / "out", flags))


def measured(tmp_path, *flags):
    made = material(tmp_path)
    words = sft(made.model, tmp_path / "chats.jsonl", tmp_path / "out", flags)
    command = [sys.executable, "-m", "benchmarks.memory", "--steps", "2", "--child", *words]
    return subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True)


def test_a_command_is_measured_up_to_its_steps_and_leaves_no_model(tmp_path):
    done = measured(tmp_path, "--selective_ac_ratio", "1")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["peak_mb"] > 100 and told["seconds"] > 0
    assert not (tmp_path / "out" / "model").exists()


def test_a_flag_that_is_not_known_is_no_failure(tmp_path):
    done = measured(tmp_path, "--no_such_flag", "1")
    assert done.returncode == 2 and "error: " in done.stderr
