"""GGUF, llama2.c, InstructLLaMA and adapter files made to do harm are refused soon, in little memory."""

import json
import pickle
import struct
import zipfile

import pytest
import torch
from gguf import GGUFWriter
from hostile import damaged, refusal, survives
from tiny_runs import base_model

from tutelage.checkpoint.hf import load_model, read_adapter
from tutelage.checkpoint.instructllama import write_instructllama
from tutelage.checkpoint.llama2c.tokenizer import read_tokenizer_bin
from tutelage.checkpoint.llama2c.write import write_llama2c
from tutelage.checkpoint.streamed import Held
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer, initialise_

BOMB = 192 << 20  # bytes
SHAPE = ModelConfig(
    vocab_size=61, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, ffn_dim=96, norm_eps=1e-5,
    max_positions=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    made = Transformer(SHAPE)
    initialise_(made, seed=0)
    return made


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A header and a tensor as llama.cpp writes them, enough to get past the settings."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = GGUFWriter(path, "llama")
    for name, value in {"block_count": 1, "context_length": 32, "embedding_length": 32}.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_uint32("llama.feed_forward_length", 48)
    writer.add_uint32("llama.attention.head_count", 4)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_tensor("token_embd.weight", torch.zeros(61, 32).numpy())
    writer.add_tensor("output_norm.weight", torch.zeros(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(*, magic=b"GGUF", version=3, tensors=0, settings=0, rest=b""):
    return magic + struct.pack("<IQQ", version, tensors, settings) + rest


ENTRY = text("token_embd.weight")
GGUF = {
    "empty": b"",
    "another magic": gguf(magic=b"GGML"),
    "another version": gguf(version=9),
    "big-endian": gguf(version=3 << 24),
    "2^63 settings": gguf(settings=1 << 63, rest=text("a") + struct.pack("<IB", 0, 1)),
    "2^60 tensors": gguf(tensors=1 << 60),
    "a key of 2^62 bytes": gguf(settings=1, rest=struct.pack("<Q", 1 << 62) + b"abc"),
    "a string longer than the file": gguf(
        settings=1, rest=text("k") + struct.pack("<IQ", 8, 1 << 40) + b"x" * 64
    ),
    "an array of 2^61 bytes": gguf(settings=1, rest=text("k") + struct.pack("<IIQ", 9, 0, 1 << 61) + b"x"),
    "an array of 2^40 strings": gguf(settings=1, rest=text("k") + struct.pack("<IIQ", 9, 8, 1 << 40)),
    "arrays 100,000 deep": gguf(
        settings=1, rest=text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000
    ),
    "an unknown type": gguf(settings=1, rest=text("k") + struct.pack("<I", 77)),
    "alignment 0": gguf(settings=1, rest=text("general.alignment") + struct.pack("<II", 4, 0)),
    "alignment of text": gguf(settings=1, rest=text("general.alignment") + struct.pack("<I", 8) + text("x")),
    "2^31 dimensions": gguf(tensors=1, rest=ENTRY + struct.pack("<I", (1 << 31) - 1)),
    "no dimensions": gguf(tensors=1, rest=ENTRY + struct.pack("<IIQ", 0, 0, 0)),
    "an unknown kind of weights": gguf(tensors=1, rest=ENTRY + struct.pack("<IQQIQ", 2, 32, 61, 999, 0)),
    "a tensor beyond the file": gguf(tensors=1, rest=ENTRY + struct.pack("<IQQIQ", 2, 32, 61, 0, 1 << 50)),
    "a name that is not UTF-8": gguf(tensors=1, rest=struct.pack("<Q", 2) + b"\xff\xfe"),
    "an architecture that is a number": gguf(
        settings=1, rest=text("general.architecture") + struct.pack("<II", 4, 7)
    ),
}


@pytest.mark.parametrize("kind", GGUF)
def test_gguf_files_made_to_do_harm_are_refused(tmp_path, kind):
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF[kind])
    refusal(load_model, path, names=str(path))


def llama2c(*numbers, rest=b""):
    return struct.pack("<7i", *numbers) + rest


BINARIES = {
    "empty": b"",
    "ten bytes": b"0123456789",
    "zeros": bytes(4096),
    "no heads": llama2c(32, 48, 2, 0, 0, 61, 32),
    "negative sizes": llama2c(-32, -48, -2, 4, 4, 61, 32),
    "2^31 layers": llama2c(32, 48, (1 << 31) - 1, 4, 4, 61, 32, rest=bytes(100)),
    "2^31 of everything": llama2c(*[(1 << 31) - 8] * 7),
    "groups of 0": struct.pack("<Ii7iBi", 0x616B3432, 2, 32, 48, 2, 4, 4, 61, 32, 1, 0) + bytes(300),
    "version 9": struct.pack("<Ii7iBi", 0x616B3432, 9, 32, 48, 2, 4, 4, 61, 32, 1, 64) + bytes(300),
    "cut short": llama2c(32, 48, 2, 4, 4, 61, 32, rest=bytes(1000)),
}


@pytest.mark.parametrize("kind", BINARIES)
def test_llama2c_files_made_to_do_harm_are_refused(tmp_path, kind):
    path = tmp_path / "model.bin"
    path.write_bytes(BINARIES[kind])
    refusal(load_model, path, names=str(path))


class Runs:
    """What a pickle may hold: a call of os.system."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.trace}",)


def zipped(path, entries, *, packed=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", packed) as file:
        for name, content in entries.items():
            file.writestr(f"archive/{name}", content)


def bomb(path):
    """Zeros without end in a few bytes, where torch.save keeps its pickle."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("archive/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range(BOMB >> 20):
            entry.write(bytes(1 << 20))


def torch_bomb(path):
    """Weights that are all zeros, a thousandth of their size."""
    torch.save({"tok": torch.zeros(4)}, path)
    entries = {}
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            with file.open(name, "w", force_zip64=True) as entry:
                for _ in range(BOMB >> 20 if name.endswith("data/0") else 1):
                    entry.write(bytes(1 << 20) if name.endswith("data/0") else content)


PICKLES = {
    "empty": lambda path, trace: path.write_bytes(b""),
    "a call of os.system": lambda path, trace: torch.save({"a": Runs(trace)}, path),
    "a plain pickle of it": lambda path, trace: path.write_bytes(pickle.dumps(Runs(trace))),
    "a zip of nothing": lambda path, trace: zipped(path, {"x": b""}),
    "a zip bomb": lambda path, trace: bomb(path),
    "a zip bomb of weights": lambda path, trace: torch_bomb(path),
    "a zip cut short": lambda path, trace: (
        torch.save({"a": torch.zeros(9)}, path),
        path.write_bytes(path.read_bytes()[:-30]),
    ),
    "a list": lambda path, trace: torch.save([torch.zeros(3)], path),
    "numbers for names": lambda path, trace: torch.save({3: torch.zeros(3)}, path),
    "a layer without a part": lambda path, trace: torch.save({"layers.1": torch.zeros(3)}, path),
    "names without tensors": lambda path, trace: torch.save({"lm_head.weight": "x"}, path),
    "nested lists": lambda path, trace: path.write_bytes(b"\x80\x02" + b"]" * 300_000 + b"."),
    "text": lambda path, trace: path.write_text("hello " * 100),
}


@pytest.mark.parametrize("name", ["model.pth", "ckpt.pt"])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_of_tensors_are_never_run_nor_unpacked(tmp_path, name, kind):
    (tmp_path / "params.json").write_text(json.dumps({"dim": 32, "n_layers": 2, "n_heads": 4}))
    PICKLES[kind](tmp_path / name, tmp_path / "trace")
    refusal(load_model, tmp_path / name, names=str(tmp_path / name), memory=BOMB // 2)
    assert not (tmp_path / "trace").exists()


ADAPTERS = {
    "no JSON": "{",
    "a list": "[]",
    "nested": "[" * 100_000,
    "another kind": '{"peft_type": ["LORA"]}',
    "a rank that is text": '{"peft_type": "LORA", "r": "8"}',
    "a rank of 10^12": '{"peft_type": "LORA", "r": 1000000000000}',
    "an endless pattern": '{"peft_type": "LORA", "target_modules": "(a+)+$|((((", "r": 2}',
    "targets that are numbers": '{"peft_type": "LORA", "target_modules": [1, 2]}',
    "alpha that is NaN": '{"peft_type": "LORA", "lora_alpha": NaN}',
    "dropout of 7": '{"peft_type": "LORA", "lora_dropout": 7}',
    "a pattern table that is a list": '{"peft_type": "LORA", "rank_pattern": [1]}',
    "no weights": '{"peft_type": "LORA", "r": 2}',
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_made_to_do_harm_are_refused(tmp_path, kind):
    (tmp_path / "adapter_config.json").write_text(ADAPTERS[kind])
    refusal(read_adapter, tmp_path, SHAPE, names=str(tmp_path))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", "((?:a*))+$", "(a{1,})*$"])
def test_an_adapter_with_a_pattern_that_never_ends_is_refused_soon(tmp_path, pattern):
    """(a+)+$ takes a regular expression twice as long for every letter more."""
    from safetensors.torch import save_file

    layer = "base_model.model." + "a" * 40 + "!"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 4), f"{layer}.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 2, "target_modules": pattern}
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    refusal(read_adapter, tmp_path, SHAPE, names=str(tmp_path))


VOCABULARIES = {
    "empty": b"",
    "no tokens": struct.pack("<I", 5),
    "a token of 2^32 bytes": struct.pack("<IfI", (1 << 32) - 1, 0.0, (1 << 32) - 1) + b"abc",
    "a token of none": struct.pack("<IfI", 5, 0.0, 0),
    "not UTF-8": struct.pack("<IfI", 5, 0.0, 2) + b"\xff\xfe",
    "too few": struct.pack("<I", 5) + struct.pack("<fI", 0.0, 1) * 0 + struct.pack("<fI", 0.0, 1) + b"a",
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_vocabularies_of_llama2c_made_to_do_harm_are_refused(tmp_path, kind):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(VOCABULARIES[kind])
    refusal(read_tokenizer_bin, path, names=str(path))


def written(kind, tmp_path, model, gguf_file):
    path = tmp_path / {"gguf": "model.gguf", "bin": "model.bin", "pth": "model.pth"}[kind]
    if kind == "gguf":
        path.write_bytes(gguf_file.read_bytes())
    elif kind == "bin":
        write_llama2c(Held(model.state_dict()), SHAPE, path)
    else:
        write_instructllama(Held(model.state_dict()), SHAPE, path, dtype=torch.float32)
    return path


@pytest.mark.parametrize("kind", ["gguf", "bin", "pth"])
@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 1500), marks=pytest.mark.slow)])
def test_random_damage_is_harmless(tmp_path, model, gguf_file, kind, seeds):
    path = written(kind, tmp_path, model, gguf_file)
    sound, failed = path.read_bytes(), 0
    for seed in seeds:
        path.write_bytes(damaged(sound, seed))
        failed += not survives(load_model, path)
    assert failed > len(seeds) // 10


def test_the_tiny_models_of_these_tests_load_when_sound(tmp_path, model, gguf_file):
    for kind in ("bin", "pth"):
        load_model(written(kind, tmp_path, model, gguf_file))
    assert base_model()[1] is not None
