"""Whole runs under torchrun: equal to those of one process, resumed on any number, one voice in trouble."""

import json
import signal
import subprocess
import time

import pytest
import torch
from parallel_runs import HERE, all_of, ended, seen, torchrun
from small_disk import small_disk
from tiny_runs import differences, leavings, material, metrics, run, watched
from transformers import AutoModelForCausalLM

from tutelage.train.saver import newest

STEPS = {"train_steps": 6, "eps": 1e-3, "save_freq": 4, "val_freq": 2}  # eps: no noise becomes a step
ONE = {**STEPS, "gradient_accum_steps": 2}
TWO = {**STEPS, "gradient_accum_steps": 1}
LORA = {"lora": "true", "lora_rank": 4, "lora_embedding": "true", "save_merged": "true"}
QLORA = {"lora": "true", "lora_rank": 4, "quant": "nf4", "precision": "bf16"}
LONG = {**TWO, "train_steps": 60, "save_freq": 1000, "val_freq": 1000}
RICH = {"optimizer": "muon", "ema_decay": 0.9, "dropout_resid": 0.1, "dropout_attn": 0.1, "train_steps": 6}
RICH |= {"selective_ac_ratio": 0.5, "precision": "bf16", "micro_batch_size_per_gpu": 1, "lr": 1e-2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def runs(made):
    """The place of all runs: `one` process, `two`, ended by signals and resumed, here and there."""
    place = made.place / "runs"
    place.mkdir()
    data = {"val_data_paths": made.held_out, "sample_prompts": "hi", "sample_freq": 2, "sample_tokens": 5}
    data |= {"ema_decay": 0.9}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tutelage.train.ema.RAMP", 1)  # a few steps show the average, as in those runs
        watch = watched(patch)
        assert run(*made.sft(place / "one" / "out", **ONE, **data)).code == 0
        (place / "one.ids.json").write_text(json.dumps(watch.ids))
        assert run(*made.sft(place / "lora" / "out", **ONE, **LORA)).code == 0
        assert run(*made.sft(place / "qlora" / "out", **ONE, **QLORA)).code == 0
        watch.signals = {3: signal.SIGTERM}
        assert run(*made.sft(place / "one_to_two" / "out", **ONE, **data)).code == 143
        said = all_of(
            place,
            [
                made.sft(place / "two" / "out", **TWO, **data),
                made.sft(place / "two_to_one" / "out", **TWO, **data),
                made.sft(place / "two_to_two" / "out", **TWO, **data),
                made.sft(place / "two_to_two" / "out", "--resume", **TWO, **data),
                made.sft(place / "one_to_two" / "out", "--resume", **TWO, **data),
                made.sft(place / "poisoned" / "out", **TWO),
                made.sft(place / "lora_two" / "out", **TWO, **LORA),
                made.sft(place / "lora_two" / "out", "--resume", **TWO, **LORA),
                made.sft(place / "qlora_two" / "out", **TWO, **QLORA),
            ],
            {1: {"signals": [3]}, 2: {"signals": [3]}, 5: {"poison": [2]}, 6: {"signals": [4]}},
        )
        assert run(*made.sft(place / "two_to_one" / "out", "--resume", **ONE, **data)).code == 0
    (place / "said").write_text(said)
    return place


@pytest.fixture(scope="module")
def long_runs(made):
    """The place of runs with more to resume, and of one that its torchrun was told to end."""
    place = made.place / "long_runs"
    place.mkdir()
    terminated(made.sft(place / "terminated" / "out", **LONG), place)
    all_of(
        place,
        [
            made.pretrain(place / "rich" / "out", **RICH),
            made.pretrain(place / "rich_broken" / "out", **RICH),
            made.pretrain(place / "rich_broken" / "out", "--resume", **RICH),
            made.sft(place / "long" / "out", **LONG),
            made.sft(place / "terminated" / "out", "--resume", **LONG),
        ],
        {1: {"signals": [4]}},
    )
    return place


def terminated(words, place):
    """A run of two processes whose torchrun gets SIGTERM once it has begun to train."""
    log, out = place / "terminated.log", place / "terminated" / "out"
    process = torchrun(2, "-m", "tutelage", *words, log=log)
    while not (out / "metrics.jsonl").exists() or not metrics(out):
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    done = ended(process, log)
    assert done.code != 0
    assert time.monotonic() - started < 25, "torchrun kills after 30 s"
    assert "SIGTERM: saved at step " in done.err
    step = int(newest(out / "checkpoints").name.removeprefix("step-"))
    assert 0 < step < LONG["train_steps"], done.err
    assert metrics(out)[-1]["step"] == step


def numbers(out):
    """The tensors that runs leave and the rows of their metrics, apart from what a number of processes has
    of its own."""
    left = leavings(out)
    tensors = {
        name: value
        for name, value in left.items()
        if isinstance(value, torch.Tensor) and "random" not in name
    }
    return tensors, left["metrics"]


def close(one, other):
    (expected, rows), (found, other_rows) = numbers(one), numbers(other)
    assert expected.keys() == found.keys() and any(name.startswith(("model ", "adapter ")) for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert len(rows) == len(other_rows)
    for row, other_row in zip(rows, other_rows, strict=True):
        assert other_row == pytest.approx(row, rel=1e-4, abs=1e-5)


def test_fine_tuning_by_two_processes_is_that_by_one(runs):
    """Every weight, optimizer state and number, the text it writes, and the samples of every step."""
    close(runs / "one" / "out", runs / "two" / "out")
    written = [(runs / name / "out" / "samples.jsonl").read_text() for name in ("one", "two", "two_to_two")]
    assert written[0] == written[1] == written[2] and len(written[0].splitlines()) == 3
    codes, ids = seen(runs / "two" / "out")
    alone = json.loads((runs / "one.ids.json").read_text())
    assert codes == [0, 0]
    assert {step: sorted(names) for step, names in ids.items()} == {
        step: sorted(alone[str(step)]) for step in range(1, 7)
    }


def test_adapters_of_two_processes_stopped_and_resumed_are_those_of_one(runs):
    close(runs / "lora" / "out", runs / "lora_two" / "out")
    close(runs / "qlora" / "out", runs / "qlora_two" / "out")


def test_a_signal_to_one_process_stops_all_and_two_resumed_end_as_if_unbroken(runs):
    assert differences(leavings(runs / "two" / "out"), leavings(runs / "two_to_two" / "out")) == []
    assert seen(runs / "two_to_one" / "out")[0] == [143, 143]


@pytest.mark.parametrize("name", ["two_to_one", "one_to_two"])
def test_a_run_goes_on_with_another_number_of_processes(runs, name):
    close(runs / "one" / "out", runs / name / "out")


@pytest.mark.slow
def test_muon_averages_dropout_and_recomputation_resume_exactly(long_runs):
    assert (
        differences(leavings(long_runs / "rich" / "out"), leavings(long_runs / "rich_broken" / "out")) == []
    )


@pytest.mark.slow
def test_terminated_torchrun_saves_and_resumes_exactly(long_runs):
    assert differences(leavings(long_runs / "long" / "out"), leavings(long_runs / "terminated" / "out")) == []


def test_the_exported_model_loads_in_transformers(runs):
    tokens = torch.arange(3, 20)[None]
    answers = [
        AutoModelForCausalLM.from_pretrained(runs / name / "out" / "model")(tokens).logits
        for name in ("one", "two")
    ]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-5, atol=1e-5)


def test_a_weight_that_is_no_number_on_one_process_stops_all_and_every_row_is_named(runs, made):
    codes, ids = seen(runs / "poisoned" / "out")
    assert codes == [2, 2]
    errors = [line for line in (runs / "said").read_text().splitlines() if line.startswith("error")]
    rows = ", ".join(f"{made.chats}:{name.removeprefix('0-')}" for name in ids[2])
    assert len(errors) == 1 and ": step 2: loss nan, gradient norm nan; the weights" in errors[0]
    assert f" The step's rows: {rows}; " in errors[0] and len(ids[2]) == 4


def test_one_process_writes(runs):
    """A row a step, and the same files as one process leaves."""
    assert [row["step"] for row in metrics(runs / "two" / "out")] == list(range(1, 7))
    names = [sorted(path.name for path in (runs / name / "out").iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]
    assert len(list((runs / "two" / "out" / "tensorboard").iterdir())) == 1


def told(log, *words):
    """What ours says in a run that must fail, without torchrun's lines."""
    done = ended(torchrun(2, *words, log=log), log)
    assert done.code != 0
    ours = done.err.split("ChildFailedError")[0]
    return [line for line in ours.splitlines() if line.startswith(("error", "RuntimeError"))], done.err


def test_a_mistake_in_the_data_is_told_once(made, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n{"massages": []}\n')
    words = made.sft(tmp_path / "out", train_data_paths=f"jsonl:{bad}", **TWO)
    errors, log = told(tmp_path / "log", "-m", "tutelage", *words)
    assert len(errors) == 1 and errors[0].startswith("error: 2 bad rows in the data; "), log
    assert log.count(f"{bad}:2: no messages; ") == 1
    assert "tutelage/cli.py" not in log, "no traceback of ours"


@pytest.mark.slow
def test_a_mistake_that_every_process_finds_is_told_once(made, tmp_path):
    words = made.sft(tmp_path / "out", ckpt_paths=tmp_path / "nowhere", **TWO)
    errors, log = told(tmp_path / "log", "-m", "tutelage", *words)
    assert len(errors) == 1 and str(tmp_path / "nowhere") in errors[0], log
    assert "tutelage/cli.py" not in log, "no traceback of ours"


@pytest.mark.slow
def test_what_runs_in_one_process_is_refused_under_torchrun(made, tmp_path):
    errors, _ = told(tmp_path / "log", "-m", "tutelage", "generate", made.model, "--prompt", "hi")
    assert len(errors) == 1
    assert errors[0].endswith(": generate runs in one process; start it without torchrun")


def test_a_process_that_fails_alone_ends_all_at_once_in_its_words(tmp_path):
    started = time.monotonic()
    errors, log = told(tmp_path / "log", HERE / "parallel_failure.py")
    assert errors == ["error on rank 1: a disk of this machine is gone"], log
    assert time.monotonic() - started < 60
    assert "tutelage/cli.py" not in log, "no traceback of ours"


@pytest.mark.slow
def test_a_full_disk_is_told_once_and_the_run_goes_on_from_the_last_checkpoint(made, tmp_path):
    whole, small = tmp_path / "whole" / "out", tmp_path / "small"
    settings = {**TWO, "train_steps": 9, "save_freq": 1, "max_checkpoints": 9}
    log = tmp_path / "log"
    assert ended(torchrun(2, "-m", "tutelage", *made.sft(whole, **settings), log=log), log).code == 0
    with small_disk(small, 1500) as disk:  # a checkpoint takes 330 kB
        words = made.sft(disk / "out", **settings)
        errors, log_text = told(log, "-m", "tutelage", *words)
        assert len(errors) == 1 and errors[0].startswith("error: ") and ": the disk is full, " in errors[0], (
            log_text
        )
        assert "tutelage/cli.py" not in log_text, "no traceback of ours"
        subprocess.run(["mount", "-o", "remount,size=50000k", str(disk)], check=True)
        resumed = ended(torchrun(2, "-m", "tutelage", *words, "--resume", log=log), log)
        assert resumed.code == 0, resumed.err
        assert differences(leavings(whole), leavings(disk / "out")) == []
