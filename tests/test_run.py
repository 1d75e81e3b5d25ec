"""Runs interrupted, resumed, repeated and started over: each ends as the unbroken one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed_runs import end, start
from tiny_runs import Ended, Material, differences, leavings, material, metrics, run, run_here, watched

from tutelage.recipes.stage import watching
from tutelage.train.saver import newest
from tutelage.train.trainer import Trainer

SOURCE = Path(__file__).parent.parent / "src"
TERM, INT = signal.SIGTERM, signal.SIGINT
SAVED = "SIG{}: saved at step {}; --resume goes on from there"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture
def watch(monkeypatch):
    return watched(monkeypatch)


def finished(ended: Ended) -> Ended:
    assert ended.code == 0, ended.err
    return ended


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("packed", [False, True])
def test_interrupted_twice_and_resumed_is_unbroken(made, tmp_path, watch, packed, precision):
    """12 steps of 2 x 2 micro-batches over 20 conversations: 5 an epoch, so the parts cross its border."""
    settings = {"pack_samples": packed, "precision": precision, "train_steps": 12, "max_seq_len": 80}
    settings |= {"val_data_paths": made.held_out, "val_freq": 4, "warmup_steps": 3}
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    finished(run(*made.sft(whole, **settings)))
    unbroken, watch.ids = watch.ids, {}
    for workers, name, first, second in ((0, TERM, 4, 7), (2, INT, 5, 6)):
        words = made.sft(broken, **settings, num_loader_workers=workers)
        watch.ids.clear()
        watch.signals = {first: name, second: name}
        for step, how in ((first, "--overwrite"), (second, "--resume")):
            ended = run(*words, how)
            assert ended.code == 128 + name
            assert SAVED.format(name.name[3:], step) in ended.err and "Traceback" not in ended.err
            assert newest(broken / "checkpoints").name == f"step-{step:07d}"
        finished(run(*words, "--resume"))
        assert watch.ids == unbroken
        assert differences(leavings(whole), leavings(broken)) == []
    assert [row["step"] for row in metrics(whole)] == list(range(1, 13))


def test_pretraining_interrupted_and_resumed_is_unbroken(made, tmp_path, watch):
    """Documents longer than a row are split, so that a document's pieces come in several steps."""
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    settings = {"train_epochs": 3, "num_loader_workers": 2, "gradient_accum_steps": 2}
    finished(run(*made.pretrain(whole, **settings)))
    unbroken, watch.ids = watch.ids, {}
    assert any("/1" in name for ids in unbroken.values() for name in ids)
    watch.signals = {4: INT}
    assert run(*made.pretrain(broken, **settings)).code == 130
    finished(run(*made.pretrain(broken, **settings), "--resume"))
    assert watch.ids == unbroken
    assert differences(leavings(whole), leavings(broken)) == []


