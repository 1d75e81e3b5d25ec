"""Files of torch.save: read without loading or running anything, and written so that torch reads them."""

import io
import os
import pickle
import zipfile
from dataclasses import dataclass

import pytest
import torch
from tiny_data import refusal

from tutelage.checkpoint import source
from tutelage.checkpoint.streamed import Held, streamed
from tutelage.checkpoint.torch_file import Inert, read_state, read_tensors, read_torch
from tutelage.checkpoint.torch_file_write import write_torch

WIDE = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "plain": WIDE,
    "turned": WIDE.t(),
    "some": WIDE[2:4],
    "columns": WIDE[:, 1:5],
    "vector": torch.arange(5.0),
    "narrow": WIDE.bfloat16(),
    "half": WIDE.half(),
    "counted": torch.arange(7),
    "three": torch.randn(2, 3, 4),
    "none": torch.zeros(0, 3),
}


@dataclass
class ModelArgs:
    dim: int = 8
    n_layers: int = 2


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_that_torch_reads(zipped, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    found = read_state(path)
    for name, tensor in torch.load(path, weights_only=True).items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(found[name].whole(), tensor), name
        last = min(2, len(tensor))
        assert torch.equal(found[name].rows(last // 2, last), tensor[last // 2 : last]), name
    assert {name: tensor.shape for name, tensor in read_tensors(path).items()} == {
        name: tensor.shape for name, tensor in TENSORS.items()
    }


def test_parameters_and_scalars_are_read(tmp_path):
    torch.save({"weight": torch.nn.Parameter(WIDE), "scalar": torch.tensor(3.0)}, tmp_path / "a.pth")
    found = read_state(tmp_path / "a.pth")
    assert torch.equal(found["weight"].whole(), WIDE) and float(found["scalar"].whole()) == 3.0


def test_nothing_is_run_and_other_classes_are_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": WIDE}, "model_args": ModelArgs(), "bad": Runs()}, "a.pt")
    found = read_torch(tmp_path / "a.pt")
    assert isinstance(found["bad"], Inert) and not (tmp_path / "ran").exists()
    assert vars(found["model_args"]) == {"dim": 8, "n_layers": 2}
    assert "holds a dict as 'model', not tensors by name" in refusal(read_state, tmp_path / "a.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_written_files_are_read_by_torch_without_running_and_mapped(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "PIECE", 10)  # elements at a time
    state = {name: TENSORS[name].to(dtype).contiguous() for name in ("plain", "vector", "three")}
    path = tmp_path / "a.pth"
    write_torch(streamed(Held(state), list(state), dtype), path, {"args": {"dim": 3}})
    found = torch.load(path, weights_only=True, mmap=True)
    assert found["args"] == {"dim": 3} and list(found["model"]) == list(state)
    for name, tensor in state.items():
        assert torch.equal(found["model"][name], tensor) and found["model"][name].dtype == dtype
        assert found["model"][name].data_ptr() % 64 == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # every sum of bytes is right
    assert torch.equal(torch.load(path)["model"]["three"], state["three"])


def _rewritten(path, change, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def _header_of_numbers(path, at, value):
    """Set two bytes in the header of the record of numbers, which the list at the end says too."""
    raw = bytearray(path.read_bytes())
    place = raw.index(b"a/data/0") - 30
    raw[place + at : place + at + 2] = value
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: _header_of_numbers(path, 26, b"\x09\x00"), "the header of 0 is not that of its record"),
        (lambda path: _header_of_numbers(path, 28, b"\xff\xff"), "the header of 0 is not that of its record"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "is damaged, or holds more than tensors"),
        (lambda path: path.write_bytes(b""), "is damaged, or holds more than tensors"),
        (lambda path: path.write_bytes(os.urandom(500)), "is damaged, or holds more than tensors"),
        (
            lambda path: _rewritten(path, lambda r: None, zipfile.ZIP_DEFLATED),
            "is compressed, as torch.save never",
        ),
        (
            lambda path: _rewritten(path, lambda r: r.update({"a/data/0": r["a/data/0"][:-4]})),
            "a tensor is larger than the numbers there are for it",
        ),
        (lambda path: _rewritten(path, lambda r: r.update({"a/byteorder": b"big"})), "of another byte order"),
        (
            lambda path: _rewritten(path, lambda r: r.pop("a/data.pkl")),
            "is damaged, or holds more than tensors",
        ),
        (lambda path: torch.save([WIDE], path), "holds a list, not tensors by name"),
        (lambda path: torch.save({3: WIDE}, path), "holds a tensor as 3, not tensors by name"),
        (
            lambda path: torch.save(Runs(), path, _use_new_zipfile_serialization=False),
            "is damaged, or holds more",
        ),
    ],
)
def test_damaged_and_foreign_files_are_refused(damage, words, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": WIDE}, path)
    damage(path)
    assert words in refusal(read_state, path)
    assert not os.path.exists("ran")


class _Far:
    """A tensor that claims more than its storage holds, or to lie elsewhere."""

    def __init__(self, shape, offset=0):
        self.shape, self.offset = shape, offset

    def __reduce__(self):
        stride = tuple(8**axis for axis in range(len(self.shape)))[::-1]
        return torch._utils._rebuild_tensor_v2, (_Storage(), self.offset, self.shape, stride, False, {})


class _Storage:
    pass


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return ("storage", torch.FloatStorage, "0", "cpu", 48) if isinstance(obj, _Storage) else None


@pytest.mark.parametrize("tensor", [_Far((7, 8)), _Far((6, 8), 1), _Far((6, 8), -1), _Far((-1, 8))])
def test_tensors_reach_no_further_than_their_numbers(tensor, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"w": WIDE}, path)

    def change(records):
        made = io.BytesIO()
        _Pickler(made, 2).dump({"w": tensor})
        records["a/data.pkl"] = made.getvalue()

    _rewritten(path, change)
    assert "a tensor reaches past the numbers there are for it" in refusal(read_state, path)
