"""Checkpoints: everything comes back, torn ones are passed over, and a full disk harms none."""

import itertools
import json
import os
import pickletools
import shutil

import pytest
import torch
from small_disk import small_disk
from test_objectives import ragged, tiny
from tiny_data import refusal
from tiny_runs import differences, stored
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from tutelage.data.pack import collate
from tutelage.objectives.base import Loss
from tutelage.objectives.language import NextToken
from tutelage.train import optim
from tutelage.train.saver import Saver, complete, newest
from tutelage.train.trainer import Trainer

STATE = {"data": {"epoch": 2, "step": 5, "fingerprint": {"data": "d41d8cd9", "seed": 7, "packing": True}}}


def small_run(directory, *, width: int = 4, dtype: torch.dtype = torch.float32, keep: int = 1):
    """A matrix and a bias that have been trained for a step, and their saver."""
    torch.manual_seed(width)
    model = nn.Linear(width, 3).to(dtype)
    weights = dict(model.named_parameters())
    optimizer = optim.adamw(weights, lr=0.1, betas=(0.9, 0.999), eps=1e-8, wd=0.1)
    optim.allocate_state(optimizer)
    saver = Saver(directory, weights, optimizer, keep=keep)
    descend(saver)
    return saver


def descend(saver: Saver) -> None:
    for p in saver.parameters.values():
        p.grad = torch.rand_like(p)
    saver.optimizer.step()


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_everything_comes_back(tmp_path):
    saver = small_run(tmp_path)
    path = saver.save(7, STATE)
    before, drawn = saver._tensors(), torch.rand(5)
    before = {name: value.clone() for name, value in before.items() if not name.startswith("random")}
    other = small_run(tmp_path)
    descend(other)
    assert other.load(path) == {"step": 7, **STATE}
    after = {name: value for name, value in other._tensors().items() if not name.startswith("random")}
    assert sorted(after) == sorted(
        f"{kind}{p}{key}"
        for p in ("weight", "bias")
        for kind, key in (
            ("model.", ""),
            *(("optimizer.", f".{k}") for k in ("step", "exp_avg", "exp_avg_sq")),
        )
    )
    assert differences(before, after) == []
    assert torch.equal(torch.rand(5), drawn), "what chance gives next"
    assert float(after["optimizer.bias.step"]) == 1


def test_a_run_that_draws_at_random_goes_on_as_it_would_have(tmp_path):
    """Noise on the loss, as dropout would make: the weights depend on every number drawn."""

    def noisy(model, batch):
        loss = NextToken()(model, batch)
        return Loss(loss.total * torch.rand(()), loss.weight)

    def part(first, last, checkpoint=None):
        torch.manual_seed(0)
        model = tiny()
        weights = dict(model.named_parameters())
        optimizer = optim.adamw(weights, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, wd=0.1)
        optim.allocate_state(optimizer)
        saver = Saver(tmp_path / f"{first}-{last}", weights, optimizer)
        source = itertools.repeat([collate([ragged([9, 5])], 16)] * 2)
        schedule = optim.schedule("cosine", steps=6, warmup=2)
        trainer = Trainer(model, noisy, source, optimizer, schedule, steps=last)
        if checkpoint is not None:
            trainer.step = saver.load(checkpoint)["step"]
        assert trainer.step == first
        trainer.fit()
        return saver.save(last, {})

    whole, parts = part(0, 6), part(3, 6, part(0, 3))
    assert len(stored(whole)) == 1 + 4 * len(dict(tiny().named_parameters()))
    assert differences(stored(whole), stored(parts)) == []


