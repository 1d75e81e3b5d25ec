"""Whole runs: interrupted and resumed they are unbroken ones, and what they leave loads elsewhere."""

import signal

import pytest
from tiny_runs import Ended, differences, leavings, material, metrics, run, watched

from tutelage.train.saver import newest

TERM, INT = signal.SIGTERM, signal.SIGINT


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
    """12 steps of 2 x 2 micro-batches over 20 conversations: 5 an epoch, so both parts cross its border."""
    settings = {"pack_samples": packed, "precision": precision, "train_steps": 12, "max_seq_len": 80}
    settings |= {"val_data_paths": made.held_out, "val_freq": 4, "warmup_steps": 3}
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    finished(run(*made.sft(whole, **settings)))
    unbroken, watch.ids = watch.ids, {}
    for workers in (0, 2):
        words = made.sft(broken, **settings, num_loader_workers=workers)
        for first, second, name in ((4, 7, TERM), (5, 6, INT)):
            watch.ids.clear()
            watch.signals = {first: name, second: name}
            assert run(*words, "--overwrite").code == 128 + name
            assert newest(broken / "checkpoints").name == f"step-{first:07d}"
            assert run(*words, "--resume").code == 128 + name
            finished(run(*words, "--resume"))
            assert watch.ids == unbroken
            assert differences(leavings(whole), leavings(broken)) == []
    assert [row["step"] for row in metrics(whole)] == list(range(1, 13))
