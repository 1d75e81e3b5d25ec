"""Model directories that are damaged or made to do harm: each is refused in words, soon, in little memory."""

import json
import struct

import pytest
import torch
from hostile import damaged, refusal, survives, write_safetensors
from safetensors.torch import load_file, save_file
from tiny_runs import base_model

from tutelage.checkpoint.hf import load_model, save_model

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny model's directory, in one file and in shards."""
    place = tmp_path_factory.mktemp("whole")
    _, model, config = base_model()
    save_model(model, config, place / "one", dtype=torch.float32)
    save_model(model, config, place / "many", dtype=torch.float32, shard_bytes=30_000)
    return place


@pytest.fixture
def copied(whole, tmp_path):
    def copy(kind="one"):
        target = tmp_path / "model"
        target.mkdir()
        for path in (whole / kind).iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        return target

    return copy


def weights(directory):
    return directory / "model.safetensors"


def raw_header(path):
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(directory, change):
    header, data = raw_header(weights(directory))
    change(header)
    write_safetensors(weights(directory), header, data)


def overlapping(directory):
    def change(header):
        names = [name for name in header if name != "__metadata__"]
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]

    with_header(directory, change)


def retyped(kind):
    def change(header):
        header["model.norm.weight"]["dtype"] = kind

    return lambda directory: with_header(directory, change)


def reshaped(shape):
    def change(header):
        header["model.norm.weight"]["shape"] = shape

    return lambda directory: with_header(directory, change)


def with_value(name, value):
    def change(directory):
        tensors = load_file(weights(directory))
        tensors[name].view(-1)[-3] = value
        save_file(tensors, weights(directory))

    return change


def without_last(count):
    return lambda directory: weights(directory).write_bytes(weights(directory).read_bytes()[:-count])


