"""torchllms' models: whole ones come back, parts go onto their model."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_data import refusal
from tiny_models import oracle, ours

from tutelage.checkpoint.hf import load_config, load_model, save_model
from tutelage.checkpoint.meta_write import (
    refuse_for_torchllms,
    write_torchllms_model,
)
from tutelage.checkpoint.streamed import Held


def same(model, expected):
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("name", ["llama", "llama tied", "qwen2", "llama 3.1", "mistral head_dim"])
def test_torchllms_models_come_back_and_have_its_names(name, tmp_path):
    model = ours(oracle(name))
    config = replace(model.config, role_embeddings=True)
    state = model.state_dict() | {"model.role_embeddings.weight": torch.randn(5, 32)}
    write_torchllms_model(Held(state), config, tmp_path, dtype=torch.float32)
    theirs = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    assert ("output.weight" in theirs) != config.tied
    heads = {"wq": 4, "wk": 2}
    for kind, ours_kind in (("wq", "q_proj"), ("wk", "k_proj")):
        for last in ("weight", "bias") if "qwen2" in name else ("weight",):
            half = state[f"model.layers.1.self_attn.{ours_kind}.{last}"]
            wide = half.shape[0] // heads[kind]
            turned = half.view(heads[kind], 2, wide // 2, *half.shape[1:]).transpose(1, 2).reshape(half.shape)
            assert torch.equal(theirs[f"layers.1.attention.{kind}.{last}"], turned)
    params = json.loads((tmp_path / "params.json").read_text())
    assert params["attn_proj_bias"] == ("qwen2" in name) and params["use_role_embeddings"] is True
    multiple, multiplier = params["multiple_of"], params["ffn_dim_multiplier"]
    assert multiple * -(-int(multiplier * 32) // multiple) == config.ffn_dim  # its formula
    same(load_model(tmp_path), state)
    back = load_config(tmp_path)
    assert (back.bos, back.eos, back.pad, back.rope_scaling) == (1, (2,), 0, config.rope_scaling)
    assert (back.max_positions, back.head_dim, back.tied) == (256, config.head_dim, config.tied)


def test_torchllms_refuses_what_it_does_not_compute():
    config = ours(oracle("qwen2 window")).config
    assert refusal(refuse_for_torchllms, config) == (
        "torchllms cannot run this model: attention has a sliding window, it has none"
    )


def test_a_part_that_torchllms_trained_goes_onto_its_model(tmp_path):
    model = ours(oracle("qwen2"))
    save_model(model, model.config, tmp_path / "base", dtype=torch.float32)
    run = tmp_path / "run"
    run.mkdir()
    draw = torch.randn(32, 32)
    part = {"layers.1.attention.wq.weight": draw, "norm.weight": torch.ones(32)}
    torch.save(part, run / "model_0000500.pth")
    found = load_model(tmp_path / "base", adapters=[run / "model_0000500.pth"]).state_dict()
    turned = draw.view(4, 4, 2, 32).transpose(1, 2).reshape(32, 32)
    wanted = model.state_dict()
    wanted |= {"model.layers.1.self_attn.q_proj.weight": turned, "model.norm.weight": torch.ones(32)}
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_run_of_torchllms_is_its_last_model(tmp_path):
    model = ours(oracle("llama"))
    write_torchllms_model(Held(model.state_dict()), model.config, tmp_path, dtype=torch.float32)
    (tmp_path / "consolidated.00.pth").rename(tmp_path / "model_0000500.pth")
    torch.save({"norm.weight": torch.zeros(32)}, tmp_path / "model_0000099.pth")
    same(load_model(tmp_path), model.state_dict())
    (tmp_path / "model_0000500.pth").rename(tmp_path / "model_final.pth")
    same(load_model(tmp_path), model.state_dict())
    torch.save({"norm.weight": torch.zeros(32)}, tmp_path / "model_final.pth")
    assert "has no tok_embeddings.weight; if it holds a part, give the model first" in refusal(
        load_model, tmp_path
    )
