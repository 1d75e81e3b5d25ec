"""What stops a run halfway, numbers that are none and a full disk, costs it no good checkpoint."""

import shutil

import pytest
from small_disk import small_disk
from tiny_runs import differences, leavings, material, metrics, refused, run, watched

from tutelage.train.saver import complete, newest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def test_a_poisoned_weight_stops_the_first_step_and_names_its_rows(made, tmp_path, monkeypatch):
    watch, out = watched(monkeypatch), tmp_path / "out"
    watch.poison = {1}
    message = refused(run(*made.sft(out)))
    path = made.chats
    rows = ", ".join(f"{path}:{name.removeprefix('0-')}" for name in watch.ids[1])
    assert message == (
        f"step 1: loss nan, gradient norm nan; the weights were not touched. The step's rows: {rows}; "
        "there is no good checkpoint before it. "
        "Look at these rows with `tutelage data show`; otherwise lower --lr or raise --warmup_steps"
    )
    assert not (out / "model").exists() and metrics(out) == []


def test_after_a_loss_that_is_no_number_the_run_goes_on_from_the_last_good_checkpoint(
    made, tmp_path, monkeypatch
):
    watch = watched(monkeypatch)
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    settings = {"train_steps": 6, "save_freq": 2}
    assert run(*made.sft(whole, **settings)).code == 0
    watch.poison = {4}
    message = refused(run(*made.sft(broken, **settings)))
    assert message.startswith("step 4: loss nan, gradient norm nan; ")
    assert f"; the last good checkpoint is {broken / 'checkpoints' / 'step-0000002'}. " in message
    assert run(*made.sft(broken, **settings), "--resume").code == 0
    assert differences(leavings(whole), leavings(broken)) == []


def test_a_checkpoint_of_weights_that_have_just_exploded_does_not_cost_the_good_one(made, tmp_path):
    """lr 1e30: step 4 still has a loss, its update has not; step 5 finds out."""
    out = tmp_path / "out"
    assert run(*made.sft(out, train_steps=3)).code == 0
    settings = {"train_steps": 9, "save_freq": 1, "lr": 1e30}
    message = refused(run(*made.sft(out, **settings), "--resume"))
    good, spoiled = (out / "checkpoints" / f"step-000000{step}" for step in (3, 4))
    assert message.startswith("step 5: loss ") and ", gradient norm nan; the weights were not" in message
    assert (
        f"; the last good checkpoint is {good}; {spoiled} was made just before and may be spoiled: "
        in message
    )
    assert complete(out / "checkpoints") == [good, spoiled]
    shutil.rmtree(spoiled)
    assert run(*made.sft(out, train_steps=5, save_freq=1), "--resume").code == 0
    assert [path.name for path in complete(out / "checkpoints")] == ["step-0000005"]


def test_a_model_that_the_last_step_spoiled_is_not_handed_over(made, tmp_path):
    out = tmp_path / "out"
    message = refused(run(*made.sft(out, train_steps=1, lr=1e38)))
    assert message == (
        f"the trained model gives logits that are no numbers, so {out / 'model'} was not written; "
        "lower --lr or raise --warmup_steps and start anew with --overwrite"
    )
    assert not (out / "model").exists()


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_from_it(made, tmp_path):
    whole, small = tmp_path / "whole" / "out", tmp_path / "small"
    settings = {"train_steps": 9, "save_freq": 1, "max_checkpoints": 9}
    assert run(*made.sft(whole, **settings)).code == 0
    with small_disk(small, 1500) as disk:  # a checkpoint takes 330 kB
        out = disk / "out"
        message = refused(run(*made.sft(out, **settings)))
        kept = newest(out / "checkpoints")
        step = int(kept.name.removeprefix("step-"))
        assert 1 < step < 9
        assert message == (
            f"{out / 'checkpoints'}: the disk is full, the checkpoint of step {step + 1} could not be "
            f"written; the last checkpoint, {kept.name}, is whole. "
            "Free some space and run the same command with --resume"
        )
        moved = shutil.copytree(out, tmp_path / "moved" / "out")
    assert run(*made.sft(moved, **settings), "--resume").code == 0
    assert differences(leavings(whole), leavings(moved)) == []


@pytest.mark.parametrize("kilobytes", [4, 8, 12, 16, 20, 24, 28])
def test_a_disk_too_full_for_anything_else_is_told_too(made, tmp_path, kilobytes):
    """Directory, config, numbers, events, in that order: nothing ends in a traceback."""
    with small_disk(tmp_path / "small", kilobytes) as disk:
        message = refused(run(*made.sft(disk / "out", train_steps=200, save_freq=1000)))
    assert "the disk is full" in message and message.count("\n") == 0
