"""What is made of the families' models: score heads, adapters, losses, and one out of a model of images."""

import warnings
from copy import deepcopy
from dataclasses import fields

import peft
import pytest
import torch
from family_models import MODELS, batch_of, logits_of, oracle, ours, randomised, some_tokens
from safetensors.torch import load_file, save_file
from tiny_models import positions_of
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    Gemma3Config,
)

from tutelage.checkpoint.adapter import attach_
from tutelage.checkpoint.hf import load_model, save_model
from tutelage.checkpoint.peft import read_peft
from tutelage.model.config import ModelConfig
from tutelage.model.families import FAMILIES, UNLIKE_LLAMA
from tutelage.objectives.base import kl_divergence, token_logps
from tutelage.objectives.language import NextToken

FILE = "model.safetensors"
CAPPED = [name for name in MODELS if getattr(MODELS[name], "final_logit_softcapping", None)]


@pytest.mark.parametrize("family", FAMILIES)
def test_score_heads_are_those_of_transformers(family, tmp_path):
    name = next(name for name, config in MODELS.items() if config.model_type == family)
    config = deepcopy(MODELS[name])
    config.num_labels = 1
    theirs = randomised(AutoModelForSequenceClassification, config)
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    save_model(model, model.config, tmp_path / "ours", dtype=torch.float32)
    assert (tmp_path / "ours" / FILE).read_bytes() == (tmp_path / "theirs" / FILE).read_bytes()
    back = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert type(back) is type(theirs)
    tokens = some_tokens(1, 20)
    with torch.no_grad():
        scores = model.scores(model(tokens, positions_of(tokens)))
        torch.testing.assert_close(scores[0, -1], theirs(tokens).logits[0, 0], atol=1e-4, rtol=0)
        assert torch.equal(back(tokens).logits, theirs(tokens).logits)


def test_the_language_model_is_read_out_of_one_that_sees_images(tmp_path):
    """As transformers 5 writes it, and under the names of the published files; written, it is text alone."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=MODELS["Gemma 3"].to_dict(),
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        eos_token_id=[2, 7],
    )
    theirs = randomised(AutoModelForImageTextToText, config)
    theirs.save_pretrained(tmp_path / "theirs")
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    assert any("vision" in name for name in stored)
    new, old = ({renamed(name, to): x for name, x in stored.items()} for to in NAMES)
    tokens = some_tokens(1, 20)
    with torch.no_grad():
        wanted = theirs(tokens).logits
    for tensors in (new, old):
        save_file(tensors, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
        model = load_model(tmp_path / "theirs")
        assert model.config.eos == (2, 7)
        torch.testing.assert_close(logits_of(model, tokens), wanted, atol=1e-4, rtol=0)
    save_model(model, model.config, tmp_path / "ours", dtype=torch.float32)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(back(tokens).logits, wanted, atol=1e-4, rtol=0)


NAMES = ("model.language_model.", "language_model.model.")


def renamed(name, to):
    """The same tensor of the language model under one of the two names; of others nothing changes."""
    for prefix in NAMES:
        if name.startswith(prefix):
            return to + name.removeprefix(prefix)
    return name


@pytest.mark.parametrize("name", ["Phi-3 4k", "Gemma 2", "OLMo 2"])
def test_a_step_of_lora_is_pefts(name, tmp_path):
    """Every linear layer of the blocks, the fused ones of Phi-3 under their own names."""
    base = deepcopy(oracle(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear"))
        torch.manual_seed(1)
        with torch.no_grad():
            for key, p in theirs.named_parameters():
                if "lora_B" in key:
                    p.normal_(0, 0.1)
        theirs.save_pretrained(tmp_path)
    model = deepcopy(ours(name))
    attach_(model, read_peft(tmp_path))
    tokens = some_tokens(2, 20)
    theirs.eval()(tokens, labels=tokens).loss.backward()
    loss = NextToken()(model, batch_of(tokens))
    (loss.total / loss.weight).backward()
    wanted = {
        key.removeprefix("base_model.model.").removesuffix(".weight"): p.grad
        for key, p in theirs.named_parameters()
        if p.grad is not None
    }
    found = {key: p.grad for key, p in model.named_parameters() if p.grad is not None and ".lora_" in key}
    assert wanted.keys() == found.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CAPPED)
def test_losses_of_capped_logits_are_those_of_the_logits(name):
    """Log-probabilities at a temperature and their gradients, and the sum that validation asks for."""
    model, tokens = deepcopy(ours(name)), some_tokens(2, 12)
    batch = batch_of(tokens)
    logits = model.unembed(model(tokens, positions_of(tokens)))
    assert logits.abs().max() <= model.config.logit_cap
    wanted = (logits / 0.7).log_softmax(-1).gather(2, batch.targets[..., None])[..., 0] * batch.weights
    wanted.square().sum().backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    found = token_logps(model, batch, temperature=0.7) * batch.weights
    found.square().sum().backward()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for key, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[key], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        logps = logits.log_softmax(-1).gather(2, batch.targets[..., None])[..., 0]
        torch.testing.assert_close(NextToken()(model, batch).total, -(logps * batch.weights).sum())


def test_the_divergence_of_capped_models_is_that_of_their_capped_logits():
    draw = torch.Generator().manual_seed(0)
    hidden, head, other = (torch.randn(n, 8, generator=draw) for n in (5, 61, 61))
    p, q = ((1.5 * torch.tanh(hidden @ each.t() / 1.5)).log_softmax(-1) for each in (head, other))
    found = kl_divergence(hidden, head, hidden, other, torch.ones(5), cap=1.5)
    torch.testing.assert_close(found, F.kl_div(q, p, log_target=True, reduction="sum"))


def test_what_a_llama_lacks_has_words():
    """A new field of ModelConfig is either one that Llamas differ in, or has words for a refusal."""
    sizes = {"vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_positions"}
    settings = {"norm_eps", "rope_theta", "rope_scaling", "tied", "bos", "eos", "pad", "dtype", "family"}
    refused_apart = {"head", "qkv_bias", "windows", "role_embeddings", "role_embeddings_init"}
    names = {each.name for each in fields(ModelConfig)}
    assert names - sizes - settings - refused_apart == UNLIKE_LLAMA.keys()
    assert all(" " in words for words in UNLIKE_LLAMA.values())
