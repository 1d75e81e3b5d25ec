"""torchllms' models: whole ones come back, parts go onto their model."""

import json
from dataclasses import replace

import pytest
import torch
from family_models import oracle as family_oracle
from family_models import ours as family_ours
from family_models import some_tokens
from tiny_data import refusal
from tiny_models import oracle, ours

from tutelage.checkpoint.hf import load_config, load_model, save_model
from tutelage.checkpoint.instructllama import refuse_what_it_cannot
from tutelage.checkpoint.llama2c.write import refuse_other_arithmetic
from tutelage.checkpoint.meta.write import refuse_for_meta, refuse_for_torchllms, write_torchllms_model
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


def test_olmo_2_is_written_as_torchllms_computes_it_and_comes_back(tmp_path):
    theirs, model = family_oracle("OLMo 2"), family_ours("OLMo 2")
    write_torchllms_model(Held(model.state_dict()), model.config, tmp_path, dtype=torch.float32)
    params = json.loads((tmp_path / "params.json").read_text())
    assert params["olmo2_arch"] is True and params["attn_proj_bias"] is False
    state = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    tokens = some_tokens(1, 12)
    with torch.no_grad():
        assert (olmo2_of_torchllms(params, state, tokens[0]) - theirs(tokens).logits[0]).abs().max() < 1e-4
    assert load_config(tmp_path) == model.config
    same(load_model(tmp_path), model.state_dict())
    (tmp_path / "config.json").unlink()
    bare = load_config(tmp_path)
    assert bare == replace(model.config, bos=None, eos=(100257,), pad=100277)


def olmo2_of_torchllms(params, state, tokens):
    """(T) -> (T, V): the arithmetic that its description gives, with Meta's rotary of neighbours."""

    def norm(x, name):
        return x * (x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]).rsqrt() * state[f"{name}.weight"]

    def turned(x, wide):
        x = torch.view_as_complex(x.view(len(tokens), -1, wide // 2, 2))
        speeds = params["rope_theta"] ** (-torch.arange(0, wide, 2) / wide)
        angles = torch.outer(torch.arange(len(tokens)), speeds)[:, None]
        return torch.view_as_real(x * torch.polar(torch.ones_like(angles), angles)).flatten(2)

    wide, shared = params["head_dim"], params["n_heads"] // params["n_kv_heads"]
    x = state["tok_embeddings.weight"][tokens]
    for layer in range(params["n_layers"]):
        at = f"layers.{layer}."
        q, k, v = (x @ state[f"{at}attention.{name}.weight"].T for name in ("wq", "wk", "wv"))
        q, k = turned(norm(q, f"{at}attention.q_norm"), wide), turned(norm(k, f"{at}attention.k_norm"), wide)
        k, v = (each.view(len(tokens), -1, wide).repeat_interleave(shared, 1) for each in (k, v))
        scores = torch.einsum("qhc,khc->hqk", q, k) / wide**0.5
        scores += torch.full_like(scores, -torch.inf).triu(1)
        mixed = torch.einsum("hqk,khc->qhc", scores.softmax(-1), v).flatten(1)
        x = x + norm(mixed @ state[f"{at}attention.wo.weight"].T, f"{at}attention_norm")
        w1, w2, w3 = (state[f"{at}feed_forward.w{i}.weight"].T for i in (1, 2, 3))
        x = x + norm((torch.nn.functional.silu(x @ w1) * (x @ w3)) @ w2, f"{at}ffn_norm")
    return norm(x, "norm") @ state["output.weight"].T


@pytest.mark.parametrize(
    "name", ["Gemma 1", "Gemma 2", "Gemma 3", "Phi-3 4k", "Phi-4-mini", "Qwen 3", "SmolLM3"]
)
def test_only_families_that_a_program_computes_are_written_for_it(name):
    config = family_ours(name).config
    for refuse in (refuse_for_torchllms, refuse_for_meta, refuse_other_arithmetic, refuse_what_it_cannot):
        assert "it is no plain Llama: " in refusal(refuse, config)


def test_a_part_of_olmo_2_goes_onto_its_model(tmp_path):
    model = family_ours("OLMo 2")
    save_model(model, model.config, tmp_path / "base", dtype=torch.float32)
    run = tmp_path / "run"
    run.mkdir()
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # of a head's pairs
    norms = {name: torch.rand(size) for name, size in (("q", 32), ("k", 16))}
    part = {f"layers.1.attention.{name}_norm.weight": value for name, value in norms.items()}
    part["layers.1.ffn_norm.weight"] = torch.zeros(32)
    torch.save(part, run / "model_final.pth")
    found = load_model(tmp_path / "base", adapters=[run / "model_final.pth"]).model.layers[1]
    for name, value in norms.items():
        wanted = value.view(-1, 8)[:, order].flatten()
        assert torch.equal(getattr(found.self_attn, f"{name}_norm").weight, wanted)
    assert not found.post_feedforward_layernorm.weight.any()
    assert found.post_attention_layernorm.weight.all()


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
