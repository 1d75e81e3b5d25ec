"""litgpt's own program computes the same with what we write, and all comes back; older files are read too."""

import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from family_models import MODELS
from family_models import ours as family_ours
from foreign_models import litgpt
from llama2c_models import logits
from tiny_data import refusal
from tiny_models import oracle, ours

from tutelage.checkpoint import source
from tutelage.checkpoint.hf import load_config, load_model
from tutelage.checkpoint.litgpt.write import refuse_for_litgpt, write_litgpt
from tutelage.checkpoint.streamed import Held
from tutelage.model.transformer import Transformer

TOKENS = [1, *range(5, 40)]
NAMES = ["llama", "llama tied", "llama 3.1", "qwen2", "mistral head_dim", "Qwen 3", "OLMo 2"]


def written(name, directory):
    model = family_ours(name) if name in MODELS else ours(oracle(name))
    if name == "Qwen 3":  # its windows are not written
        state, config = model.state_dict(), replace(model.config, windows=None)
        model = Transformer(config).eval()
        model.load_state_dict(state)
    write_litgpt(Held(model.state_dict()), model.config, directory, dtype=torch.float32)
    return model


def same(model, expected):
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", NAMES)
def test_litgpts_own_program_computes_the_same(name, tmp_path):
    model = written(name, tmp_path)
    program = litgpt()
    theirs = program.GPT(program.Config.from_file(tmp_path / "model_config.yaml"))
    theirs.load_state_dict(torch.load(tmp_path / "lit_model.pth", weights_only=True, mmap=True))
    with torch.no_grad():
        found = theirs(torch.tensor([TOKENS]))[0]
    torch.testing.assert_close(found, torch.from_numpy(logits(model, TOKENS)), atol=1e-4, rtol=1e-4)
    same(load_model(tmp_path), model.state_dict())
    back, config = load_config(tmp_path), model.config
    assert (back.bos, back.eos, back.pad, back.max_positions) == (1, (2,), 0, 256)
    assert (back.rope_scaling, back.tied, back.qkv_bias) == (
        config.rope_scaling,
        config.tied,
        config.qkv_bias,
    )


@pytest.mark.parametrize("piece", [source.PIECE, 96, 160])
def test_older_files_hold_queries_keys_and_values_group_after_group(piece, tmp_path, monkeypatch):
    """litgpt itself reassembles them when it loads, which here says what they mean."""
    monkeypatch.setattr(source, "PIECE", piece)  # 3 or 5 rows at a time
    model = written("qwen2", tmp_path)
    program = litgpt()
    theirs = program.GPT(program.Config.from_file(tmp_path / "model_config.yaml"))
    state = torch.load(tmp_path / "lit_model.pth")
    for key in [key for key in state if ".attn.qkv." in key]:
        q, k, v = state.pop(key).split([32, 16, 16])  # 4 heads of 8, in 2 groups
        parts = [
            torch.cat([q[g * 16 : g * 16 + 16], k[g * 8 : g * 8 + 8], v[g * 8 : g * 8 + 8]]) for g in (0, 1)
        ]
        state[key.replace("attn.qkv", "attn.attn")] = torch.cat(parts)
    torch.save({"model": state}, tmp_path / "lit_model.pth")
    theirs.load_state_dict(dict(state))
    with torch.no_grad():
        found = theirs(torch.tensor([TOKENS]))[0]
    torch.testing.assert_close(found, torch.from_numpy(logits(model, TOKENS)), atol=1e-4, rtol=1e-4)
    same(load_model(tmp_path / "lit_model.pth"), model.state_dict())


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    written("llama", tmp_path_factory.mktemp("litgpt") / "model")
    return next(tmp_path_factory.getbasetemp().glob("litgpt*/model"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"norm_class_name": "LayerNorm"},
            "norm_class_name = 'LayerNorm' is not supported; only 'RMSNorm' is",
        ),
        ({"bias": None}, "bias = left to litgpt is not supported; only False is"),
        ({"rotary_percentage": 0.25}, "rotary_percentage = 0.25 is not supported"),
        ({"sliding_window_size": 8}, "sliding_window_size = 8 is not supported"),
        ({"rope_adjustments": {"factor": 2.0}}, "supported are Llama 3.1's factor, low_freq_factor"),
        ({"n_layer": "two"}, "n_layer = 'two', wanted a number above 0"),
        ({"n_query_groups": 4}, "queries, keys and values have 64 rows, model_config.yaml makes them 96"),
        ({"n_layer": 3}, "missing: model.layers.2."),
        ({"norm_qk": True}, "missing: model.layers.0.self_attn.q_norm.weight"),
        (
            {"post_mlp_norm": True},
            "post_mlp_norm = True is not supported; only norms as in llama, qwen3, olmo2",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, words, directory, tmp_path):
    shutil.copytree(directory, tmp_path / "bad")
    path = tmp_path / "bad" / "model_config.yaml"
    settings = yaml.safe_load(path.read_text()) | values
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    assert words in refusal(load_model, tmp_path / "bad")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            {"transformer.h.0.attn.x.weight": torch.ones(2)},
            "holds transformer.h.0.attn.x.weight, which is no part",
        ),
        ({"transformer.h.0.attn.qkv.lora_A": torch.ones(2)}, "holds LoRA weights apart from the model's"),
        ({"iteration": 5}, "holds more than tensors by name"),
    ],
)
def test_files_that_are_something_else_are_refused(state, words, directory, tmp_path):
    shutil.copytree(directory, tmp_path / "bad")
    torch.save(state, tmp_path / "bad" / "lit_model.pth")
    assert words in refusal(load_model, tmp_path / "bad")


def test_what_has_no_place_there_is_refused():
    config = ours(oracle("mistral window")).config
    assert refusal(refuse_for_litgpt, config) == (
        "litgpt as written here cannot run this model: attention has a sliding window, it has none"
    )
