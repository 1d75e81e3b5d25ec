"""Adapters give what PEFT's give for the same matrices, and what they must not change they do not."""

import copy
import warnings

import peft
import pytest
import torch
from peft_models import (
    KINDS,
    LINEARS,
    by_peft,
    logits_of,
    ours_with,
    saved_by_peft,
    saved_by_us,
    shuffle_,
)
from tiny_models import oracle, ours, random_tokens

from tutelage.checkpoint.adapter import attach_
from tutelage.checkpoint.peft import read_peft
from tutelage.errors import UserError
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.adapters import (
    LoRASettings,
    add_lora_,
    settle_,
    targets_of,
)
from tutelage.model.lora import LoRALayer

FAMILIES = ("llama", "llama tied", "qwen2", "mistral head_dim")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_equal_those_of_peft(family, kind, tmp_path):
    agree(family, KINDS[kind], tmp_path)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("layers", [["lm_head"], [*LINEARS, "lm_head"]])
def test_a_heads_too(layers, dora, tmp_path):
    agree("llama", {"r": 4, "lora_alpha": 6, "use_dora": dora, "target_modules": layers}, tmp_path)


def agree(family, options, tmp_path):
    theirs = by_peft(family, **options)
    model = ours_with(family, saved_by_peft(theirs, tmp_path))
    tokens = random_tokens(2, 12)
    expected, found = theirs(tokens).logits, logits_of(model, tokens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    (expected * direction).mean().backward()
    (found * direction).mean().backward()
    wanted = {_ours(name): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert grads.keys() == wanted.keys()
    for name, gradient in grads.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-5, msg=name)


def _ours(name):
    name = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
    return name.replace(".default.weight", ".default").replace("lora_magnitude_vector", "lora_magnitude")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [*KINDS, "embedding", "head"])
def test_peft_reads_what_we_write(family, kind, tmp_path):
    """Trained here, the same logits there, whatever kind of adapter it is."""
    model = ours(oracle(family))
    if kind in KINDS and kind != "beside":
        model = ours_with(family, saved_by_peft(by_peft(family, **KINDS[kind]), tmp_path / "theirs"))
    else:
        settings = LoRASettings(rank=4, embedding=kind == "embedding", head=kind == "head")
        shuffle_(add_lora_(model, settings))
        if kind == "beside":
            with torch.no_grad():
                for name in ("model.norm.weight", "model.layers.1.input_layernorm.weight"):
                    model.get_parameter(name).add_(0.5).requires_grad_(True)
    saved_by_us(model, tmp_path / "ours", rslora=kind == "rslora")
    theirs = loaded_by_peft(family, tmp_path / "ours")
    tokens = random_tokens(2, 12)
    torch.testing.assert_close(logits_of(model, tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def loaded_by_peft(family, directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(oracle(family), directory).eval()


def test_text_trained_here_and_read_by_peft_is_the_same(tmp_path):
    model = shuffle_(add_lora_(ours(oracle("llama")), LoRASettings(rank=4)))
    saved_by_us(model, tmp_path)
    prompt = random_tokens(1, 6)
    (done,) = generate(model, prompt.tolist(), Sampling(temperature=0.0), max_new_tokens=20, stop=set())
    theirs = loaded_by_peft("llama", tmp_path).generate(
        prompt, max_new_tokens=20, do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(prompt)
    )
    assert done.tokens == theirs[0, 6:].tolist()


def test_text_of_an_adapter_of_pefts_is_the_same_here(tmp_path):
    theirs = by_peft("llama", **KINDS["rslora"])
    model = ours_with("llama", saved_by_peft(theirs, tmp_path))
    prompt = random_tokens(1, 6)
    (done,) = generate(model, prompt.tolist(), Sampling(temperature=0.0), max_new_tokens=20, stop=set())
    expected = theirs.generate(
        input_ids=prompt,
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        attention_mask=torch.ones_like(prompt),
    )
    assert done.tokens == expected[0, 6:].tolist()


@pytest.mark.parametrize(
    "settings", [{}, {"dora": True}, {"rslora": True}, {"embedding": True}, {"head": True}]
)
def test_a_fresh_adapter_changes_nothing(settings):
    base = ours(oracle("llama tied"))
    model = add_lora_(copy.deepcopy(base), LoRASettings(rank=4, **settings))
    tokens = random_tokens(2, 9)
    torch.testing.assert_close(logits_of(model, tokens), logits_of(base, tokens), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"dora": True}, {"rslora": True}, {"embedding": True}, {"head": True}]
)
@pytest.mark.parametrize("family", ["llama", "llama tied", "qwen2"])
def test_effective_weights_give_the_same_logits(family, settings):
    model = shuffle_(add_lora_(ours(oracle(family)), LoRASettings(rank=4, **settings)), std=0.05)
    tokens = random_tokens(2, 12)
    expected = logits_of(model, tokens)
    assert (expected - logits_of(ours(oracle(family)), tokens)).abs().max() > 0.1
    merged = ours(oracle(family))
    with torch.no_grad():
        for path, layer in model.named_modules():
            if isinstance(layer, LoRALayer):
                merged.get_submodule(path).weight.copy_(layer.effective_weight())
    torch.testing.assert_close(logits_of(merged, tokens), expected, atol=1e-4, rtol=1e-5)


def test_a_change_by_hand():
    """W = 1, A = [1 2], B = [[3], [5]], alpha 4, rank 1, x = (1, 1): W x + 4 · B (A x) = 2 + 4 · (9, 15)."""
    layer = torch.nn.Linear(2, 2, bias=False)
    model = ours(oracle("llama"))
    model.model.layers[0].mlp.gate_proj = layer
    add_lora_(model, LoRASettings(rank=1, alpha=4, targets=("layers.0.mlp.gate_proj",)))
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.lora_A["default"].copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_B["default"].copy_(torch.tensor([[3.0], [5.0]]))
    assert layer(torch.ones(1, 2)).tolist() == [[38.0, 62.0]]
    assert layer.effective_weight().tolist() == [[13.0, 25.0], [21.0, 41.0]]


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_alpha_and_rank_make_the_scale(rslora, scale):
    settings = LoRASettings(rank=4, alpha=8, rslora=rslora)
    assert settings.scale_of("q_proj") == scale
    pattern = LoRASettings(rank=4, alpha=8, ranks=(("q_proj", 16),), alphas=(("q_proj", 4.0),))
    assert (pattern.rank_of("model.layers.0.self_attn.q_proj"), pattern.scale_of("a.q_proj")) == (16, 0.25)
    assert (pattern.rank_of("k_proj"), pattern.scale_of("k_proj")) == (4, 2.0)


def test_dropout_is_off_in_evaluation_and_of_the_low_rank_path_only():
    base = ours(oracle("llama"))
    model = add_lora_(copy.deepcopy(base), LoRASettings(rank=4, dropout=0.5))
    tokens = random_tokens(2, 12)
    model.train()  # B is zero: nothing the adapter reads can matter
    assert torch.equal(logits_of(model, tokens), logits_of(base, tokens))
    shuffle_(model)
    assert not torch.equal(logits_of(model, tokens), logits_of(model, tokens))
    model.eval()
    assert torch.equal(logits_of(model, tokens), logits_of(model, tokens))
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, LoRALayer):
            module.kinds = {name: type(kind)(kind.scale, 0.0) for name, kind in module.kinds.items()}
    assert torch.equal(logits_of(model, tokens), logits_of(plain, tokens))