@pytest.mark.parametrize("harm", ["no manifest", "half a manifest", "a file lost", "a file cut"])
def test_a_torn_checkpoint_is_passed_over(tmp_path, harm):
    saver = small_run(tmp_path, keep=3)
    kept = saver.save(9, STATE)
    torn = saver.save(10, STATE)
    manifest = torn / "MANIFEST.json"
    assert newest(tmp_path) == torn
    assert json.loads(manifest.read_text()).keys() == {*names(torn)} - {"MANIFEST.json"}
    if harm == "no manifest":
        manifest.unlink()
    elif harm == "half a manifest":
        manifest.write_text(manifest.read_text()[:20])
    else:
        tensors = max(torn.iterdir(), key=lambda path: path.stat().st_size)
        whole = tensors.read_bytes()
        tensors.unlink() if harm == "a file lost" else tensors.write_bytes(whole[:-1])
    assert newest(tmp_path) == kept
    assert saver.load(kept)["step"] == 9
    again = saver.save(10, STATE)
    assert again == torn and newest(tmp_path) == torn, "the next save puts a whole one in its place"


def test_what_a_kill_left_half_written_or_half_removed_is_never_taken_and_goes(tmp_path):
    saver = small_run(tmp_path)
    assert newest(tmp_path / "nowhere") is None
    kept = saver.save(3, STATE)
    for name in (
        ".writing-step-0000004",
        ".deleting-step-0000002",
        "step-4",
        "step-last",
        "step-0000005.bak",
    ):
        shutil.copytree(kept, tmp_path / name)
    assert newest(tmp_path) == kept
    saver.save(4, STATE)
    small_run(tmp_path).prune()
    assert names(tmp_path) == ["step-0000004", "step-0000005.bak", "step-4", "step-last"]


def test_the_newest_is_the_highest_step_and_pruning_goes_by_it_too(tmp_path):
    saver = small_run(tmp_path, keep=2)
    for step in (9_999_999, 10_000_000, 12):  # by name step-10000000 comes before step-9999999
        saver.save(step, STATE)
    assert [path.name for path in complete(tmp_path)] == ["step-0000012", "step-9999999", "step-10000000"]
    saver.prune()
    assert [path.name for path in complete(tmp_path)] == ["step-9999999", "step-10000000"]
    assert newest(tmp_path).name == "step-10000000"
    everything = small_run(tmp_path, keep=0)
    everything.save(10_000_001, STATE)
    everything.prune()
    assert len(complete(tmp_path)) == 3


def test_the_checkpoint_before_stays_until_a_step_has_proved_the_new_one(tmp_path):
    saver = small_run(tmp_path)
    for step in (1, 2):
        saver.prune()
        saver.save(step, STATE)
    assert names(tmp_path) == ["step-0000001", "step-0000002"]
    saver.prune()
    assert names(tmp_path) == ["step-0000002"]


def test_saving_a_step_again_changes_nothing(tmp_path):
    saver = small_run(tmp_path)
    path = saver.save(3, STATE)
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()}
    assert saver.save(3, STATE) == path
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.iterdir()} == before


def test_our_own_values_are_json_and_the_only_pickle_is_torchs_table_of_contents(tmp_path):
    path = small_run(tmp_path).save(3, STATE)
    assert names(path) == [".metadata", "MANIFEST.json", "__0_0.distcp", "state.json"]
    assert json.loads((path / "state.json").read_text()) == {"step": 3, **STATE}
    globals_ = [
        argument
        for opcode, argument, _ in pickletools.genops((path / ".metadata").read_bytes())
        if opcode.name == "GLOBAL" and "tutelage" in argument
    ]
    assert globals_ == []


