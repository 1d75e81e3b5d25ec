"""Files of torch.save: read without loading or running anything, and written so that torch reads them."""

import contextlib
import io
import os
import pickle
import random
import sys
import tracemalloc
import zipfile
from dataclasses import dataclass

import pytest
import torch
from tiny_data import refusal

from tutelage.checkpoint import source
from tutelage.checkpoint.streamed import Held, streamed
from tutelage.checkpoint.torch_file.read import Inert, read_state, read_tensors, read_torch
from tutelage.checkpoint.torch_file.write import write_torch
from tutelage.errors import UserError

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


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\x10tQ"
ODD = (b"a\nb\n", b"collections\nOrderedDict\n", b"torch._utils\n_rebuild_parameter\n", b"os\nsystem\n")


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


def _with_pickle(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + program + b".")
        archive.writestr("a/data/0", bytes(64))
    return path


def _word(text):
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _tensor(storage=STORAGE, shape=b"K\x10\x85", stride=b"K\1\x85"):
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + stride + b"\x89}tR"


_MADE_UP = {
    "another count": _tensor(STORAGE + b"}" + _word("count") + b"J\xff\xff\xff\x7fsb"),
    "another dtype": _tensor(STORAGE + b"}" + _word("dtype") + _word("x") + b"sb"),
    "no storage": _tensor(b"ca\nb\n)R}" + _word("count") + b"K\x10sb"),
    "a fraction of rows": _tensor(shape=b"G\x40\x10\0\0\0\0\0\0\x85"),
    "true rows": _tensor(shape=b"\x88\x85"),
    "a long empty axis": _tensor(shape=b"\x8a\x08" + bytes(7) + b"\x40K\0\x86", stride=b"K\1K\1\x86"),
    "numbers that repeat": _tensor(shape=b"J\0\0\0\x40\x85", stride=b"K\0\x85"),
    "another function": b"ctorch._utils\n_rebuild_parameter\nN}" + _word("__defaults__") + b"K\1\x85s\x86b",
    "a set": b"\x8f",
}


def test_a_plain_pickle_of_ours_is_read(tmp_path):
    found = read_tensors(_with_pickle(tmp_path / "a.pth", b"}" + _word("w") + _tensor() + b"s"))
    assert torch.equal(found["w"], torch.zeros(16))


@pytest.mark.parametrize("made_up", _MADE_UP)
def test_pickles_that_no_torch_writes_are_refused(made_up, tmp_path):
    path = _with_pickle(tmp_path / "a.pth", b"}" + _word("w") + _MADE_UP[made_up] + b"s")
    assert "is damaged" in refusal(read_tensors, path)


def test_a_pickle_that_counts_far_or_hashes_long_takes_nothing(tmp_path):
    """The first would have a list of 2^30 places made; each tuple of the second is two of the last."""
    tracemalloc.start()
    assert read_state(_with_pickle(tmp_path / "a.pth", b"}r\0\0\0\x20")) == {}
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    deep = b"}K\1" + b"q\1h\1\x86" * 60 + b"K\1s"
    assert "is damaged" in refusal(read_state, _with_pickle(tmp_path / "b.pth", deep))


def test_attributes_that_a_pickle_gives_a_dict_are_left_out(tmp_path):
    hidden = b"ccollections\nOrderedDict\n)R" + _word("w") + _tensor() + b"s"
    hidden += b"}" + _word("items") + b"ccollections\nOrderedDict\nsb"
    assert list(read_state(_with_pickle(tmp_path / "a.pth", hidden))) == ["w"]


def test_no_program_for_the_unpickler_has_anything_called(tmp_path):
    """Random instructions, most of them well-formed, while Python tells of all that is done."""
    done, draw, path = [], random.Random(0), tmp_path / "a.pth"
    watched = ("import", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "code.")
    watching = True

    def told(event, arguments):
        if watching and event.startswith(watched):
            done.append((event, arguments))

    pieces = [b"c" + name for name in ODD] + [_tensor(), STORAGE, b"}", b"]", b")", b"(", b"N", b"K\1"]
    pieces += [_word(word) for word in ("__class__", "__reduce__", "items", "place", "ls", "x")]
    pieces += [
        bytes([code]) for code in b"RRRbbbot1setuadl0q\x01h\x01\x81\x81\x85\x86\x87\x92\x93\x94Q2\x8f\x90"
    ]
    read_state(_with_pickle(path, b"}"))  # what is imported at the first
    sys.addaudithook(told)  # for ever
    for _ in range(600):
        program = b"".join(draw.choices(pieces, k=draw.randint(2, 14)))
        _with_pickle(path, program)
        with contextlib.suppress(UserError):
            for tensor in read_state(path).values():
                tensor.whole()
    watching = False
    assert not [event for event in done if event[0] != "os.listdir"], done[:5]