def test_dropout_with_embeddings_trains():
    """torchllms dropped token ids there, which no dropout takes."""
    model = add_lora_(ours(oracle("llama tied")), LoRASettings(rank=4, dropout=0.5, embedding=True)).train()
    logits_of(model, random_tokens(1, 5)).sum().backward()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_pissa_begins_where_peft_begins_and_leaves_a_plain_adapter(dropout, tmp_path):
    theirs = peft.get_peft_model(
        oracle("llama"), peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa", target_modules=LINEARS)
    ).eval()
    model = add_lora_(ours(oracle("llama")), LoRASettings(rank=4, alpha=6, init="pissa", dropout=dropout))
    settle_(model)
    layer = model.model.layers[0].mlp.up_proj
    their_layer = theirs.base_model.model.model.layers[0].mlp.up_proj
    torch.testing.assert_close(layer.weight, their_layer.base_layer.weight, atol=1e-5, rtol=1e-5)
    change = their_layer.get_delta_weight("default")
    torch.testing.assert_close(layer.change("default"), change, atol=1e-5, rtol=1e-5)
    shuffle_(model.eval())
    saved_by_us(model, tmp_path)
    tokens = random_tokens(2, 9)
    plain = loaded_by_peft("llama", tmp_path)
    torch.testing.assert_close(logits_of(model, tokens), plain(tokens).logits, atol=1e-4, rtol=1e-4)


def test_the_default_is_every_linear_layer_of_the_blocks_and_no_other():
    model = ours(oracle("llama"))
    names = targets_of(model, LoRASettings())
    assert len(names) == 14 and {name.rsplit(".", 1)[-1] for name in names} == set(LINEARS)
    some = targets_of(model, LoRASettings(targets=("q_proj", r"layers\.1\..*_proj"), head=True))
    assert some[0] == "model.layers.0.self_attn.q_proj" and some[-1] == "lm_head" and len(some) == 9
    with pytest.raises(UserError, match="no linear layer or embedding is named q_projj"):
        targets_of(model, LoRASettings(targets=("q_projj",)))


def test_an_adapter_for_the_embedding_of_a_tied_model_is_the_heads_too():
    model = shuffle_(
        add_lora_(ours(oracle("llama tied")), LoRASettings(rank=4, embedding=True, targets=("q_proj",)))
    )
    embedding = model.model.embed_tokens
    assert torch.equal(model.head_weight, embedding.weight + embedding.change("default"))
    torch.testing.assert_close(embedding(torch.arange(61)), model.head_weight, atol=1e-6, rtol=1e-5)


def test_a_seed_gives_one_adapter_and_another_gives_another():
    def first(seed):
        model = add_lora_(ours(oracle("llama")), LoRASettings(rank=4), seed=seed)
        return [p for name, p in model.named_parameters() if ".lora_A." in name]

    assert all(torch.equal(a, b) for a, b in zip(first(3), first(3), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first(3), first(4), strict=True))
    for matrix in first(3):  # kaiming_uniform_(a=sqrt(5)): U(-1/sqrt(in), 1/sqrt(in))
        bound = matrix.shape[1] ** -0.5
        assert matrix.abs().max() <= bound and abs(matrix.std() - bound / 3**0.5) < 0.2 * bound


def test_a_rank_that_a_layer_cannot_have_is_refused():
    with pytest.raises(UserError, match="lora_rank 17 is more than a layer of 16 x 32 has"):
        add_lora_(ours(oracle("llama")), LoRASettings(rank=17, targets=("k_proj",)))


def test_an_adapter_that_changes_embedding_and_head_apart_goes_on_an_untied_model(tmp_path):
    """Whoever trains embed_tokens alone under PEFT leaves the head as it was."""
    theirs = by_peft("llama tied", r=4, lora_alpha=6, target_modules=["embed_tokens"])
    directory = saved_by_peft(theirs, tmp_path)
    with pytest.raises(UserError, match="apart"):
        attach_(ours(oracle("llama tied")), read_peft(directory))