def test_every_byte_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events, sync, rename = [], os.fsync, os.rename

    def synced(descriptor):
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def renamed(source, target):
        events.append(("rename", str(source)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    path = small_run(tmp_path).save(3, STATE)
    aside = tmp_path / f".writing-{path.name}"
    cut = events.index(("rename", str(aside)))
    assert {("sync", str(aside / name)) for name in names(path)} | {("sync", str(aside))} <= {*events[:cut]}
    manifest = events.index(("sync", str(aside / "MANIFEST.json")))
    assert events.index(("sync", str(aside / "__0_0.distcp"))) < manifest
    assert ("sync", str(tmp_path)) in events[cut:]


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = small_run(tmp_path).save(3, STATE)
    end = "; resume with the settings in the run's config.yaml, or start anew with --overwrite"
    says = f"{path} holds another model or optimizer than this run's: "
    assert refusal(small_run(tmp_path, width=5).load, path) == (
        f"{says}model.weight is 3x4 torch.float32 there and 3x5 torch.float32 here, "
        f"and 2 more tensors differ{end}"
    )
    half = refusal(small_run(tmp_path, dtype=torch.bfloat16).load, path)
    assert half.startswith(f"{says}model.bias is 3 torch.float32 there and 3 torch.bfloat16 here, and 5 more")
    assert len(refusal(small_run(tmp_path, dtype=torch.bfloat16).load, path).splitlines()) == 1
    saver = small_run(tmp_path)
    saver.optimizer.state.pop(saver.parameters["bias"])
    assert refusal(saver.load, path) == (
        f"{says}optimizer.bias.exp_avg is 3 torch.float32 there and missing here, "
        f"and 2 more tensors differ{end}"
    )


def test_a_refused_checkpoint_changes_nothing(tmp_path):
    path = small_run(tmp_path).save(3, STATE)
    saver = small_run(tmp_path, width=5)
    before = {name: value.clone() for name, value in saver._tensors().items()}
    refusal(saver.load, path)
    assert differences(before, saver._tensors()) == []


@pytest.mark.parametrize("free", [0, 30, 90])
def test_a_full_disk_is_told_and_keeps_the_last_checkpoint(tmp_path, free):
    """Free kilobytes: none, not enough for the tensors, enough for some of the files."""
    with small_disk(tmp_path / "disk", 400) as disk:
        saver = small_run(disk / "checkpoints", width=2000)  # 24 kB of weights, 48 kB of optimizer
        last = saver.save(8, STATE)
        before = stored(last)
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        os.truncate(filler, filler.stat().st_size - free * 1024)
        assert refusal(saver.save, 9, STATE) == (
            f"{disk / 'checkpoints'}: the disk is full, the checkpoint of step 9 could not be written; "
            "the last checkpoint, step-0000008, is whole. "
            "Free some space and run the same command with --resume"
        )
        assert names(disk / "checkpoints") == ["step-0000008"]
        assert differences(before, stored(last)) == []
        filler.unlink()
        assert newest(saver.save(9, STATE).parent).name == "step-0000009"


def test_a_full_disk_before_any_checkpoint_says_that_there_is_none(tmp_path):
    with small_disk(tmp_path / "disk", 40) as disk:
        message = refusal(small_run(disk / "checkpoints", width=2000).save, 1, STATE)
        assert "could not be written; there is no checkpoint before it. Free some space" in message


def test_ctrl_c_in_the_middle_of_saving_stays_ctrl_c(tmp_path, monkeypatch):
    saver = small_run(tmp_path)
    saver.save(1, STATE)

    def pressed(writer, plan, planner):
        raise KeyboardInterrupt

    monkeypatch.setattr(FileSystemWriter, "write_data", pressed)
    with pytest.raises(KeyboardInterrupt):
        saver.save(2, STATE)
    assert newest(tmp_path).name == "step-0000001"


def test_another_failure_is_not_called_a_full_disk(tmp_path):
    saver = small_run(tmp_path)
    saver.save(1, STATE)
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver.save(2, {"data": object()})
    assert newest(tmp_path).name == "step-0000001"
    (tmp_path / "file").write_text("")
    saver.directory = tmp_path / "file"
    with pytest.raises(NotADirectoryError):
        saver.save(2, STATE)


def test_a_checkpoint_whose_bytes_have_rotted_is_named(tmp_path):
    saver = small_run(tmp_path)
    path = saver.save(1, STATE)
    file = path / "__0_0.distcp"
    file.write_bytes(bytes(file.stat().st_size))
    assert refusal(saver.load, path) == (
        f"{path} is damaged and cannot be read; remove it and run the same command with --resume, "
        "which goes on from the one before if there is one"
    )
