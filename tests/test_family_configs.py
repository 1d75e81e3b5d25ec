"""A published config.json is read as transformers reads it; what we would compute wrongly is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from family_models import MODELS
from published_configs import CONFIGS, COUNTS
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tutelage.checkpoint.hf import read_config
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.rope import rope


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_read_and_has_the_published_size(name):
    config = ModelConfig.from_hf(CONFIGS[name])
    assert config.n_parameters == COUNTS[name]
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_what_we_write_of_a_published_config_transformers_reads_as_the_same(name):
    """All that its class computes with, by its own reading of both."""
    published = CONFIGS[name]
    kind = CONFIG_MAPPING[published["model_type"]]
    theirs = kind.from_dict(dict(published)).to_dict()
    ours = kind.from_dict(ModelConfig.from_hf(published).to_hf()).to_dict()
    notes = {
        "transformers_version",
        "architectures",
        "dtype",
        "hidden_act",
        "initializer_range",
        "_name_or_path",
    }
    notes |= {
        "pretraining_tp",
        "use_cache",
        "cache_implementation",
        "no_rope_layer_interval",
        "max_window_layers",
    }
    for key in kind().to_dict().keys() - notes:
        if key == "sliding_window" and not theirs.get("use_sliding_window", True):
            continue
        if key == "rope_parameters":
            assert same_ropes(ours[key], theirs[key]), (ours[key], theirs[key])
        elif not key.endswith("token_id"):
            assert ours.get(key) == theirs.get(key), key


def same_ropes(ours, theirs) -> bool:
    """Whether theirs says nothing that ours does not say too."""
    if "full_attention" in theirs:
        return all(same_ropes(ours[kind], theirs[kind]) for kind in theirs)
    return all(ours.get(key, 1.0) == value for key, value in theirs.items() if key != "type")


@pytest.mark.parametrize("name", CONFIGS)
def test_rotary_frequencies_of_a_published_config_are_those_of_transformers(name):
    """And what cos and sin are multiplied by. Of two layers."""
    small = {"num_hidden_layers": 2, "intermediate_size": 8}
    values = CONFIGS[name] | small
    values |= {key: values[key][:2] for key in ("layer_types", "no_rope_layers") if key in values}
    if "full_attention" not in str(values) and values["model_type"].startswith("gemma3"):
        values |= {"layer_types": ["full_attention", "sliding_attention"]}
    config = ModelConfig.from_hf(values)
    theirs = CONFIG_MAPPING[values["model_type"]].from_dict(dict(values))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(theirs)
    embedding = type(model.model.rotary_emb)(theirs)
    for kind, prefix in (("all", "full_attention_"), ("local", "sliding_attention_")):
        if config.local_theta is None:
            prefix = ""
        ours = rope(config.rotary_dim, *config.rope(kind))
        wanted = getattr(embedding, f"{prefix}inv_freq")
        torch.testing.assert_close(ours.frequencies[0], wanted, rtol=1e-6, atol=0)
        assert ours.amplitude == pytest.approx(getattr(embedding, f"{prefix}attention_scaling"))


WRONG = {
    "llama": [
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported; only 'silu' is"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported; only None is"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope type linear needs factor"),
        ({"rope_theta": None, "rope_parameters": None}, "rope_theta is null, and no number was meant"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [1]}},
            "rope type linear has mrope_section, whose meaning is not known here",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [], "long_factor": []}},
            "rope type 'longrope' is not supported; supported are default, linear, llama3, yarn",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported; only 1.0 is"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not supported"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier = 12.0 is not supported; only 1.0 is"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers = [1, 0] is not supported; only None is"),
        ({"clip_qkv": 8.0}, "the key clip_qkv = 8.0 is not known here, and could change what the model"),
        (
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {"rope_theta": 5.0}}},
            "rope_parameters differ from layer to layer, which is not supported",
        ),
    ],
    "mistral": [
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types = [")
    ],
    "qwen3": [({"layer_types": ["linear_attention"] * 3}, "layer_types = ['linear_attention'")],
    "gemma": [({"hidden_activation": "gelu"}, "hidden_activation = 'gelu' is not supported; only None is")],
    "gemma2": [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention = True is not supported"),
        (
            {"hidden_activation": "silu"},
            "hidden_activation = 'silu' is not supported; only 'gelu_pytorch_tanh'",
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types are 2, and num_hidden_layers",
        ),
        ({"sliding_window_size": 9}, "sliding_window_size is 9, and sliding_window is "),
    ],
    "gemma3_text": [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported; only None is"),
        ({"sliding_window": None}, "sliding_window is missing, by which layers differ in gemma3_text"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope type 'linear' of sliding_attention is not supported",
        ),
    ],
    "phi3": [
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor has 1 numbers, and rotary embeddings turn 4 pairs",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 4,
                    "long_factor": [1.0] * 4,
                    "original_max_position_embeddings": 5,
                }
            },
            "original_max_position_embeddings is 4096 beside the scaling and 5 inside it",
        ),
        ({"lm_head_bias": True}, "the key lm_head_bias = True is not known here"),
        ({"interpolate_factor": 2}, "interpolate_factor = 2 is not supported; only 1 is"),
    ],
    "smollm3": [({"mlp_bias": True}, "mlp_bias = True is not supported; only False is")],
    "olmo2": [({"attention_bias": True}, "attention_bias = True is not supported; only False is")],
}
CASES = [(family, changes, says) for family, cases in WRONG.items() for changes, says in cases]


@pytest.mark.parametrize(("family", "changes", "says"), CASES)
def test_what_would_be_computed_wrongly_is_refused_by_its_key(family, changes, says):
    values = next(config for config in MODELS.values() if config.model_type == family).to_dict()
    ModelConfig.from_hf(values)
    with pytest.raises(UserError) as refusal:
        ModelConfig.from_hf(values | changes)
    assert says in str(refusal.value)


@pytest.mark.parametrize("model_type", sorted({config.model_type for config in MODELS.values()}))
def test_all_keys_of_transformers_own_class_are_known(model_type):
    """Its defaults and what it writes, with every number of generating that once stood there."""
    values = CONFIG_MAPPING[model_type](sliding_window=8).to_dict()
    values |= {"max_length": 20, "temperature": 0.7, "top_p": 0.9, "do_sample": True, "num_beams": 4}
    values |= {"_attn_implementation_autoset": True, "unsloth_version": "2025.1", "output_attentions": False}
    ModelConfig.from_hf(values)


def test_the_code_beside_phi3_is_left_alone_and_other_code_is_refused(tmp_path):
    """Its published files name code that transformers has had since as a class of its own."""
    code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoTokenizer": "Xenova/gpt-4o"}
    code |= {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIGS["Phi-4-mini"] | {"auto_map": code}))
    assert read_config(path) == ModelConfig.from_hf(CONFIGS["Phi-4-mini"])
    other = code | {"AutoModelForCausalLM": "modeling_phi3_yarn.Phi3ForCausalLM"}
    for values in ({"auto_map": other}, {"auto_map": code, "model_type": "llama"}, {"auto_map": [1]}):
        path.write_text(json.dumps(CONFIGS["Phi-4-mini"] | values))
        with pytest.raises(UserError, match="auto_map asks to run Python code"):
            read_config(path)


def test_the_first_files_of_phi3_had_other_names_for_longrope():
    published = CONFIGS["Phi-3 mini 128k"]
    for name in ("su", "yarn"):
        values = published | {"rope_scaling": published["rope_scaling"] | {"type": name}}
        assert ModelConfig.from_hf(values) == ModelConfig.from_hf(published)


def test_longrope_keeps_its_temperature_when_a_model_is_trained_on_longer_rows():
    """Left out, it follows max_position_embeddings; changed, it must be said: sqrt(1 + ln 32 / ln 4096)."""
    config = ModelConfig.from_hf(CONFIGS["Phi-3 mini 128k"])
    factor = math.sqrt(1 + math.log(32) / math.log(4096))
    assert config.rope_scaling["attention_factor"] == pytest.approx(factor)
    assert "attention_factor" not in config.to_hf()["rope_scaling"]
    longer = replace(config, max_positions=262144)
    assert longer.to_hf()["rope_scaling"]["attention_factor"] == pytest.approx(factor)
    assert ModelConfig.from_hf(longer.to_hf()) == longer


def test_the_frequencies_of_yarn_worked_by_hand():
    """8 numbers, base 10000, factor 4, of 32 positions: 32 rotations lie before pair 0, one at pair 0.7.

    Pair 0 so is kept to 1 − 0/1 and pair 1 divided by 4; cos and sin are multiplied by 0.1 ln 4 + 1.
    """
    values = CONFIGS["Qwen3 0.6B"] | {"rope_theta": 10000.0, "head_dim": 8, "max_position_embeddings": 128}
    values |= {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}
    config = ModelConfig.from_hf(values)
    found = rope(8, *config.rope("all"))
    assert found.frequencies[0].tolist() == pytest.approx([1.0, 0.1 / 4, 0.01 / 4, 0.001 / 4])
    assert found.amplitude == pytest.approx(1.138629)


def test_a_directory_of_ours_is_one_of_transformers(tmp_path):
    """Written as config.json, by the automatic class."""
    for name, values in CONFIGS.items():
        (tmp_path / "config.json").write_text(json.dumps(ModelConfig.from_hf(values).to_hf()))
        assert AutoConfig.from_pretrained(tmp_path).model_type == values["model_type"], name
