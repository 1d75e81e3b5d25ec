"""Model directories: what transformers writes we read, and what we write it reads, bit for bit."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, oracle, ours, positions_of, random_tokens
from transformers import AutoModelForCausalLM, GenerationConfig

from tutelage.checkpoint import hf, source
from tutelage.checkpoint.hf import check_files, load_config, load_model, save_model
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 20_000  # several shards of the tiny models


def refusal(action, *arguments):
    with pytest.raises(UserError) as refused:
        action(*arguments)
    return str(refused.value)


@pytest.fixture
def directory(tmp_path):
    """A tiny Llama that transformers wrote, whole."""
    oracle("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("shard", ["10GB", f"{SHARD_BYTES // 1000}KB"])
@pytest.mark.parametrize("name", CONFIGS)
def test_reads_what_transformers_wrote(name, shard, tmp_path):
    theirs = oracle(name)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    check_files(tmp_path)
    assert load_config(tmp_path) == ModelConfig.from_hf(CONFIGS[name].to_dict() | {"dtype": "float32"})
    model, wanted = load_model(tmp_path), ours(theirs)
    assert model.config == wanted.config
    assert_equal_state(model.state_dict(), wanted.state_dict())


@pytest.mark.parametrize("shard_bytes", [10**9, SHARD_BYTES])
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_we_wrote_bit_for_bit(name, shard_bytes, tmp_path):
    theirs = oracle(name)
    model = ours(theirs)
    save_model(model, model.config, tmp_path, dtype=torch.float32, shard_bytes=shard_bytes)
    read, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert_equal_state(read.state_dict(), theirs.state_dict())
    tokens = random_tokens(2, 30)
    with torch.no_grad():
        assert torch.equal(read(tokens).logits, theirs(tokens).logits)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert_equal_state(again.state_dict(), model.state_dict())


def assert_equal_state(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_an_index_is_written_as_the_format_has_it(tmp_path):
    model = ours(oracle("llama"))
    save_model(model.state_dict(), model.config, tmp_path, dtype=torch.bfloat16, shard_bytes=SHARD_BYTES)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 2 * model.config.n_parameters
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    count = len(files)
    assert count > 1 and files == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for file in files:
        tensors = load_file(tmp_path / file)
        assert set(tensors) == {name for name, place in index["weight_map"].items() if place == file}
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= SHARD_BYTES or len(tensors) == 1
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)


def test_writing_over_a_model_leaves_nothing_of_it_and_everything_else(tmp_path):
    old, new = ours(oracle("llama")), ours(oracle("llama tied"))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / ".partial").mkdir()  # from a run that was killed
    (tmp_path / ".partial" / "model-00001-of-00009.safetensors").write_bytes(b"")
    save_model(old, old.config, tmp_path, dtype=torch.float32, shard_bytes=SHARD_BYTES)
    save_model(new, new.config, tmp_path, dtype=torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"),
    ]
    assert_equal_state(load_model(tmp_path).state_dict(), new.state_dict())


def test_a_write_that_stops_midway_never_leaves_a_mixture(tmp_path, monkeypatch):
    model = ours(oracle("llama"))
    save_model(model, model.config, tmp_path, dtype=torch.float32, shard_bytes=SHARD_BYTES)
    moves = iter(range(2))

    def stopping(source, target):
        if next(moves, None) is None:
            raise KeyboardInterrupt
        Path(source).rename(target)

    monkeypatch.setattr(os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, model.config, tmp_path, dtype=torch.float32, shard_bytes=SHARD_BYTES)
    assert refusal(load_model, tmp_path) == f"{tmp_path} is not a model directory: it has no config.json"
    monkeypatch.undo()
    save_model(model, model.config, tmp_path, dtype=torch.float32)
    assert_equal_state(load_model(tmp_path).state_dict(), model.state_dict())


def test_a_disk_without_room_is_noticed_before_writing(tmp_path, monkeypatch):
    model = ours(oracle("llama"))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(50_000))
    assert refusal(lambda: save_model(model, model.config, tmp_path / "new", dtype=torch.float32)) == (
        f"{tmp_path}/new: the model takes 0.08 MB and the disk has 0.05 MB left; "
        "free some or choose another place"
    )
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_up_keeps_the_model_that_was_there(tmp_path, monkeypatch):
    model = ours(oracle("llama"))
    save_model(model, model.config, tmp_path, dtype=torch.float32)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf, "write_shards", full)
    assert refusal(lambda: save_model(model, model.config, tmp_path, dtype=torch.float32)) == (
        f"{tmp_path}: the model could not be written: the disk is full"
    )
    assert not (tmp_path / ".partial").exists()
    assert_equal_state(load_model(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_are_the_bytes_that_the_safetensors_library_writes(dtype, tmp_path, monkeypatch):
    model = ours(oracle("llama"))
    monkeypatch.setattr(source, "PIECE", 100)  # elements at a time
    save_model(model, model.config, tmp_path, dtype=dtype)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_come_in_the_dtype_of_the_files_or_the_one_asked_for(stored, tmp_path):
    model = ours(oracle("llama"))
    save_model(model, model.config, tmp_path, dtype=stored)
    wanted = {name: tensor.to(stored) for name, tensor in model.state_dict().items()}
    loaded = load_model(tmp_path)
    assert loaded.config.dtype == str(stored).removeprefix("torch.")
    assert_equal_state(loaded.state_dict(), wanted)
    for asked in (torch.float32, torch.bfloat16):
        converted = load_model(tmp_path, dtype=asked)
        assert converted.config.dtype == str(asked).removeprefix("torch.")
        assert_equal_state(converted.state_dict(), {name: t.to(asked) for name, t in wanted.items()})


def test_mixed_files_come_in_the_dtype_of_most_weights(directory):
    path = directory / "model.safetensors"
    tensors = {name: t if "norm" in name else t.bfloat16() for name, t in load_file(path).items()}
    save_file(tensors, path)
    assert {tensor.dtype for tensor in load_model(directory).state_dict().values()} == {torch.bfloat16}


def test_a_single_file_may_have_another_name_and_old_buffers(directory):
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(4)
    save_file(tensors, directory / "weights.safetensors")
    assert_equal_state(load_model(directory).state_dict(), ours(oracle("llama")).state_dict())


def test_the_end_tokens_are_those_at_which_generation_stops(directory):
    assert load_config(directory).eos == (2,)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert load_config(directory).eos == (2, 7)
    (directory / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert load_config(directory).eos == (2,)


def test_the_directory_we_write_gives_the_same_predictions_when_read_in_bf16(tmp_path):
    model = ours(oracle("qwen2"))
    save_model(model, model.config, tmp_path, dtype=torch.bfloat16)
    read = load_model(tmp_path, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = random_tokens(2, 20)
    with torch.no_grad():
        logits = read.unembed(read(tokens, positions_of(tokens)))
        torch.testing.assert_close(logits, theirs(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_older_directories_with_pytorch_model_bin_are_read_and_nothing_in_them_is_run(shard, tmp_path):
    model = oracle("qwen2", torch.bfloat16)
    model.save_pretrained(tmp_path / "new", max_shard_size=shard)
    old = tmp_path / "old"
    old.mkdir()
    names = {}
    for path in sorted((tmp_path / "new").glob("*.safetensors")):
        names[path.name] = path.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(load_file(path), old / names[path.name])
    shutil.copy(tmp_path / "new" / "config.json", old)
    if len(names) > 1:
        index = json.loads((tmp_path / "new" / INDEX).read_text())
        index["weight_map"] = {key: names[file] for key, file in index["weight_map"].items()}
        (old / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded = load_model(old)
    assert_equal_state(loaded.state_dict(), load_model(tmp_path / "new").state_dict())
    assert loaded.config.dtype == "bfloat16" and (len(names) > 1) == (shard == "20KB")
    last = old / list(names.values())[-1]
    last.write_bytes(last.read_bytes()[:100])
    assert f"{last} is damaged, or holds more than tensors" in refusal(load_model, old)
