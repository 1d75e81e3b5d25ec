"""Run directories that were tampered with or damaged: refused in words, and nothing in them is run."""

import json
import os
import pickle

import pytest
import torch
from hostile import refusal

from tutelage.report.metrics import MetricsFile
from tutelage.train.saver import Saver, check_fits, complete


class Runs:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def saver_of(directory):
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    return Saver(directory, {"w": parameter}, torch.optim.SGD([parameter], lr=0.1))


CHECKPOINTS = {
    "a file swapped": lambda d: next(d.glob("*.distcp")).write_bytes(
        bytes(next(d.glob("*.distcp")).stat().st_size)
    ),
    "a pickle in its place": lambda d: (d / ".metadata").write_bytes(pickle.dumps(Runs())),
    "metadata of zeros": lambda d: (d / ".metadata").write_bytes(bytes((d / ".metadata").stat().st_size)),
    "a state that is no JSON": lambda d: (d / "state.json").write_text("{"),
    "a state that is a list": lambda d: (d / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_that_were_tampered_with_are_refused(tmp_path, kind):
    saver = saver_of(tmp_path)
    place = saver.save(3, {"x": 1})
    CHECKPOINTS[kind](place)
    refusal(saver.load, place, names=str(place))


def test_a_checkpoint_runs_nothing_when_it_is_read(tmp_path):
    """torch.distributed.checkpoint reads its list with pickle.load."""
    saver = saver_of(tmp_path)
    place, trace = saver.save(3, {"x": 1}), tmp_path / "trace"
    call = f"cos\nsystem\n(Vtouch {trace}\ntR.".encode()
    for content in (call, b"ctorch.distributed.checkpoint.metadata\nos.system\n" + call[10:]):
        (place / ".metadata").write_bytes(content)
        refusal(saver.load, place, names=str(place))
        refusal(check_fits, place, {}, names=str(place))
    assert not trace.exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", "7", '{"state.json": "x"}', "[" * 100_000, '{"../../etc/passwd": 1}']
)
def test_a_damaged_list_of_files_makes_a_checkpoint_none(tmp_path, content):
    place = saver_of(tmp_path).save(3, {"x": 1})
    (place / "MANIFEST.json").write_text(content)
    assert complete(tmp_path) == []


def test_damaged_metrics_lose_their_damaged_lines_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1}\n[]\n7\n{"step": "x"}\n{"a": 1}\n\xff\xfe\n' + b"[" * 100_000 + b'\n{"step": 2}\n'
    )
    MetricsFile(path, step=9).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]
