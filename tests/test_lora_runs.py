"""Runs of the command line that train adapters: what they hold, leave, refuse, and how they go on."""

import errno
import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import differences, leavings, material, refused, run, stored, watched
from transformers import AutoModelForCausalLM

from tutelage.checkpoint.hf import load_model, read_adapter
from tutelage.checkpoint.rounded import is_quantized
from tutelage.model.quantize import Quantization
from tutelage.recipes.stage.chain import put_on_
from tutelage.text.tokenizer import Tokenizer
from tutelage.train.saver import newest

KINDS = {
    "lora": {},
    "dora": {"lora_dora": "true"},
    "pissa": {"lora_init": "pissa"},
    "rslora dropout": {"lora_rslora": "true", "lora_dropout": 0.1},
    "embedding": {"lora_embedding": "true"},
    "beside": {"lora_unfrozen_params": ".*norm.weight"},
    "ema": {"ema_decay": 0.9},
    "nf4": {"quant": "nf4", "selective_ac_ratio": 0.5},
    "int8 dora": {"quant": "int8", "lora_dora": "true"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def lora(made, out, **settings):
    return made.sft(out, **{"lora": "true", "lora_rank": 4, "train_steps": 6, "lr": 3e-2} | settings)


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("bf16_pure", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_is_unbroken(made, tmp_path, monkeypatch, kind, precision):
    watch = watched(monkeypatch)
    settings = KINDS[kind] | {"precision": precision}
    whole, broken = tmp_path / "a" / "out", tmp_path / "b" / "out"
    ended = run(*lora(made, whole, **settings))
    assert ended.code == 0, ended.err
    watch.signals = {3: 15}
    assert run(*lora(made, broken, **settings)).code == 143
    ended = run(*lora(made, broken, **settings), "--resume")
    assert ended.code == 0, ended.err
    assert not differences(leavings(whole), leavings(broken))


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """A finished run of plain LoRA."""
    out = tmp_path_factory.mktemp("trained") / "out"
    ended = run(*lora(made, out, save_merged="true"))
    assert ended.code == 0, ended.err
    return out


def test_results_come_with_their_tokenizer_or_not_at_all(made, trained, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def contents():
        return {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}

    shutil.copytree(trained / "model", tmp_path / "merged")
    before = contents()
    monkeypatch.setattr(Tokenizer, "save", full)
    ended = run("merge", trained / "adapter", "--output", tmp_path / "merged", "--overwrite")
    assert "the disk is full" in refused(ended) and contents() == before
    for out, words in (
        (tmp_path / "full" / "model", made.sft(tmp_path / "full", train_steps=1)),
        (tmp_path / "lora" / "adapter", lora(made, tmp_path / "lora", train_steps=1)),
    ):
        assert "the disk is full" in refused(run(*words)) and not out.exists()


def logits_of(model, tokens):
    return model.unembed(model(tokens, torch.arange(tokens.shape[1])[None]))


TOKENS = torch.arange(3, 23)[None]


def test_checkpoints_hold_what_is_trained_and_nothing_else(made, trained):
    tensors = stored(newest(trained / "checkpoints"))
    weights = {name for name in tensors if name.startswith("model.")}
    assert weights == {
        f"model.model.layers.{block}.{layer}.lora_{matrix}.default"
        for block in range(2)
        for layer in [f"self_attn.{kind}_proj" for kind in "qkvo"]
        + [f"mlp.{kind}_proj" for kind in ("gate", "up", "down")]
        for matrix in "AB"
    }
    states = {
        name.removeprefix("optimizer.").rpartition(".")[0]
        for name in tensors
        if name.startswith("optimizer.")
    }
    assert {f"model.{name}" for name in states} == weights
    assert sorted(path.name for path in trained.iterdir() if path.is_dir()) == [
        "adapter",
        "checkpoints",
        "model",
        "tensorboard",
    ]


def test_peft_loads_the_adapter_and_gives_the_same_logits(made, trained):
    base = AutoModelForCausalLM.from_pretrained(made.model)
    theirs = peft.PeftModel.from_pretrained(base, trained / "adapter").eval()
    ours = load_model(made.model, adapters=[trained / "adapter"])
    with torch.no_grad():
        torch.testing.assert_close(logits_of(ours, TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)
        plain = logits_of(load_model(made.model), TOKENS)
        assert (logits_of(ours, TOKENS) - plain).abs().max() > 0.1


def test_the_merged_model_is_what_transformers_and_we_load(made, trained):
    theirs = AutoModelForCausalLM.from_pretrained(trained / "model")
    ours = load_model(made.model, adapters=[trained / "adapter"])
    with torch.no_grad():
        torch.testing.assert_close(logits_of(ours, TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)


def test_the_table_of_what_is_trained_is_printed(made, tmp_path):
    ended = run(*lora(made, tmp_path / "out", lora_targets="q_proj"), "--dry_run")
    assert ended.code == 0
    assert (
        "trained: 512 of 24,320 weights (2.11 %)\n"
        "  model.layers.*.self_attn.q_proj.lora_A.default    2 x 4x32                    256\n"
        "  model.layers.*.self_attn.q_proj.lora_B.default    2 x 32x4                    256\n"
    ) in ended.err


def test_an_adapter_alone_brings_its_model_along(made, trained):
    words = ["generate", "--prompt", "a", "--max_new_tokens", 8]
    both = run(*words, "--ckpt_paths", made.model, trained / "adapter")
    assert both.code == 0, both.err
    assert run(*words, "--ckpt_paths", trained / "adapter").out == both.out


def test_training_goes_on_with_an_adapter_or_on_top_of_it(made, trained, tmp_path):
    start = f"{made.model} {trained / 'adapter'}"
    words = [word for word in lora(made, tmp_path / "further", train_steps=1, lr=0, ckpt_paths="X")]
    place = words.index("X")
    words[place : place + 1] = start.split()
    for word in ("--lora_rank", "4"):
        words.remove(word)
    ended = run(*words, "--lora_continue")
    assert ended.code == 0, ended.err
    further, first = (
        load_file(out / "adapter" / "adapter_model.safetensors") for out in (tmp_path / "further", trained)
    )
    assert further.keys() == first.keys()
    assert all(torch.equal(further[name], first[name]) for name in first)
    words = [*words, "--lora_rank", "2", "--overwrite"]
    assert run(*words).code == 0
    chained = load_model(made.model, adapters=[trained / "adapter", tmp_path / "further" / "adapter"])
    with torch.no_grad():  # the second one, never trained, changes nothing
        assert torch.equal(
            logits_of(chained, TOKENS),
            logits_of(load_model(made.model, adapters=[trained / "adapter"]), TOKENS),
        )
    note = json.loads((tmp_path / "further" / "adapter" / "tutelage.json").read_text())
    assert note["adapters"] == [str(trained / "adapter")]


def test_an_adapter_on_another_model_is_refused(made, trained, tmp_path):
    other = material(tmp_path, tied=False).model
    words = ["generate", "--prompt", "a", "--max_new_tokens", 2, "--ckpt_paths"]
    message = refused(run(*words, other, trained / "adapter"))
    assert "was trained on another model" in message and "--force" in message
    assert run(*words, other, trained / "adapter", "--force").code == 0
    (tmp_path / "wide").mkdir()
    wide = material(tmp_path / "wide", dim=48, head_dim=12).model
    message = refused(run(*words, wide, trained / "adapter", "--force"))
    assert "k_proj is 24x48 in the model, the adapter changes 16x32" in message


def test_merge_is_exact_in_fp32_and_says_what_rounding_costs(made, trained, tmp_path):
    ended = run("merge", trained / "adapter", "--output", tmp_path / "merged")
    assert ended.code == 0, ended.err
    found = load_file(tmp_path / "merged" / "model.safetensors")
    tensors = load_file(trained / "adapter" / "adapter_model.safetensors")
    for name, weight in load_file(made.model / "model.safetensors").items():
        low = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{low}.lora_A.weight" in tensors:
            weight = weight + 2 * (tensors[f"{low}.lora_B.weight"] @ tensors[f"{low}.lora_A.weight"])
        torch.testing.assert_close(found[name], weight, atol=1e-7, rtol=1e-6)
    assert "as float32 on disk by 0, and 0 of" in ended.err
    rough = run("merge", trained / "adapter", "--output", tmp_path / "rough", "--precision", "bf16")
    assert "as bfloat16 on disk by 0.0" in rough.err
    assert load_file(tmp_path / "rough" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16


def test_merge_refuses_what_it_cannot_do(made, trained, tmp_path):
    assert "nothing to merge" in refused(run("merge", made.model, "--output", tmp_path / "out"))
    assert "two models" in refused(run("merge", made.model, made.model, "--output", tmp_path / "out"))
    assert "--overwrite" in refused(run("merge", trained / "adapter", "--output", made.model))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_adapter_of_quantized_weights_is_merged_into_them(made, tmp_path, precision):
    """What was trained is what answers: on the codes, or merged into what they stand for."""
    out = tmp_path / "out"
    ended = run(*lora(made, out, quant="nf4", precision=precision))
    assert ended.code == 0, ended.err
    note = json.loads((out / "adapter" / "tutelage.json").read_text())
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    assert note["quant"] == {"kind": "nf4", "double": True, "dtype": dtype}
    merged = run("merge", out, "--output", tmp_path / "merged")
    assert merged.code == 0, merged.err
    assert "trained on nf4 weights and is merged into what they stand for" in merged.err
    rounded = getattr(torch, dtype)
    beside = load_model(
        made.model,
        dtype=lambda name: rounded if is_quantized(name) else torch.float32,
        quantization=Quantization(),
    )
    put_on_(beside, read_adapter(out / "adapter", beside.config))
    with torch.no_grad():
        found, plain = (logits_of(load_model(path), TOKENS) for path in (tmp_path / "merged", made.model))
        torch.testing.assert_close(found, logits_of(beside, TOKENS), atol=1e-4, rtol=1e-4)
        plain_base = load_model(made.model, adapters=[out / "adapter"], as_trained=False)
        unquantized = logits_of(plain_base, TOKENS)
    assert (found - unquantized).abs().max() > 1e-3 and (found - plain).abs().max() > 0.1
    words = ["generate", "--prompt", "a b", "--max_new_tokens", 8, "--precision", "fp32"]
    assert run(*words, out).out == run(*words, tmp_path / "merged").out
    assert run(*words, out, "--quant", "nf4").code == 0


def test_role_embeddings_are_trained_beside_and_travel_with_the_adapter(made, tmp_path):
    out, words = tmp_path / "out", ["--use_role_embeddings", "--role_embeddings_init", "gaussian:0.1"]
    ended = run(*lora(made, out), *words)
    assert ended.code == 0, ended.err
    assert "model.role_embeddings.weight" in ended.err
    table = load_file(out / "adapter" / "adapter_model.safetensors")[
        "base_model.model.model.role_embeddings.weight"
    ]
    merged = run("merge", out, "--output", tmp_path / "merged")
    assert merged.code == 0, merged.err
    assert torch.equal(load_model(tmp_path / "merged").model.role_embeddings.weight, table)
    words = ["generate", "--prompt", "a b", "--max_new_tokens", 8, "--precision", "fp32"]
    assert run(*words, out).out == run(*words, tmp_path / "merged").out
    further = run(*lora(made, tmp_path / "more", ckpt_paths=out))
    assert further.code == 0, further.err
    assert "role embeddings: the model has them already" in further.err
