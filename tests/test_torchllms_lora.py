"""torchllms' adapters: lora_args.json and a .pth with Meta's names and order of rows."""

import json
from copy import deepcopy

import pytest
import torch
from family_models import ours as family_ours
from tiny_models import oracle, ours, positions_of, random_tokens
from tiny_runs import refused, run

from tutelage.checkpoint.adapter import attach_, collected
from tutelage.checkpoint.hf import is_adapter, load_model, save_model
from tutelage.checkpoint.peft import write_peft
from tutelage.checkpoint.torchllms_lora import find_torchllms, read_torchllms, write_torchllms
from tutelage.errors import UserError
from tutelage.model.adapters import LoRASettings, add_lora_

NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
LAYERS = {f"layers.{i}.{meta}": f"model.layers.{i}.{hf}" for i in range(2) for meta, hf in NAMES.items()}
LAYERS["output"] = "lm_head"
RANK, ALPHA = 3, 2.0


def to_meta(weight, heads):
    """Hugging Face's halves to Meta's pairs, as transformers' conversion script undoes it."""
    rows = len(weight) // heads
    return weight.view(heads, 2, rows // 2, -1).transpose(1, 2).reshape(weight.shape)


def to_hf(weight, heads):
    rows = len(weight) // heads
    return weight.view(heads, rows // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


@pytest.fixture
def adapter(tmp_path):
    """(base directory, adapter file, weights by our name as torchllms would merge them)."""
    theirs = oracle("llama")
    model = ours(theirs)
    save_model(model, model.config, tmp_path / "base", dtype=torch.float32)
    draw = torch.Generator().manual_seed(1)
    state, expected = {}, dict(model.state_dict())
    for meta, name in LAYERS.items():
        weight = expected[f"{name}.weight"]
        heads = {"q_proj": 4, "k_proj": 2}.get(name.rsplit(".", 1)[-1])
        a = torch.randn(RANK, weight.shape[1], generator=draw)
        b = torch.randn(weight.shape[0], RANK, generator=draw)
        state |= {f"{meta}.lora_A": a, f"{meta}.lora_B": b}
        weight = to_meta(weight, heads) if heads else weight
        merged = weight + (b @ a) * ALPHA / RANK
        expected[f"{name}.weight"] = to_hf(merged, heads) if heads else merged
    a, b = torch.randn(61, RANK, generator=draw), torch.randn(RANK, 32, generator=draw)
    state |= {"tok_embeddings.lora_A": a, "tok_embeddings.lora_B": b}
    expected["model.embed_tokens.weight"] = expected["model.embed_tokens.weight"] + (a @ b) * ALPHA / RANK
    state["norm.weight"] = torch.randn(32, generator=draw)
    expected["model.norm.weight"] = state["norm.weight"]
    path = tmp_path / "theirs" / "model_final.pth"
    path.parent.mkdir()
    torch.save(state, path)
    values = {"lora_rank": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "lora_embedding": True}
    (path.parent / "lora_args.json").write_text(json.dumps(values))
    return tmp_path / "base", path, expected


def test_weights_with_it_are_as_torchllms_merges_them(adapter):
    base, path, expected = adapter
    assert is_adapter(path)
    model = load_model(base, adapters=[path])
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-5, msg=name)


def test_it_is_written_as_it_was_read(adapter, tmp_path):
    base, path, _ = adapter
    model = load_model(base)
    write_torchllms(read_torchllms(path, model.config), tmp_path / "ours" / "model_final.pth", model.config)
    first, second = (torch.load(p, weights_only=True) for p in (path, tmp_path / "ours" / "model_final.pth"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    texts = [json.loads((p.parent / "lora_args.json").read_text()) for p in (path, tmp_path / "ours" / "x")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["Gemma 2", "Phi-3 4k", "Qwen 3"])
def test_an_adapter_of_a_family_that_torchllms_cannot_run_is_not_written(name, tmp_path):
    model = family_ours(name)
    save_model(model, model.config, tmp_path / "base", dtype=torch.float32)
    adapted = add_lora_(deepcopy(model), LoRASettings(rank=2))
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    stored = collected(adapted, trained)
    write_peft(
        stored, tmp_path / "lora", config=model.config, base="it", fingerprint=None, dtype=torch.float32
    )
    words = ["convert", tmp_path / "base", tmp_path / "lora", "--format", "torchllms"]
    said = refused(run(*words, "--output", tmp_path / "out"))
    assert "torchllms cannot run this model: it is no plain Llama: " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["llama", "llama tied", "qwen2", "OLMo 2"])
def test_an_adapter_of_ours_survives_the_round_trip(family, tmp_path):
    whole = family_ours(family) if family == "OLMo 2" else ours(oracle(family))
    model = add_lora_(deepcopy(whole), LoRASettings(rank=4, embedding=True))
    for name, p in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    stored = collected(model, {name: p for name, p in model.named_parameters() if p.requires_grad})
    write_torchllms(stored, tmp_path / "model_final.pth", model.config)
    other = deepcopy(whole)
    attach_(other, read_torchllms(tmp_path / "model_final.pth", other.config))
    tokens = random_tokens(1, 9)
    logits = [each.unembed(each(tokens, positions_of(tokens))) for each in (model, other)]
    assert torch.equal(*logits)


def test_what_is_no_adapter_is_refused(adapter, tmp_path):
    base, path, _ = adapter
    config = load_model(base).config
    state = torch.load(path, weights_only=True)
    torch.save({**state, "layers.0.attention.wx.lora_A": torch.zeros(3, 32)}, path)
    with pytest.raises(UserError, match="wx, which is no part of a Llama"):
        read_torchllms(path, config)
    torch.save({name: p for name, p in state.items() if name != "layers.0.attention.wq.lora_B"}, path)
    with pytest.raises(UserError, match="q_proj has only lora_A of lora_A and lora_B"):
        read_torchllms(path, config)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged, or holds more than tensors"):
        read_torchllms(path, config)
    torch.save(state, path)
    (path.parent / "lora_args.json").write_text('{"lora_rank": 3}')
    with pytest.raises(UserError, match="has no lora_alpha"):
        read_torchllms(path, config)
    dora = add_lora_(ours(oracle("llama")), LoRASettings(rank=4, dora=True))
    stored = collected(dora, {name: p for name, p in dora.named_parameters() if p.requires_grad})
    with pytest.raises(UserError, match="one rank and one alpha for all layers, and no DoRA"):
        write_torchllms(stored, tmp_path / "x.pth", config)


ARGS = {
    "torn": ('{"lora_rank": 3', "is not JSON"),
    "a list": ("[3, 2]", "holds list, not an object of settings"),
    "rank 0": ('{"lora_rank": 0, "lora_alpha": 2}', "lora_rank = 0, wanted a whole number from 1"),
    "rank a text": ('{"lora_rank": "3", "lora_alpha": 2}', "lora_rank = '3', wanted"),
    "alpha null": ('{"lora_rank": 3, "lora_alpha": null}', "lora_alpha = None, wanted a number above 0"),
    "dropout": ('{"lora_rank": 3, "lora_alpha": 2, "lora_dropout": "x"}', "lora_dropout = 'x', wanted"),
}


@pytest.mark.parametrize("text, message", ARGS.values(), ids=ARGS)
def test_a_mistake_in_lora_args_is_named_with_its_file_and_key(text, message, adapter):
    base, path, _ = adapter
    (path.parent / "lora_args.json").write_text(text)
    with pytest.raises(UserError, match=rf"lora_args\.json:? {message}"):
        read_torchllms(path, load_model(base).config)


@pytest.mark.parametrize(
    "content, message",
    [
        ([torch.zeros(2)], "holds a list, not tensors by name"),
        ({"model": {"layers.0.attention.wq.lora_A": torch.zeros(3, 32)}}, "holds a dict as 'model'"),
        ({}, "holds no weights"),
        (
            {"layers.0.attention.wq.lora_A": torch.zeros(3), "layers.0.attention.wq.lora_B": torch.zeros(3)},
            r"q_proj are \(3,\) and \(3,\), lora_args.json says rank 3",
        ),
        ({"layers.0.attention.wk.weight": torch.zeros(9, 4)}, "made for another model: model.layers.0.self"),
        ({"weight": torch.zeros(2)}, "holds weight, which is no part of a Llama"),
    ],
)
def test_a_file_of_anything_else_is_refused(content, message, adapter):
    base, path, _ = adapter
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_torchllms(path, load_model(base).config)


def test_a_file_or_its_directory_leads_to_the_finished_weights_or_else_the_newest(tmp_path):
    for name in ("model_final.pth", "model_0000500.pth", "model_0001000.pth", "optimizer_0002000.pth"):
        (tmp_path / name).touch()
    assert find_torchllms(tmp_path) is None  # a folder of whole models, as far as one can tell
    assert find_torchllms(tmp_path / "model_final.pth") is None
    (tmp_path / "lora_args.json").touch()
    assert find_torchllms(tmp_path / "model_0000500.pth") == tmp_path / "model_0000500.pth"
    assert find_torchllms(tmp_path / "lora_args.json") is None
    assert find_torchllms(tmp_path) == tmp_path / "model_final.pth"
    (tmp_path / "model_final.pth").unlink()
    assert find_torchllms(tmp_path) == tmp_path / "model_0001000.pth"
    assert find_torchllms(tmp_path / "nowhere") is None


def test_convert_turns_it_into_pefts_files_and_back(adapter, tmp_path):
    base, path, expected = adapter
    done = run("convert", base, path, "--format", "peft", "--output", tmp_path / "peft")
    assert done.code == 0, done.err
    for name, weight in load_model(base, adapters=[tmp_path / "peft"]).state_dict().items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-5, msg=name)
    assert (
        run("convert", base, tmp_path / "peft", "--format", "torchllms", "--output", tmp_path / "back").code
        == 0
    )
    first, second = (torch.load(p, weights_only=True) for p in (path, tmp_path / "back" / "model_final.pth"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert "give one after the model" in refused(
        run("convert", base, "--format", "peft", "--output", tmp_path / "x")
    )
