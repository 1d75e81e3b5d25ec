"""`tutelage convert --format`: what is written in any of them is the same model, verified if asked for."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from llama2c_models import piece_tokenizer, tiny
from safetensors.torch import load_file, save_file
from test_convert import tell
from tiny_chat import byte_tokenizer
from tiny_data import refusal
from tiny_models import oracle, ours
from transformers import AutoModelForCausalLM

from tutelage.checkpoint import source
from tutelage.checkpoint.hf import load_model, save_model
from tutelage.checkpoint.llama2c.write import write_checkpoint
from tutelage.checkpoint.streamed import Held
from tutelage.checkpoint.torch_file.write import write_torch
from tutelage.recipes.weights.convert import bytes_in

FORMATS = [
    "hf",
    "meta",
    "torchllms",
    "litgpt",
    "llama2c",
    "llama2c_v1",
    "llama2c_v2",
    "llama2c_pt",
    "instructllama",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """One that every format can hold, with a SentencePiece vocabulary."""
    directory = tmp_path_factory.mktemp("formats") / "model"
    made = tiny(vocab_size=piece_tokenizer().size, ffn_dim=96)
    save_model(made, made.config, directory, dtype=torch.bfloat16)
    piece_tokenizer().save(directory)
    return directory


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_the_same_model(kind, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(source, "PIECE", 300)  # elements at a time: rows of heads and groups are cut apart
    words = ["convert", model, "--output", tmp_path / "out", "--format", kind, "--verify"]
    code, out, err = tell(capsys, *words)
    assert (code, out) == (0, ""), err
    assert "verified; read back, logits differ by 0 from the model's in this dtype" in err
    back = load_model(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    if kind != "llama2c_v2":
        wanted = load_model(model).state_dict()
        assert back.keys() == wanted.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in wanted.items())
    code, _, err = tell(capsys, *words)
    assert code == 2 and "exists; give --overwrite to replace it" in err
    assert tell(capsys, *words, "--overwrite")[0] == 0


def test_int8_is_as_close_as_its_scales_allow(model, tmp_path, capsys):
    assert tell(capsys, "convert", model, "--output", tmp_path / "out", "--format", "llama2c_v2")[0] == 0
    back, wanted = (
        load_model(tmp_path / "out").state_dict(),
        load_model(model, dtype=torch.float32).state_dict(),
    )
    for name, tensor in wanted.items():
        groups = tensor.reshape(-1, 32 if tensor.ndim > 1 else tensor.numel())
        half = groups.abs().amax(1, keepdim=True) / 127 / 2 if tensor.ndim > 1 else 0.0
        assert ((back[name].reshape(groups.shape) - groups).abs() <= half + 1e-7).all(), name


def test_files_that_are_not_the_model_are_refused(model, tmp_path, capsys, monkeypatch):
    def wrong(tensors, path, around=None):
        swapped = dict(zip([t.name for t in tensors], tensors, strict=True))
        one, other = (swapped[f"layers.0.feed_forward.w{i}.weight"] for i in (1, 3))
        renamed = [
            type(t)(other.name if t is one else one.name if t is other else t.name, t.shape, t.dtype, t.rows)
            for t in tensors
        ]
        write_torch(renamed, path, around)

    monkeypatch.setattr("tutelage.checkpoint.meta.write.write_torch", wrong)
    words = ["convert", model, "--output", tmp_path / "out", "--format", "meta", "--verify"]
    code, _, err = tell(capsys, *words)
    assert code == 2
    assert "was written, but is not the model that it was made of: read back, logits differ by" in err


def test_rounding_is_explained_and_told(model, tmp_path, capsys):
    wide = tiny(vocab_size=piece_tokenizer().size)
    save_model(wide, wide.config, tmp_path / "wide", dtype=torch.float32)
    piece_tokenizer().save(tmp_path / "wide")
    words = ["convert", tmp_path / "wide", "--output", tmp_path / "out", "--precision", "bf16", "--verify"]
    code, _, err = tell(capsys, *words)
    told = re.search(
        r"differ by 0 from the model's in this dtype, by ([\d.]+) .*; (\d+) of (\d+) likeliest", err
    )
    assert code == 0 and told is not None, err
    assert 0 < float(told[1]) < 1 and 0 <= int(told[2]) <= int(told[3])


def test_shards_are_as_large_as_asked_for_and_transformers_reads_them(tmp_path, capsys):
    theirs = oracle("qwen2")
    theirs.save_pretrained(tmp_path / "model")
    byte_tokenizer().save(tmp_path / "model")
    words = [
        "convert",
        tmp_path / "model",
        "--output",
        tmp_path / "out",
        "--max_shard_size",
        "20KB",
        "--verify",
    ]
    assert tell(capsys, *words)[0] == 0
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 4 and all(file.stat().st_size < 21_500 for file in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in theirs.parameters())
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokens = torch.tensor([[1, 5, 9, 23, 4]])
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, theirs(tokens).logits)


def test_a_model_cut_for_devices_becomes_one_of_hugging_face(model, tmp_path, capsys):
    there = ["convert", model, "--output", tmp_path / "meta", "--format", "meta", "--model_parallel", 4]
    code, _, err = tell(capsys, *there, "--verify")
    assert code == 0 and len(list((tmp_path / "meta").glob("consolidated.*.pth"))) == 4, err
    back = ["convert", tmp_path / "meta", "--output", tmp_path / "hf", "--verify", "--tokenizer", model]
    assert tell(capsys, *back)[0] == 0
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_part_of_torchllms_is_merged_into_any_format(tmp_path, capsys):
    whole = ours(oracle("llama"))
    save_model(whole, whole.config, tmp_path / "base", dtype=torch.float32)
    byte_tokenizer().save(tmp_path / "base")
    (tmp_path / "run").mkdir()
    torch.save({"norm.weight": torch.full((32,), 2.0)}, tmp_path / "run" / "model_final.pth")
    words = ["convert", tmp_path / "base", tmp_path / "run" / "model_final.pth", "--output", tmp_path / "out"]
    code, _, err = tell(capsys, *words, "--verify")
    assert code == 0, err
    assert (load_model(tmp_path / "out").model.norm.weight == 2).all()
    assert tell(capsys, *words[:-1], tmp_path / "whole", "--format", "torchllms")[0] == 0
    assert (load_model(tmp_path / "whole").model.norm.weight == 2).all()
    code, _, err = tell(capsys, *words[:-1], tmp_path / "peft", "--format", "peft")
    assert code == 2 and "holds weights in full and no adapter; another format takes them in" in err


@pytest.mark.parametrize(("value", "precision"), [(float("nan"), "fp32"), (1e6, "fp16")])
def test_weights_that_a_dtype_cannot_hold_are_not_written(value, precision, tmp_path, capsys):
    made = tiny(vocab_size=piece_tokenizer().size)
    save_model(made, made.config, tmp_path / "model", dtype=torch.float32)
    path = tmp_path / "model" / "model.safetensors"
    state = load_file(path)
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(state, path, metadata={"format": "pt"})
    piece_tokenizer().save(tmp_path / "model")
    words = ["convert", tmp_path / "model", "--output", tmp_path / "out", "--precision", precision]
    code, _, err = tell(capsys, *words)
    assert code == 2 and "model.layers.1.mlp.up_proj.weight has NaN or infinity among its weights" in err
    assert not list((tmp_path / "out").glob("*.safetensors")) and not (tmp_path / "out" / ".partial").exists()


@pytest.mark.parametrize(
    ("size", "expected"),
    [("5GB", 5 * 10**9), ("2GiB", 2**31), ("500 MB", 5 * 10**8), ("1.5KB", 1500), ("7", 7)],
)
def test_sizes_are_read_as_transformers_reads_them(size, expected):
    assert bytes_in(size) == expected


@pytest.mark.parametrize("size", ["", "GB", "-1GB", "5TB", "0MB", "five"])
def test_what_is_no_size_is_none(size):
    assert bytes_in(size) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_shard_size", "large"], "max_shard_size is 'large', wanted a size like 5GB, 500MB or 2GiB"),
        (["--model_parallel", "0", "--format", "meta"], "model_parallel is 0, wanted a number from 1"),
        (["--model_parallel", "2"], "model_parallel cuts files of format meta, and format is hf"),
        (["--format", "llama2c_v2", "--precision", "bf16"], "files of format llama2c_v2 hold int8 and fp32"),
        (["--format", "peft", "--verify"], "verify compares models, and format peft is an adapter"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words, message, capsys, tmp_path):
    code, _, err = tell(capsys, "convert", "model", "--output", tmp_path, *words)
    assert code == 2 and message in err


def test_a_family_that_a_format_cannot_hold_is_refused_before_anything_is_written(tmp_path, capsys):
    oracle("qwen2").save_pretrained(tmp_path / "model")
    byte_tokenizer().save(tmp_path / "model")
    for kind in ("meta", "llama2c", "llama2c_pt", "instructllama"):
        words = ["convert", tmp_path / "model", "--output", tmp_path / kind, "--format", kind]
        code, _, err = tell(capsys, *words)
        assert code == 2 and "cannot run this model: " in err and "Traceback" not in err
        assert not (tmp_path / kind).exists()


def test_verifying_over_the_model_itself_is_refused(model, capsys):
    code, _, err = tell(capsys, "convert", model, "--output", model, "--verify", "--overwrite")
    assert code == 2 and "verify compares with the model as it was, and output replaces that" in err


@dataclass
class ModelArgs:
    """As a fork of llama2.c pickles its own."""

    dim: int = 32
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    vocab_size: int = 61
    max_seq_len: int = 64
    norm_eps: float = 1e-5


def test_a_checkpoint_of_llama2c_may_be_compiled_and_its_arguments_an_object(tmp_path):
    made = tiny(n_kv_heads=2)
    write_checkpoint(Held(made.state_dict()), made.config, tmp_path, dtype=torch.float32)
    content = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    state = {f"_orig_mod.{name}": tensor for name, tensor in content["model"].items()}
    torch.save({"model": state, "model_args": ModelArgs(), "config": ModelArgs}, tmp_path / "ckpt.pt")
    back = load_model(tmp_path)
    assert all(torch.equal(back.state_dict()[name], tensor) for name, tensor in made.state_dict().items())
    torch.save({"model": state, "model_args": ModelArgs(dim=0)}, tmp_path / "ckpt.pt")
    assert "model_args has dim = 0, wanted a whole number from 1" in refusal(load_model, tmp_path)
