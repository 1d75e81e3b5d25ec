"""PEFT's files: what is wrong in them or not read here is refused in words; what we write, PEFT loads."""

import json

import peft
import pytest
import torch
from peft_models import KINDS, LINEARS, based, by_peft, logits_of, saved_by_peft
from safetensors.torch import load_file, save_file
from tiny_models import random_tokens
from transformers import AutoModelForCausalLM

from tutelage.checkpoint.hf import load_model
from tutelage.checkpoint.peft import read_peft
from tutelage.errors import UserError

TOKENS = random_tokens(2, 12)


def written(directory, **options):
    """The directory of an adapter of PEFT's, random."""
    return saved_by_peft(by_peft("llama", **{"r": 4, "lora_alpha": 6} | options), directory)


def with_config(directory, **values):
    path = directory / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return directory


def with_tensors(directory, keep):
    path = directory / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if keep(key)}, path)
    return directory


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_4"])
def test_an_adapter_that_changed_its_base_is_refused_until_peft_makes_it_plain(start, tmp_path):
    base = based(tmp_path / "base", "llama")
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=LINEARS, init_lora_weights=start),
    ).eval()
    model.peft_config["default"].init_lora_weights = True  # as PEFT says to save the start
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = start
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=draw))
    expected = model(TOKENS).logits
    with pytest.raises(UserError, match=f"init_lora_weights = '{start}' .*path_initial_model_for_weight"):
        read_peft(saved_by_peft(model, tmp_path / "as_it_is"))
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    found = logits_of(load_model(base, adapters=[tmp_path / "plain"]), TOKENS)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "start, remedy",
    [
        ("corda", "save it with PEFT's path_initial"),
        ("lora_ga", "save it with PEFT's path_initial"),
        ("OLoRA", "save it with PEFT's path_initial"),
        ("loftq", "merge it with PEFT"),
        ("something new", "merge it with PEFT"),
    ],
)
def test_starts_are_refused_unless_known_to_leave_the_base_alone(start, remedy, tmp_path):
    with pytest.raises(UserError, match=f"init_lora_weights = '{start}' changed the base model.*{remedy}"):
        read_peft(with_config(written(tmp_path), init_lora_weights=start))


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "Gaussian", "eva", "orthogonal", "mica"])
def test_starts_that_leave_the_base_alone_are_read(start, tmp_path):
    assert read_peft(with_config(written(tmp_path), init_lora_weights=start)).layers


MISTAKES = {
    "rank 0": ({"r": 0}, "r = 0, wanted a whole number from 1"),
    "rank a text": ({"r": "4"}, "r = '4', wanted"),
    "rank null": ({"r": None}, "r = None, wanted"),
    "rank true": ({"r": True}, "r = True, wanted"),
    "rank of a pattern": ({"rank_pattern": {"q_proj": 0.5}}, "rank_pattern 'q_proj' = 0.5, wanted"),
    "alpha a text": ({"lora_alpha": "x"}, "lora_alpha = 'x', wanted a number above 0"),
    "alpha 0": ({"lora_alpha": 0}, "lora_alpha = 0, wanted"),
    "alpha not finite": ({"lora_alpha": float("nan")}, "lora_alpha = nan, wanted"),
    "alpha of a pattern": ({"alpha_pattern": {"q_proj": []}}, r"alpha_pattern 'q_proj' = \[\], wanted"),
    "dropout": ({"lora_dropout": "a"}, "lora_dropout = 'a', wanted a number from 0 to 1"),
    "a list of patterns": (
        {"rank_pattern": ["q_proj"]},
        r"rank_pattern = \['q_proj'\], wanted an object of patterns",
    ),
    "pattern of ranks": ({"rank_pattern": {"*q": 4}}, r"rank_pattern has '\*q', which is no pattern"),
    "pattern of alphas": ({"alpha_pattern": {"(": 4}}, r"alpha_pattern has '\(', which is no pattern"),
    "pattern of targets": ({"target_modules": "(q_proj"}, r"target_modules has '\(q_proj', which is no"),
    "targets a number": ({"target_modules": 3}, "target_modules = 3, wanted a pattern or a list"),
    "tokens of their own": ({"trainable_token_indices": [3]}, "trainable_token_indices = .* not supported"),
}