@pytest.mark.parametrize("name", [TERM, INT])
def test_a_signal_ends_a_command_after_its_step_saved(made, tmp_path, name):
    out, environment = tmp_path / "out", {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tutelage", *made.sft(out, train_steps=100_000, save_freq=100_000)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(metrics(out)) > 2, process)
    process.send_signal(name)
    assert process.wait(60) == 128 + name
    said, step = (tmp_path / "log").read_text(), int(metrics(out)[-1]["step"])
    assert said.count(f"{name.name}: this step ends and is saved; again stops at once\n") == 1
    assert said.endswith(SAVED.format(name.name[3:], step) + "\n") and "Traceback" not in said
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{step:07d}"]


def wait_for(condition, process) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        assert getattr(process, "returncode", None) is None
        time.sleep(0.02)


def never_ending_step(words: list[str]) -> None:
    """A command whose second step takes ten minutes."""
    train_step = Trainer.train_step

    def slow(trainer, batches):
        if trainer.step == 1:
            print("asleep", file=sys.stderr, flush=True)
            time.sleep(600)
        return train_step(trainer, batches)

    Trainer.train_step = slow
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell leaves it for a command in the background
    run_here(words)


@pytest.mark.parametrize(("name", "code"), [(TERM, -15), (INT, 130)])
def test_a_second_signal_ends_a_command_at_once(made, tmp_path, name, code):
    out, log = tmp_path / "out", tmp_path / "log"
    process = start(never_ending_step, made.sft(out), log=log, directory=out)
    for said in ("asleep", "again stops at once"):
        wait_for(lambda said=said: log.exists() and said in log.read_text(), process)
        os.kill(process.pid, name)
    assert end(process) == code
    assert "Traceback" not in log.read_text() and not (out / "checkpoints").exists()


def test_resuming_where_nothing_is_starts_anew_and_says_so(made, tmp_path):
    whole, other = tmp_path / "whole" / "out", tmp_path / "other" / "out"
    finished(run(*made.sft(whole)))
    ended = finished(run(*made.sft(other), "--resume"))
    assert f"{other / 'checkpoints'} holds no whole checkpoint: nothing to resume" in ended.err
    assert differences(leavings(whole), leavings(other)) == []
    shutil.rmtree(other / "checkpoints")  # killed before the first checkpoint: the numbers are dropped
    finished(run(*made.sft(other), "--resume"))
    assert differences(leavings(whole), leavings(other)) == []


def test_a_torn_checkpoint_is_passed_over_aloud(made, tmp_path, watch):
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    settings = {"train_steps": 7, "save_freq": 2, "max_checkpoints": 9}
    finished(run(*made.sft(whole, **settings)))
    finished(run(*made.sft(broken, **settings)))
    for step, name in ((7, "MANIFEST.json"), (6, ".metadata"), (4, "state.json")):
        (broken / "checkpoints" / f"step-{step:07d}" / name).unlink()
    watch.ids.clear()
    ended = finished(run(*made.sft(broken, **settings), "--resume"))
    assert "step-0000004, step-0000006, step-0000007 is not whole and is passed over" in ended.err
    assert f"resuming from {broken / 'checkpoints' / 'step-0000002'}\n" in ended.err
    assert list(watch.ids) == [3, 4, 5, 6, 7]
    assert differences(leavings(whole), leavings(broken)) == []


def test_a_finished_run_resumed_writes_its_result_again(made, tmp_path, watch):
    out = tmp_path / "out"
    words = made.sft(out, val_data_paths=made.held_out)
    finished(run(*words))
    before = leavings(out)
    shutil.rmtree(out / "model")
    for name in (".deleting-step-0000004", "step-0000003"):  # killed before it had tidied up
        shutil.copytree(out / "checkpoints" / "step-0000005", out / "checkpoints" / name)
    watch.ids.clear()
    ended = finished(run(*words, "--resume"))
    assert "resumed at step 5 of 5" in ended.err and watch.ids == {}
    assert differences(before, leavings(out)) == [], "the card and its numbers too"


def test_a_finished_run_resumed_with_more_steps_goes_on(made, tmp_path):
    """With a constant rate the first steps are those of the longer run."""
    whole, longer = tmp_path / "whole" / "out", tmp_path / "longer" / "out"
    finished(run(*made.sft(whole, lr_scheduler="constant", train_steps=8)))
    finished(run(*made.sft(longer, lr_scheduler="constant", train_steps=3)))
    finished(run(*made.sft(longer, lr_scheduler="constant", train_steps=8), "--resume"))
    assert differences(leavings(whole), leavings(longer)) == []


def test_a_directory_that_holds_a_run_is_not_written_over_unasked(made, tmp_path):
    out = tmp_path / "out"
    finished(run(*made.sft(out)))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    ended = run(*made.sft(out, lr=1.0))
    parts = "config.yaml, metrics.jsonl, tensorboard, checkpoints, model, report.html"
    assert ended.code == 2 and ended.err.endswith(
        f"error: {out} already holds a run ({parts}); give --resume to go on with it, "
        "--overwrite to throw it away, or another --output_dir\n"
    )
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (out / "notes.txt").write_text("mine")
    finished(run(*made.sft(out, train_steps=3), "--overwrite"))
    assert [row["step"] for row in metrics(out)] == [1, 2, 3]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-0000003"]
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert (out / "notes.txt").read_text() == "mine"


def test_the_config_of_a_run_reruns_it(made, tmp_path):
    first, second = tmp_path / "first" / "out", tmp_path / "second" / "out"
    settings = {"betas": "0.8", "precision": "bf16", "seed": 7, "loss_reduction": "tokens"}
    words = made.sft(first, **settings, train_num_samples=11, max_seq_len=80)
    words.insert(words.index("0.8") + 1, "0.95")
    finished(run(*words, "--resume"))
    config = first / "config.yaml"
    finished(run("sft", "--config", config, "--output_dir", second))
    assert differences(leavings(first), leavings(second)) == []
    lines = config.read_text().splitlines()
    other = (second / "config.yaml").read_text().splitlines()
    assert [line.replace(str(first), str(second)) for line in lines[3:]] == other[3:]
    assert lines[0] == f"# tutelage sft --config {config}"
    assert re.fullmatch(r"# written \S+ by: tutelage.*", lines[1])
    assert re.fullmatch(r"# tutelage \S+, torch \S+, tokenizers \S+, numpy \S+, python \S+", lines[2])
    assert not any(re.match("(resume|overwrite|dry_run): true", line) for line in lines)


def test_a_run_that_died_while_it_validated_loses_no_row(made, tmp_path, monkeypatch):
    """A step's numbers are written before its checkpoint: resuming never skips a validation."""
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    words = {"train_steps": 5, "save_freq": 1, "val_data_paths": made.held_out, "val_freq": 2}
    finished(run(*made.sft(whole, **words)))
    with monkeypatch.context() as patch:
        patch.setattr(watching, "evaluate", None)
        assert run(*made.sft(broken, **words)).code == 1
    assert newest(broken / "checkpoints").name == "step-0000001"
    finished(run(*made.sft(broken, **words), "--resume"))
    assert differences(leavings(whole), leavings(broken)) == []


def test_a_seed_is_the_run(made, tmp_path, watch):
    ids = []
    for number, seed in enumerate((1, 1, 2)):
        finished(run(*made.sft(tmp_path / str(number) / "out", seed=seed)))
        ids.append(dict(watch.ids))
    assert ids[0] == ids[1] != ids[2]
    left = [leavings(tmp_path / str(number) / "out") for number in range(3)]
    assert differences(left[0], left[1]) == []
    assert "checkpoint random.cpu.0" in differences(left[0], left[2])


def test_steps_count_over_epochs_and_both_ways_are_one_run(made: Material, tmp_path):
    """20 conversations in steps of 4: two epochs are ten steps."""
    out, other = tmp_path / "epochs" / "out", tmp_path / "steps" / "out"
    finished(run(*made.sft(out, train_epochs=2)))
    finished(run(*made.sft(other, train_epochs=9, train_steps=10)))
    assert differences(leavings(out), leavings(other)) == []
    state = json.loads((out / "checkpoints" / "step-0000010" / "state.json").read_text())
    assert (state["step"], state["data"]["epoch"], state["data"]["step"]) == (10, 2, 0)
