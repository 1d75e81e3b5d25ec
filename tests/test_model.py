"""The model computes what transformers computes, packed or not, cached or not, and reads the same config."""

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny_models import CONFIGS, CONTEXT, WINDOW, oracle, ours, positions_of, random_tokens
from torch.nn import functional as F
from transformers import AutoConfig

from tutelage.errors import UserError
from tutelage.model.cache import KVCache
from tutelage.model.config import ModelConfig
from tutelage.model.families import FAMILIES
from tutelage.model.rope import frequencies
from tutelage.model.transformer import Transformer, initialise_

LONG = 100  # past every window and past the context before llama3 scaling


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(name):
    assert max(WINDOW, CONTEXT) < LONG
    theirs = oracle(name)
    model = ours(theirs)
    for rows, length in [(1, 1), (3, 7), (2, LONG)]:
        tokens = random_tokens(rows, length)
        logits = model.unembed(model(tokens, positions_of(tokens)))
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, theirs(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_logits_are_as_close_to_exact_ones_as_those_of_transformers(name):
    tokens = random_tokens(2, LONG)
    exact, theirs = oracle(name), oracle(name, torch.bfloat16)
    model = ours(theirs)
    wanted = exact(tokens).logits
    our_error = (model.unembed(model(tokens, positions_of(tokens))) - wanted).abs().mean()
    their_error = (theirs(tokens).logits.float() - wanted).abs().mean()
    assert our_error <= 1.1 * their_error < 0.1 * wanted.abs().mean()


@pytest.mark.parametrize("name", ["llama 3.1", "qwen2 window"])
def test_gradients_equal_those_of_transformers(name):
    theirs, tokens = oracle(name), random_tokens(2, 40)
    model = ours(theirs)
    with torch.enable_grad():
        theirs(tokens, labels=tokens).loss.backward()
        logits = model.unembed(model(tokens, positions_of(tokens)))
        F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    wanted = dict(theirs.named_parameters())
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_cache_changes_no_greedy_token(name):
    """Token for token what transformers' generate() says, prompt read in two parts, then one at a time."""
    theirs, prompt = oracle(name), random_tokens(2, 21)
    wanted = theirs.generate(prompt, do_sample=False, max_new_tokens=24, min_new_tokens=24, eos_token_id=None)
    model = ours(theirs)
    kv = KVCache(model.config, rows=2, length=45, dtype=torch.float32)
    model(prompt[:, :5], positions_of(prompt[:, :5]), kv=kv)
    tokens, fresh = prompt, prompt[:, 5:]
    for _ in range(24):
        positions = torch.arange(tokens.shape[1] - fresh.shape[1], tokens.shape[1]).expand(2, -1)
        fresh = model.unembed(model(fresh, positions, kv=kv)[:, -1:]).argmax(-1)
        tokens = torch.cat([tokens, fresh], dim=1)
    assert tokens.tolist() == wanted.tolist()


@pytest.mark.parametrize("name", ["llama", "qwen2 window"])
def test_ragged_prompts_share_a_cache_by_right_padding(name):
    model, tokens = ours(oracle(name)), random_tokens(3, 20)
    lengths = [3, 20, 11]
    kv = KVCache(model.config, rows=3, length=21, dtype=torch.float32)
    prefilled = model(tokens, positions_of(tokens), kv=kv)
    following = random_tokens(3, 1, seed=2)
    decoded = model(following, torch.tensor(lengths)[:, None], kv=kv)
    for row, length in enumerate(lengths):
        alone = torch.cat([tokens[row : row + 1, :length], following[row : row + 1]], dim=1)
        wanted = model(alone, positions_of(alone))
        torch.testing.assert_close(prefilled[row, :length], wanted[0, :-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(decoded[row], wanted[0, -1:], atol=1e-5, rtol=1e-5)


def packed(lengths, seed=1):
    """One row of documents of these lengths and five positions of padding: tokens, positions, docs."""
    tokens = random_tokens(1, sum(lengths) + 5, seed)
    positions = torch.cat([torch.arange(length) for length in lengths] + [torch.zeros(5, dtype=torch.int64)])
    docs = [doc for doc, length in enumerate(lengths) for _ in range(length)] + [-1] * 5
    return tokens, positions[None], torch.tensor(docs)[None]


@pytest.mark.parametrize("name", CONFIGS)
def test_packing_changes_no_prediction(name):
    model, lengths = ours(oracle(name)), [1, 33, 2, 12]
    tokens, positions, docs = packed(lengths)
    together, start = model(tokens, positions, docs), 0
    for length in lengths:
        alone = tokens[:, start : start + length]
        torch.testing.assert_close(
            together[:, start : start + length], model(alone, positions_of(alone)), atol=1e-5, rtol=1e-5
        )
        start += length
    assert together.isfinite().all()


@pytest.mark.parametrize("name", ["llama", "mistral window"])
def test_a_packed_document_changes_the_others_by_exactly_nothing(name):
    model = ours(oracle(name))
    tokens, positions, docs = packed([4, 30, 1, 17])
    before = model(tokens, positions, docs)
    for doc in (0, 1, 2, 3, -1):
        changed = torch.where(docs == doc, random_tokens(1, tokens.shape[1], seed=9), tokens)
        assert not torch.equal(changed, tokens)
        after, others = model(changed, positions, docs), docs != doc
        assert torch.equal(before[others], after[others])
        if doc >= 0:
            assert not torch.equal(before[docs == doc], after[docs == doc])


def test_the_parameter_counts_of_known_models():
    shape = {"dim": 288, "n_layers": 6, "n_heads": 6, "n_kv_heads": 6, "head_dim": 48, "ffn_dim": 768}
    for vocab_size, wanted in [(32000, 15_191_712), (4096, 7_155_360)]:
        config = ModelConfig(vocab_size=vocab_size, tied=True, **shape)
        with torch.device("meta"):
            model = Transformer(config)
        assert config.n_parameters == sum(p.numel() for p in model.parameters()) == wanted
    for name in CONFIGS:
        model = ours(oracle(name))
        assert model.config.n_parameters == sum(p.numel() for p in model.parameters())


def test_llama3_frequencies_match_the_golden_vector():
    """Base 500000, head dim 128, factor 8, low 1, high 4, context 8192: kept, blended, divided by 8."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, scaled = frequencies(128, 500000.0), frequencies(128, 500000.0, scaling)
    wanted = {20: (1.656044e-2, 1.656044e-2), 30: (2.131120e-3, 1.371894e-3), 35: (7.644970e-4, 9.556212e-5)}
    for pair, values in wanted.items():
        assert (plain[pair].item(), scaled[pair].item()) == pytest.approx(values, rel=1e-5)


@pytest.mark.parametrize(("given", "std"), [(0.02, 0.02), (None, 0.0559017)])
def test_fresh_weights_are_drawn_as_gpt2_draws_them(given, std):
    """Left out, the standard deviation is that of the model's width: sqrt(2 / (5 · 128))."""
    config = ModelConfig(
        vocab_size=512, dim=128, n_layers=8, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=256, qkv_bias=True
    )
    model = Transformer(config)
    initialise_(model, seed=0, std=given)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("bias"):
            assert not parameter.any(), name
        else:
            into_residual = "o_proj" in name or "down_proj" in name
            wanted = std / math.sqrt(16) if into_residual else std
            assert parameter.std().item() == pytest.approx(wanted, rel=0.05), name
            assert abs(parameter.mean().item()) < 4 * wanted / math.sqrt(parameter.numel()), name


def test_the_seed_alone_decides_fresh_weights():
    config = ours(oracle("llama")).config
    first, again, other = (Transformer(config) for _ in range(3))
    initialise_(first, seed=7)
    torch.manual_seed(123)  # of no concern to it
    initialise_(again, seed=7)
    initialise_(other, seed=8)
    pairs = list(zip(first.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.head_weight, other.head_weight)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_round_trips_and_transformers_reads_the_same_model(name, tmp_path):
    config = ModelConfig.from_hf(CONFIGS[name].to_dict())
    written = config.to_hf()
    assert ModelConfig.from_hf(written) == config
    newer = ("rope_parameters", "dtype", "layer_types")
    older = {key: value for key, value in written.items() if key not in newer}
    assert ModelConfig.from_hf(older) == config, "transformers 4 spells it so"
    (tmp_path / "config.json").write_text(json.dumps(written))
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is type(CONFIGS[name])
    arithmetic = [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "layer_types"),
        *("sliding_window", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"),
    ]
    for key in arithmetic:
        assert getattr(read, key, None) == getattr(CONFIGS[name], key, None), key


def test_several_end_tokens_survive_the_round_trip():
    config = replace(ModelConfig.from_hf(CONFIGS["llama"].to_dict()), eos=(2, 5), bos=None, pad=None)
    assert ModelConfig.from_hf(config.to_hf()) == config
    assert ModelConfig.from_hf(replace(config, eos=()).to_hf()).eos == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "mamba"},
            f"config.json: model_type 'mamba' is not supported; supported are {', '.join(FAMILIES)}",
        ),
        (
            {"model_type": None},
            f"config.json: model_type None is not supported; supported are {', '.join(FAMILIES)}",
        ),
        ({"hidden_act": "gelu"}, "config.json: hidden_act = 'gelu' is not supported; only 'silu' is"),
        ({"mlp_bias": True}, "config.json: mlp_bias = True is not supported; only False is"),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "config.json: quantization_config = {'quant_method': 'gptq'} is not supported; only None is",
        ),
        ({"attention_bias": True}, "config.json: attention_bias = True is not supported; only False is"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "config.json: layer_types = ['full_attention', 'sliding_attention'] is not supported for llama",
        ),
        (
            {"mystery_scale": 1.5},
            "config.json: the key mystery_scale = 1.5 is not known here, and could change what the model "
            "computes; remove it if it does not",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
            "config.json: rope type 'dynamic' is not supported; supported are default, linear, llama3, yarn",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0}},
            "config.json: rope type llama3 needs low_freq_factor, high_freq_factor, "
            "original_max_position_embeddings",
        ),
        (
            {"num_key_value_heads": 3},
            "4 attention heads cannot share 3 key-value heads: the first must be a multiple of the second",
        ),
        ({"head_dim": 7}, "head_dim 7 is odd; rotary embeddings turn pairs"),
        ({"vocab_size": 0}, "vocab_size is 0; a model needs at least 1"),
    ],
)
def test_configs_that_would_be_computed_wrongly_are_refused(changes, message):
    with pytest.raises(UserError) as refusal:
        ModelConfig.from_hf(CONFIGS["llama"].to_dict() | changes)
    assert str(refusal.value) == message


def test_missing_keys_of_a_config_are_all_named():
    with pytest.raises(UserError) as refusal:
        ModelConfig.from_hf({"model_type": "llama", "vocab_size": 5, "num_hidden_layers": 1})
    assert str(refusal.value) == (
        "config.json: the keys hidden_size, intermediate_size, num_attention_heads are missing"
    )