@pytest.mark.parametrize("values, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_config_is_named_with_its_file_and_key(values, message, tmp_path):
    with pytest.raises(UserError, match=rf"adapter_config\.json: {message}"):
        read_peft(with_config(written(tmp_path), **values))


@pytest.mark.parametrize("text, message", [("[1]", "holds list, not an object"), ('{"r": ', "is not JSON")])
def test_a_config_that_is_no_object_is_named(text, message, tmp_path):
    (written(tmp_path) / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_peft(tmp_path)


HALVES = {
    "nothing": (lambda key: False, {}, "holds none"),
    "no magnitudes": (lambda key: "magnitude" not in key, {"use_dora": True}, "has no lora_magnitude_vector"),
    "no B": (lambda key: "lora_B" not in key, {}, "has no lora_B"),
    "one target only": (
        lambda key: "q_proj" in key,
        {},
        "target_modules name .*_proj, and the adapter has no such layer",
    ),
    "one layer less": (
        lambda key: "0.self_attn.v_proj" not in key,
        {},
        r"name v_proj, and the adapter has no model\.layers\.0\.self_attn\.v_proj",
    ),
    "no target": (
        lambda key: "norm" in key,
        {"modules_to_save": ["input_layernorm"]},
        "target_modules are .*, and the adapter has none of them",
    ),
    "none of a pattern": (
        lambda key: "norm" in key,
        {"target_modules": r".*\.v_proj", "modules_to_save": ["input_layernorm"]},
        "target_modules are .*, and the adapter has none of them",
    ),
}


@pytest.mark.parametrize("keep, options, message", HALVES.values(), ids=HALVES)
def test_half_an_adapter_is_refused(keep, options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_peft(with_tensors(written(tmp_path, **options), keep))


WHOLE = {
    "pattern": {"target_modules": r".*layers\.1\..*(q|v)_proj"},
    "all linear": {"target_modules": "all-linear"},
    "one block": {"layers_to_transform": [1]},
    "one block by a pattern": {"layers_to_transform": 1, "layers_pattern": "layers"},
    "left out": {"exclude_modules": ["q_proj"]},
    "left out in one block": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "by whole names": {"target_modules": ["model.layers.1.self_attn.q_proj", "v_proj"]},
    "by ends with numbers": {"target_modules": ["1.self_attn.q_proj", "v_proj"]},
    "layers of other models": {"target_modules": ["c_attn", "query_key_value", "q_proj"]},
    "in full": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["q_proj"]},
    "in full in one block": {"target_modules": ["q_proj"], "modules_to_save": ["layers.0.self_attn.q_proj"]},
    "a block in full": {"modules_to_save": ["layers.0"]},
    "embedding and head": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "biases": {"bias": "all", "target_modules": ["q_proj"]},
    "alphas": {"rank_pattern": {r"^model\.layers\.0\..*": 2}, "alpha_pattern": {"q_proj": 0.5}},
}


@pytest.mark.parametrize("options", WHOLE.values(), ids=WHOLE)
def test_what_peft_writes_whole_is_read(options, tmp_path):
    family = "qwen2" if "bias" in options else "llama"
    theirs = by_peft(family, **{"r": 4, "lora_alpha": 6} | options)
    base = based(tmp_path / "base", family)
    model = load_model(base, adapters=[saved_by_peft(theirs, tmp_path / "adapter")])
    torch.testing.assert_close(logits_of(model, TOKENS), theirs(TOKENS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_pickled_weights_are_read_as_tensors(kind, tmp_path):
    theirs = by_peft("llama", **KINDS[kind])
    plain = read_peft(saved_by_peft(theirs, tmp_path / "plain"))
    theirs.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert not (tmp_path / "pickled" / "adapter_model.safetensors").exists()
    pickled = read_peft(tmp_path / "pickled")
    assert plain.layers.keys() == pickled.layers.keys() and plain.full.keys() == pickled.full.keys()
    for name, low in plain.layers.items():
        assert torch.equal(low.a, pickled.layers[name].a) and torch.equal(low.b, pickled.layers[name].b)


class Runs:
    """What a pickle would run if it were read as one."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": Runs()}, "is damaged, or holds more than tensors"),
        ([torch.zeros(2)], "holds a list, not tensors by name"),
        ({"model": {"a": torch.zeros(2)}}, "holds a dict as 'model', not tensors by name"),
    ],
)
def test_a_pickle_of_anything_else_is_refused_and_not_run(content, message, tmp_path):
    directory = written(tmp_path)
    (directory / "adapter_model.safetensors").unlink()
    torch.save(content, directory / "adapter_model.bin")
    with pytest.raises(UserError, match=message):
        read_peft(directory)


def test_dora_of_an_embedding_is_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="embed_tokens is an embedding with DoRA, which is for linear layers"):
        read_peft(written(tmp_path, use_dora=True, target_modules=["q_proj", "embed_tokens"]))
