"""llama2.c's files: ours are read by hand and run by its own program, and its own are the same model here."""

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from llama2c_files import logits_of, read_tokens, read_v0
from llama2c_models import logits, piece_tokenizer, tiny
from materials import llama2c_program
from tiny_data import refusal

from tutelage import cli
from tutelage.checkpoint.hf import load_config, load_model, save_model
from tutelage.checkpoint.llama2c.model import Llama2cSource, find_llama2c
from tutelage.checkpoint.llama2c.write import write_llama2c
from tutelage.checkpoint.streamed import Held
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer

SHAPES = {
    "tied": {"tied": True},
    "untied": {},
    "fewer kv heads": {"n_kv_heads": 2, "tied": True},
    "one kv head, untied": {"n_kv_heads": 1},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_written_model_computes_the_same_read_by_hand(tmp_path, shape):
    model = tiny(**SHAPES[shape])
    write_llama2c(Held(model.state_dict()), model.config, tmp_path / "model.bin")
    header, arrays = read_v0(tmp_path / "model.bin")
    assert header["vocab_size"] == (61 if model.config.tied else -61)
    tokens = [1, *range(5, 40)]
    np.testing.assert_allclose(logits_of(header, arrays, tokens), logits(model, tokens), atol=2e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_comes_back_as_it_was(tmp_path, shape):
    model = tiny(**SHAPES[shape])
    write_llama2c(Held(model.state_dict()), model.config, tmp_path / "any.bin")
    back = load_model(tmp_path / "any.bin")
    assert back.config == model.config == load_config(tmp_path / "any.bin")
    for name, parameter in model.named_parameters():
        assert torch.equal(back.get_parameter(name), parameter), name


def meta_names(model: Transformer) -> dict[str, torch.Tensor]:
    """The model's tensors as llama2.c's model.py calls and orders them, written out anew."""
    C = model.config.head_dim

    def pairs(weight: torch.Tensor) -> torch.Tensor:
        heads = weight.split(C)
        mixed = [torch.stack(head.split(C // 2), 1).flatten(0, 1) for head in heads]
        return torch.cat(mixed)

    decoder = model.model
    state = {"tok_embeddings.weight": decoder.embed_tokens.weight, "norm.weight": decoder.norm.weight}
    state["output.weight"] = model.head_weight
    for layer, block in enumerate(decoder.layers):
        at, ffn = block.self_attn, block.mlp
        own = {"attention_norm": block.input_layernorm, "ffn_norm": block.post_attention_layernorm}
        own |= {"attention.wv": at.v_proj, "attention.wo": at.o_proj}
        own |= {"feed_forward.w1": ffn.gate_proj, "feed_forward.w2": ffn.down_proj}
        own |= {"feed_forward.w3": ffn.up_proj}
        state |= {f"layers.{layer}.{name}.weight": module.weight for name, module in own.items()}
        state[f"layers.{layer}.attention.wq.weight"] = pairs(at.q_proj.weight)
        state[f"layers.{layer}.attention.wk.weight"] = pairs(at.k_proj.weight)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def export_like(state: dict[str, torch.Tensor], config: ModelConfig, version: int, group: int) -> bytes:
    """Versions 1 and 2 after llama2.c's description of them."""
    layers = range(config.n_layers)
    norms = [f"layers.{i}.{name}.weight" for name in ("attention_norm", "ffn_norm") for i in layers]
    matrices = ["tok_embeddings.weight"]
    kinds = [f"attention.w{kind}" for kind in "qkvo"] + [f"feed_forward.w{kind}" for kind in "123"]
    matrices += [f"layers.{i}.{kind}.weight" for kind in kinds for i in layers]
    matrices += [] if config.tied else ["output.weight"]
    out = struct.pack("<Ii", 0x616B3432, version)
    dims = (config.dim, config.ffn_dim, config.n_layers, config.n_heads, config.n_kv_heads)
    out += struct.pack("<7iB", *dims, config.vocab_size, config.max_positions, config.tied)
    out = (out + struct.pack("<i", group) * (version == 2)).ljust(256, b"\0")
    for name in [*norms, "norm.weight", *matrices]:
        values = state[name].numpy().astype("<f4")
        if version == 1 or "norm" in name:
            out += values.tobytes()
            continue
        values = values.reshape(-1, group)
        scale = np.abs(values).max(1, keepdims=True) / 127
        rounded = np.round(values / scale).astype(np.int8)
        state[name] = torch.from_numpy((rounded * scale).astype("f4")).view(state[name].shape)
        out += rounded.tobytes() + scale.astype("<f4").tobytes()
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("version", "group"), [(1, 1), (2, 32), (2, 16), (2, 4)])
def test_the_newer_versions_are_read_too(tmp_path, shape, version, group):
    """Of version 2 what was stored, not what was rounded; groups may reach over rows."""
    model = tiny(**SHAPES[shape], vocab_size=64)
    state = meta_names(model)
    (tmp_path / "model.bin").write_bytes(export_like(state, model.config, version, group))
    if version == 2 and model.config.tied:
        state["output.weight"] = state["tok_embeddings.weight"]
    back = load_model(tmp_path)
    assert back.config == model.config
    for name, tensor in meta_names(back).items():
        assert torch.equal(tensor, state[name]), name


@pytest.mark.parametrize(("version", "group"), [(0, 1), (1, 1), (2, 32), (2, 4)])
def test_some_rows_of_a_tensor_are_those_of_the_whole(tmp_path, version, group):
    """Large tensors are read piece by piece: from the middle of a head, and of a group."""
    model, path = tiny(**SHAPES["fewer kv heads"], vocab_size=64), tmp_path / "model.bin"
    if version:
        path.write_bytes(export_like(meta_names(model), model.config, version, group))
    else:
        write_llama2c(Held(model.state_dict()), model.config, path)
    source = Llama2cSource(path)
    for name, shape in source.shapes.items():
        whole = source.rows(name, 0, shape[0])
        for start, stop in ((3, 11), (0, 1), (shape[0] - 5, shape[0])):
            assert torch.equal(source.rows(name, start, stop), whole[start:stop]), name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_training_checkpoint_of_llama2c_is_read(tmp_path, shape, prefix):
    model = tiny(**SHAPES[shape])
    config = model.config
    args = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 61, "multiple_of": 32, "max_seq_len": 64}
    args |= {"n_kv_heads": config.n_kv_heads, "norm_eps": 1e-5, "dropout": 0.0, "hidden_dim": None}
    state = {prefix + name: tensor for name, tensor in meta_names(model).items()}
    content = {"model": state, "model_args": args, "optimizer": {"state": {}}, "iter_num": 3}
    torch.save(content, tmp_path / "ckpt.pt")
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        back = load_model(path)
        assert back.config == config
        for name, parameter in model.named_parameters():
            assert torch.equal(back.get_parameter(name), parameter), name


@pytest.mark.parametrize("shape", ["tied", "untied"])
def test_the_program_itself_writes_what_we_write(tmp_path, shape):
    """Greedily, token for token; this early run.c adds no space before a prompt and shows bytes by name."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to compile llama2.c's program with")
    program, tokenizer = tmp_path / "run", piece_tokenizer()
    subprocess.run(["gcc", "-O2", "-o", program, llama2c_program(), "-lm"], check=True, capture_output=True)
    model = tiny(vocab_size=tokenizer.size, **SHAPES[shape])
    save_model(model, model.config, tmp_path / "hf", dtype=torch.float32)
    tokenizer.save(tmp_path / "hf")
    out = tmp_path / "out"
    cli.main(["convert", str(tmp_path / "hf"), "--output", str(out), "--format", "llama2c"])
    texts, _ = read_tokens(out / "tokenizer.bin")
    prompt = [1, *tokenizer.encode("The rabbit")]
    (completion,) = generate(model, [prompt], Sampling(temperature=0), max_new_tokens=55, stop=set())
    expected = b"".join(texts[token] for token in [*prompt[1:], *completion.tokens])
    command = [program, "model.bin", "0.0", str(len(prompt) + 54), " The rabbit"]
    done = subprocess.run(command, cwd=out, capture_output=True, check=True)
    said = done.stdout.removeprefix(b"<s>\n").rpartition(b"\nachieved tok/s")[0]
    assert said == expected.removeprefix(b" ")
    assert len(set(completion.tokens)) > 5


REFUSED = {
    "rope_theta": ({"rope_theta": 5e5}, "rope_theta is 500000.0, it computes with 10000.0"),
    "eps": ({"norm_eps": 1e-6}, "rms_norm_eps is 1e-06, it computes with 1e-05"),
    "bias": ({"qkv_bias": True, "family": "qwen2"}, "attention bias is True, it computes with False"),
    "head_dim": ({"head_dim": 16}, "head_dim is 16, it computes with 8"),
    "window": ({"windows": (8, 8), "family": "mistral"}, "attention has a sliding window, it has none"),
    "norms": (
        {"qk_norm": "head", "family": "qwen3"},
        "it is no plain Llama: queries and keys are normalised",
    ),
    "caps": (
        {"logit_cap": 30.0, "scaled_embeddings": True},
        "it is no plain Llama: embeddings are scaled, logits are soft-capped",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_run_c_would_compute_otherwise_is_refused(tmp_path, case):
    changes, message = REFUSED[case]
    model = tiny(**changes)
    found = refusal(write_llama2c, Held(model.state_dict()), model.config, tmp_path / "model.bin")
    assert found == f"llama2.c's program cannot run this model: {message}"
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_llama2cs_are_refused(tmp_path):
    model, path = tiny(), tmp_path / "model.bin"
    write_llama2c(Held(model.state_dict()), model.config, path)
    whole = path.read_bytes()
    for content, message in (
        (whole[:-4], f"{path} has {len(whole) - 4:,} bytes, and its header makes it {len(whole):,}; it is"),
        (whole + b"x", f"{path} has {len(whole) + 1:,} bytes, and its header makes it {len(whole):,}; it is"),
        (b"", f"{path} is not a .bin file of llama2.c ("),
        (b"PK\x03\x04" + bytes(300), f"{path} is not a .bin file of llama2.c ("),
        (struct.pack("<7i", 32, 40, 2_000_000_000, 4, 4, 61, 64) + bytes(500), f"{path} has 528 bytes, and"),
        (
            struct.pack("<Ii", 0x616B3432, 7) + bytes(300),
            f"{path} is not a .bin file of llama2.c (version 7;",
        ),
    ):
        path.write_bytes(content)
        assert refusal(load_model, path).startswith(message)
    checkpoint = tmp_path / "ckpt.pt"
    for content in ({"model": {}}, {"model": {}, "model_args": 3}, [1]):
        torch.save(content, checkpoint)
        assert refusal(load_model, checkpoint).startswith(f"{checkpoint} is not a ckpt.pt of llama2.c, with")
    for arguments in ({}, Path()):
        torch.save({"model": {}, "model_args": arguments}, checkpoint)
        assert refusal(load_model, checkpoint).startswith(f"{checkpoint}: model_args has dim = None, wanted")


def test_a_directory_of_another_model_is_not_taken_for_llama2cs(tmp_path):
    (tmp_path / "model.bin").touch()
    assert find_llama2c(tmp_path) == tmp_path / "model.bin"
    (tmp_path / "config.json").touch()
    assert find_llama2c(tmp_path) is None
