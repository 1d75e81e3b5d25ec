"""Model directories that cannot be loaded: everything wrong is named at once, in plain words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import oracle

from tutelage.checkpoint.hf import check_files, load_config, load_model
from tutelage.errors import UserError

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


@pytest.fixture
def sharded(tmp_path):
    """The same in several shards."""
    oracle("llama").save_pretrained(tmp_path / "llama", max_shard_size=f"{SHARD_BYTES // 1000}KB")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 2
    return tmp_path / "llama"


def change_config(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_stored_head_of_a_tied_model_must_be_its_embedding(tmp_path):
    oracle("llama tied").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    assert load_model(tmp_path).lm_head is None
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, path)
    check_files(tmp_path)  # only values tell
    assert refusal(load_model, tmp_path) == (
        f"{tmp_path}: lm_head.weight differs from model.embed_tokens.weight, but config.json has "
        "tie_word_embeddings = true; set it to false to use both, or remove lm_head.weight"
    )
    change_config(tmp_path, tie_word_embeddings=False)
    assert torch.equal(load_model(tmp_path).head_weight, tensors["lm_head.weight"])


def test_an_untied_model_without_a_head_is_refused(tmp_path):
    oracle("llama tied").save_pretrained(tmp_path)
    change_config(tmp_path, tie_word_embeddings=False)
    assert refusal(check_files, tmp_path) == (
        f"{tmp_path} cannot be loaded:\n  missing: lm_head.weight (if the model has no head of its own, "
        "set tie_word_embeddings = true in config.json)"
    )


def test_all_that_does_not_fit_is_told_at_once(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    tensors["score.weight"] = torch.zeros(1)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(48, 31)
    tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(32, 32, dtype=torch.int8)
    save_file(tensors, path)
    for action in (check_files, load_model):
        assert refusal(action, directory) == (
            f"{directory} cannot be loaded:\n"
            "  model.layers.0.self_attn.q_proj.weight is stored as I8; supported are F64, F32, F16, BF16\n"
            "  missing: model.norm.weight\n"
            "  unexpected: score.weight\n"
            "  model.layers.1.mlp.up_proj.weight is 48x31, config.json makes it 48x32"
        )


def test_another_size_of_model_is_told_in_a_few_lines(directory):
    change_config(directory, hidden_size=16, num_hidden_layers=3, head_dim=8)
    message = refusal(check_files, directory)
    assert message.count("\n") == 7 and "and 4 more" in message and "more of the wrong shape" in message


def test_missing_and_truncated_shards_are_named(sharded):
    names = sorted(path.name for path in sharded.glob("*.safetensors"))
    (sharded / names[0]).unlink()
    cut = sharded / names[1]
    cut.write_bytes(cut.read_bytes()[:-1])
    lines = refusal(check_files, sharded).splitlines()
    assert lines[:2] == [f"{sharded} cannot be loaded:", f"  {names[0]} is missing"]
    assert lines[2].startswith(f"  {names[1]} is truncated or not a safetensors file (")
    assert lines[3].startswith("  missing: ") and len(lines) == 4


def test_an_index_that_disagrees_with_its_files_is_refused(sharded):
    path = sharded / INDEX
    index = json.loads(path.read_text())
    last = max(index["weight_map"].values())
    first = next(name for name, file in index["weight_map"].items() if file != last)
    index["weight_map"] |= {first: last, "model.ghost": last}
    path.write_text(json.dumps(index))
    assert refusal(check_files, sharded) == (
        f"{sharded} cannot be loaded:\n"
        f"  {INDEX} puts {first} in {last}, which does not hold it\n"
        f"  {INDEX} puts model.ghost in {last}, which does not hold it"
    )
    for content, message in [
        ("{}", f"{path} is not an index of safetensors files: it has no weight_map of names"),
        (
            json.dumps({"weight_map": {"x": "../x.safetensors"}}),
            f"{path} names ../x.safetensors, which is not a file of its own directory",
        ),
    ]:
        path.write_text(content)
        assert refusal(check_files, sharded) == message


def test_a_tensor_in_two_shards_is_refused(sharded):
    one, two, *_ = sorted(sharded.glob("*.safetensors"))
    name, tensor = next(iter(load_file(one).items()))
    save_file(load_file(two) | {name: tensor}, two)
    assert f"  {name} is both in {one.name} and in {two.name}" in refusal(check_files, sharded).splitlines()


def test_directories_without_usable_weights_are_refused(directory):
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    assert refusal(check_files, directory) == (
        f"{directory} holds no weights; wanted model.safetensors or {INDEX} with the files it names"
    )
    (directory / "weights.ckpt").write_bytes(b"")
    assert refusal(load_model, directory) == (
        f"{directory} holds its weights only as weights.ckpt, a pickle, which can run code when it is "
        "read; if you trust it, write safetensors with transformers: "
        "AutoModelForCausalLM.from_pretrained(DIRECTORY).save_pretrained(NEW)"
    )
    for name in ("a.safetensors", "b.safetensors"):
        (directory / name).write_bytes(content)
    assert refusal(check_files, directory) == (
        f"{directory} holds 2 safetensors files, but no {INDEX} that says what they are"
    )
    (directory / "adapter_config.json").write_text("{}")
    assert refusal(check_files, directory) == (
        f"{directory} is an adapter, not a model; give the model it belongs to first, then the adapter"
    )


def test_a_safetensors_file_of_a_pickle_or_nothing_is_refused(directory):
    for content in (b"", b"PK\x03\x04 a zip of pickles"):
        (directory / "model.safetensors").write_bytes(content)
        assert "model.safetensors is truncated or not a safetensors file (" in refusal(check_files, directory)


def test_configs_that_cannot_be_used_are_refused(directory):
    path = directory / "config.json"
    change_config(directory, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    assert refusal(load_config, directory) == (
        f"{path}: auto_map asks to run Python code that came with the model, which is never done; "
        "if the model is a plain one of its model_type, remove auto_map"
    )
    path.write_text('{"model_type": "gpt2"}')
    assert refusal(load_config, directory) == (
        f"{path}: model_type 'gpt2' is not supported; supported are llama, mistral, qwen2, "
        "qwen3, olmo2, gemma, gemma2, gemma3_text, phi3, smollm3"
    )
    path.write_text("[]")
    assert refusal(load_config, directory) == f"{path} holds list, not an object of settings"
    path.write_text("{")
    assert refusal(load_config, directory).startswith(f"{path} is not JSON: ")
    path.unlink()
    assert refusal(load_config, directory) == f"{directory} is not a model directory: it has no config.json"


def test_names_that_lead_nowhere_are_refused_in_plain_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(load_config, "no/such/folder") == (
        "no/such/folder does not exist; give a model directory, a model file (.gguf, .bin, .pt) "
        "or a hub id like org/name"
    )
    assert refusal(load_config, "some-org/some-model").startswith(
        "some-org/some-model is no folder here and could not be downloaded from the hub; "
        "check the connection (and HF_HUB_OFFLINE), or give a local directory. "
    )
    (tmp_path / "model.pth").write_bytes(b"")
    assert refusal(load_config, tmp_path / "model.pth") == (
        f"{tmp_path}/model.pth is a file, but no .gguf, nor llama2.c's .bin or .pt, nor a .pth beside "
        "params.json; give the directory with config.json and the weights"
    )


def test_a_folder_that_looks_like_a_hub_id_is_the_folder(directory, monkeypatch):
    monkeypatch.chdir(directory.parent.parent)
    assert load_config(f"{directory.parent.name}/{directory.name}").dim == 32
