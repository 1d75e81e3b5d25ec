"""Killed without warning, even while it saves, and resumed, a run ends as if nothing had happened."""

import pytest
from killed_runs import end, killed_at_random, killed_ever_later, start
from test_saver import descend, small_run
from tiny_runs import differences, leavings, material, run_here, stored

from tutelage.train.saver import newest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def saved_steps(directory, steps: int) -> None:
    """Steps of noise on a few weights, each saved; goes on from what lies in `directory`."""
    saver = small_run(directory)
    checkpoint = newest(directory)
    first = saver.load(checkpoint)["step"] if checkpoint else 0
    for step in range(first + 1, steps + 1):
        descend(saver)
        saver.prune()
        saver.save(step, {})
    saver.prune()


def test_a_saver_killed_at_any_change_leaves_a_whole_checkpoint(tmp_path):
    log, whole, broken = tmp_path / "log", tmp_path / "whole", tmp_path / "broken"
    assert end(start(saved_steps, whole, 12, log=log, directory=whole)) == 0, log.read_text()
    seen = [0]

    def begin(kill_at):
        checkpoint = newest(broken)
        seen.append(int(checkpoint.name.removeprefix("step-")) if checkpoint else 0)
        return start(saved_steps, broken, 12, log=log, directory=broken, kill_at=kill_at)

    kills = killed_ever_later(begin, log=log)
    assert kills > 18, "writing, sealing, renaming, removing"
    assert seen == sorted(seen), "what was saved once stays"
    assert [path.name for path in broken.iterdir()] == ["step-0000012"]
    assert differences(stored(newest(whole)), stored(newest(broken))) == []


def test_killed_at_any_change_it_makes_to_its_files_a_run_ends_as_an_unbroken_one(made, tmp_path):
    settings = {"train_steps": 8, "save_freq": 1, "val_data_paths": made.held_out, "val_freq": 4}
    settings |= {"template_config": "chatml"}
    log, whole, broken = tmp_path / "log", tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    assert end(start(run_here, made.sft(whole, **settings), log=log, directory=whole)) == 0, log.read_text()
    words = made.sft(broken, "--resume", **settings)
    kills = killed_ever_later(
        lambda kill_at: start(run_here, words, log=log, directory=broken, kill_at=kill_at), log=log, stride=3
    )
    assert kills > 6
    assert differences(leavings(whole), leavings(broken)) == []


def test_killed_at_random_moments_a_run_ends_as_an_unbroken_one(made, tmp_path):
    settings = {"train_steps": 14, "save_freq": 1, "pack_samples": True, "max_seq_len": 80}
    settings |= {"precision": "bf16", "num_loader_workers": 2, "template_config": "chatml"}
    log, whole, broken = tmp_path / "log", tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    assert end(start(run_here, made.sft(whole, **settings), log=log, directory=whole)) == 0, log.read_text()
    words = made.sft(broken, "--resume", **settings)
    killed_at_random(
        lambda: start(run_here, words, log=log, directory=broken), kills=3, within=1.5, seed=3, log=log
    )
    assert differences(leavings(whole), leavings(broken)) == []