WEIGHTS = {
    "empty": lambda d: weights(d).write_bytes(b""),
    "three bytes": lambda d: weights(d).write_bytes(b"abc"),
    "cut in the header": lambda d: weights(d).write_bytes(weights(d).read_bytes()[:50]),
    "cut in the data": without_last(5),
    "a header longer than the file": lambda d: write_safetensors(weights(d), {}, length=1 << 20),
    "a header of 2^63 bytes": lambda d: write_safetensors(weights(d), {}, length=(1 << 63) + 5),
    "a header that is no JSON": lambda d: write_safetensors(weights(d), b"{{{{"),
    "a header that is a list": lambda d: write_safetensors(weights(d), []),
    "a header nested 100,000 deep": lambda d: write_safetensors(weights(d), b"[" * 100_000 + b"]" * 100_000),
    "no tensors": lambda d: write_safetensors(weights(d), {}),
    "overlapping tensors": overlapping,
    "a dtype of another size": retyped("F64"),
    "an unknown dtype": retyped("F99"),
    "a shape that is not its size": reshaped([7, 7]),
    "a negative shape": reshaped([-32]),
    "a shape of 2^64 elements": reshaped([1 << 32, 1 << 32]),
    "a NaN": with_value("model.layers.1.mlp.up_proj.weight", float("nan")),
    "an infinity": with_value("model.norm.weight", float("inf")),
    "a NaN in what all share": with_value("model.embed_tokens.weight", float("nan")),
    "a directory in its place": lambda d: (weights(d).unlink(), weights(d).mkdir()),
    "a pickle in its place": lambda d: weights(d).write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR."),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_damaged_weights_are_refused(copied, kind):
    directory = copied()
    WEIGHTS[kind](directory)
    refusal(load_model, directory, names=str(directory))


def test_what_is_no_number_is_named_with_its_tensor(copied):
    directory = copied()
    with_value("model.layers.1.mlp.up_proj.weight", float("-inf"))(directory)
    message = refusal(load_model, directory, names="model.layers.1.mlp.up_proj.weight")
    assert "NaN or infinity" in message


def indexed(change):
    def changed(directory):
        path = directory / INDEX
        index = json.loads(path.read_text())
        path.write_text(change(index) or json.dumps(index))

    return changed


def first_name(index):
    return next(iter(index["weight_map"]))


INDICES = {
    "no JSON": lambda index: "{",
    "a list": lambda index: "[]",
    "a map that is a list": lambda index: '{"weight_map": ["a"]}',
    "a file that is a number": lambda index: index["weight_map"].update({first_name(index): 7}),
    "a missing shard": lambda index: index["weight_map"].update({first_name(index): "gone.safetensors"}),
    "a shard elsewhere": lambda index: index["weight_map"].update({first_name(index): "/etc/passwd"}),
    "a tensor that is nowhere": lambda index: index["weight_map"].update({"model.ghost": "x.safetensors"}),
    "nothing": lambda index: '{"weight_map": {}}',
    "nested 100,000 deep": lambda index: "[" * 100_000,
}


@pytest.mark.parametrize("kind", INDICES)
def test_indices_that_mislead_are_refused(copied, kind):
    directory = copied("many")
    indexed(INDICES[kind])(directory)
    refusal(load_model, directory, names=str(directory))


CONFIGS = {
    "no JSON": "{",
    "empty": "",
    "a list": "[]",
    "a number": "3",
    "not UTF-8": b'{"model_type": "\xff"}',
    "UTF-16": '{"model_type": "llama"}'.encode("utf-16"),
    "nested 100,000 deep": '{"a": ' * 100_000,
    "a number of 10,000 digits": '{"vocab_size": ' + "9" * 10_000 + "}",
}
VALUES = {
    "hidden_size": ["32", 0, -32, 32.5, None, True, [32], {}, 10**12, float("nan")],
    "num_hidden_layers": ["2", 0, -1, 10**12, float("inf"), 2.5],
    "num_attention_heads": [0, -4, "4", 3, 10**9],
    "num_key_value_heads": [3, -2, "2", 10**9],
    "head_dim": [-8, 7, "8", 10**12],
    "vocab_size": [0, -5, "330", 10**12, 1.5],
    "intermediate_size": [0, "48", 10**15],
    "max_position_embeddings": [0, -1, "many"],
    "rms_norm_eps": ["small", float("nan"), [1]],
    "rope_theta": ["x", float("nan"), 0, -1.0],
    "rope_parameters": ["yarn", [1], {"rope_type": "unheard-of"}, {"rope_type": []}, {"rope_theta": "x"}],
    "eos_token_id": ["</s>", [None], 1.5, {}],
    "bos_token_id": ["<s>", []],
    "tie_word_embeddings": ["yes", 3],
    "architectures": [7, {"a": 1}],
    "model_type": [None, 3, [], "../../llama"],
    "dtype": [7],
}
WRONG = [(key, value) for key, values in VALUES.items() for value in values]


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_that_are_no_settings_are_refused(copied, kind):
    directory, content = copied(), CONFIGS[kind]
    (directory / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refusal(load_model, directory, names=str(directory / "config.json"))


@pytest.mark.parametrize(("key", "value"), WRONG, ids=[f"{key}={str(value)[:20]}" for key, value in WRONG])
def test_settings_of_the_wrong_kind_or_size_are_refused(copied, key, value):
    directory = copied()
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    refusal(load_model, directory, names=str(directory))


def test_a_key_given_twice_is_refused(copied):
    path = copied() / "config.json"
    path.write_text(path.read_text().replace("{", '{"vocab_size": 7,', 1))
    assert "vocab_size is given twice" in refusal(load_model, path.parent, names=str(path))


def fuzzed(directory, name, seeds):
    path = directory / name
    sound, failed = path.read_bytes(), 0
    for seed in seeds:
        path.write_bytes(damaged(sound, seed))
        failed += not survives(load_model, directory)
    return failed


FILES = {"model.safetensors": "one", "config.json": "one", "generation_config.json": "one", INDEX: "many"}


@pytest.mark.parametrize("name", FILES)
def test_random_damage_is_harmless(copied, name):
    assert fuzzed(copied(FILES[name]), name, range(40)) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_much_random_damage_is_harmless(copied, name):
    assert fuzzed(copied(FILES[name]), name, range(40, 2000)) > 100
