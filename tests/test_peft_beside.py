"""Adapters of PEFT's on embedding and head, and weights in full beside adapters, in both directions."""

import json
import warnings
from dataclasses import replace

import peft
import pytest
import torch
from peft_models import based, by_peft, logits_of, saved_by_peft
from safetensors.torch import load_file, save_file
from tiny_models import oracle, ours, random_tokens
from transformers import AutoModelForCausalLM

from tutelage.checkpoint.adapter import StoredAdapter, attach_, check_fits, collected, merged
from tutelage.checkpoint.hf import load_model
from tutelage.checkpoint.peft import read_peft, write_peft
from tutelage.checkpoint.shards import Shards
from tutelage.errors import UserError
from tutelage.model.adapters import LoRASettings, add_lora_
from tutelage.model.quantize import Quantization
from tutelage.train.freezing import unfreeze_

TOKENS = random_tokens(2, 12)


@pytest.mark.parametrize("stored", [False, True], ids=["", "head stored"])
@pytest.mark.parametrize("chosen", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("how", ["target_modules", "modules_to_save"])
def test_embedding_and_head_of_a_tied_model_that_change_apart(how, chosen, stored, tmp_path):
    options = {how: chosen} if how == "modules_to_save" else {how: ["q_proj", *chosen]}
    theirs = by_peft("llama tied", r=4, lora_alpha=6, **options)
    base = based(tmp_path / "base", "llama tied")
    if stored:
        store_head(base)
    model = load_model(base, adapters=[saved_by_peft(theirs, tmp_path / "adapter")])
    assert not model.config.tied
    torch.testing.assert_close(logits_of(model, TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)


def store_head(base):
    path = base / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("how", ["target_modules", "modules_to_save"])
def test_a_tied_model_whose_file_stores_the_head_too_stays_tied_with_an_adapter_on_both(how, tmp_path):
    options = {how: ["embed_tokens"]} if how == "modules_to_save" else {how: ["q_proj", "embed_tokens"]}
    theirs = by_peft("llama tied", r=4, lora_alpha=6, ensure_weight_tying=True, **options)
    base = based(tmp_path / "base", "llama tied")
    store_head(base)
    model = load_model(base, adapters=[saved_by_peft(theirs, tmp_path / "adapter")])
    assert model.config.tied
    torch.testing.assert_close(logits_of(model, TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)


WHOLE = ["input_layernorm", "k_proj", "model.norm", "post_attention_layernorm"]


def trained_with(directory, *, targets, unfrozen):
    """Our tiny qwen2 with an adapter and weights beside it, random, and the directory we write of it."""
    model = ours(oracle("qwen2"))
    add_lora_(model, LoRASettings(rank=4, targets=targets))
    unfreeze_(model, unfrozen)
    draw = torch.Generator().manual_seed(0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for p in trained.values():
            p.add_(0.3 * torch.randn(p.shape, generator=draw))
    stored = collected(model, {name: p.detach() for name, p in trained.items()})
    write_peft(stored, directory, config=model.config, base="x", fingerprint=None, dtype=torch.float32)
    return model, json.loads((directory / "adapter_config.json").read_text())


@pytest.mark.parametrize(
    "targets, unfrozen, bias, whole",
    [
        (("q_proj",), [r".*\.bias"], "all", None),
        (("q_proj", "k_proj", "v_proj"), [r".*\.bias"], "lora_only", None),
        (("o_proj",), [r".*\.q_proj\.bias"], "all", None),
        (("o_proj",), [r".*\.q_proj\..*"], "none", ["q_proj"]),
        (("q_proj",), [r".*k_proj\.weight"], "none", None),
        (("q_proj",), [r".*\.bias", r".*k_proj\.weight", ".*norm.*"], "all", WHOLE),
    ],
)
def test_peft_loads_biases_that_were_trained(targets, unfrozen, bias, whole, tmp_path):
    model, config = trained_with(tmp_path / "adapter", targets=targets, unfrozen=unfrozen)
    assert (config["bias"], config["modules_to_save"]) == (bias, whole)
    base = AutoModelForCausalLM.from_pretrained(based(tmp_path / "base", "qwen2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(TOKENS).logits, logits_of(model, TOKENS), atol=1e-4, rtol=1e-4)
    again = load_model(tmp_path / "base", adapters=[tmp_path / "adapter"])
    torch.testing.assert_close(logits_of(again, TOKENS), logits_of(model, TOKENS), atol=1e-4, rtol=1e-4)


def test_a_layer_in_full_and_with_an_adapter_is_the_sum_of_both(tmp_path):
    base = based(tmp_path / "base", "llama")
    stored = read_peft(saved_by_peft(by_peft("llama", r=4), tmp_path / "adapter"))
    name = "model.layers.0.self_attn.q_proj.weight"
    both = StoredAdapter("both", stored.layers, {name: torch.randn(32, 32)})
    beside = ours(oracle("llama"))
    attach_(beside, both)
    _, source = merged(beside.config, Shards(base), both)
    low = stored.layers[name.removesuffix(".weight")]
    torch.testing.assert_close(source.rows(name, 3, 9), (both.full[name] + low.scale * low.b @ low.a)[3:9])
    model = ours(oracle("llama"))
    add_lora_(model, LoRASettings(rank=4))
    with pytest.raises(AssertionError, match="by an adapter and in full at once"):
        collected(model, dict(model.named_parameters()))


@pytest.mark.parametrize("config_says", [True, False])
@pytest.mark.parametrize("chosen", [["lm_head"], ["embed_tokens"]])
def test_a_model_with_one_matrix_refuses_an_adapter_for_two(chosen, config_says, tmp_path):
    stored = read_peft(saved_by_peft(by_peft("llama tied", r=4, target_modules=chosen), tmp_path))
    model = ours(oracle("llama tied"))
    model.config = replace(model.config, tied=config_says)  # of a run, which knows what will become of it
    with pytest.raises(UserError, match="changes the embedding and the head apart"):
        attach_(model, stored)


def test_a_layer_in_full_is_not_put_on_a_quantized_one(tmp_path):
    options = {"target_modules": ["v_proj"], "modules_to_save": ["q_proj"]}
    adapter = saved_by_peft(by_peft("llama", r=4, **options), tmp_path / "adapter")
    base = based(tmp_path / "base", "llama")
    model = load_model(base, quantization=Quantization(kind="int8"))
    with pytest.raises(UserError, match="q_proj.weight in full, .* leave out --quant"):
        attach_(model, read_peft(adapter))


def test_magnitudes_of_another_size_are_named(tmp_path):
    directory = saved_by_peft(by_peft("llama", r=4, use_dora=True), tmp_path)
    stored = read_peft(directory)
    layer = "model.layers.0.mlp.up_proj"
    wrong = replace(stored.layers[layer], magnitude=torch.ones(7))
    with pytest.raises(UserError, match=f"{layer} has 48 rows, the adapter magnitudes 7"):
        check_fits(ours(oracle("llama")).config, replace(stored, layers=stored.layers | {layer: wrong}))
