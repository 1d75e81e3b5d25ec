"""Numbers in a config.json: what stands for none is none, and what no model can have is refused by key."""

import json
import math

import pytest
from published_configs import CONFIGS
from tiny_models import oracle

from tutelage.checkpoint.hf import load_config
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny Llama that transformers wrote."""
    directory = tmp_path_factory.mktemp("llama")
    oracle("llama").save_pretrained(directory)
    return directory


@pytest.fixture
def written(whole, tmp_path):
    """Writes a config.json, of the Llama with these changes, and a generation_config.json."""

    def write(changes, generation=None):
        values = json.loads((whole / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(values))
        (tmp_path / "generation_config.json").write_text(json.dumps(generation or {}))
        return tmp_path

    return write


def test_minus_one_is_no_token_in_either_file_and_is_not_written_on(written):
    none = {f"{name}_token_id": -1 for name in ("bos", "eos", "pad")}
    config = load_config(written(none))
    assert (config.bos, config.eos, config.pad) == (None, (), None)
    values = config.to_hf()
    assert [values[key] for key in none] == [None, None, None]
    assert load_config(written({"eos_token_id": [7, -1]})).eos == (7,)
    config = load_config(written({"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": None}, none))
    assert (config.bos, config.eos, config.pad) == (5, (6,), None)


@pytest.mark.parametrize("key", ["rms_norm_eps", "max_position_embeddings"])
@pytest.mark.parametrize("name", ["Llama 2 7B", "OLMo 2 1B", "Gemma 2 2B", "Phi-3 mini 4k"])
def test_null_where_a_number_must_be_is_the_familys_own(name, key, tmp_path):
    values = {each: value for each, value in CONFIGS[name].items() if each != key}
    assert ModelConfig.from_hf(values | {key: None}) == ModelConfig.from_hf(values)


NO_NUMBERS = ["8.0", 0, -1, math.nan, math.inf, 10**30, True, [2.0], {}]
NULLS_OF_LLAMA3 = [(key, None) for key in ("factor", "low_freq_factor", "high_freq_factor")]
BAD_ROPES = {
    "Llama 3.2 1B": [*((key, bad) for key, _ in NULLS_OF_LLAMA3 for bad in NO_NUMBERS), *NULLS_OF_LLAMA3]
    + [("original_max_position_embeddings", bad) for bad in ("8192", 0, 8192.5, math.nan, 10**30)]
    + [("high_freq_factor", 0.5), ("factor", 1e-300), ("rope_theta", "5e5"), ("rope_type", 3)],
    "Qwen2.5 7B Instruct with yarn": [("factor", "4"), ("factor", None), ("beta_fast", "32")]
    + [("beta_slow", -1), ("attention_factor", 0), ("mscale", "1"), ("mscale_all_dim", -1)]
    + [("truncate", "no"), ("rope_theta", 1), ("original_max_position_embeddings", "32768")],
    "Phi-3 mini 128k": [("short_factor", bad) for bad in (None, 1.0, "x", ["1"] * 48, [0] * 48)]
    + [("long_factor", None), ("long_factor", [math.nan] * 48), ("factor", "32")],
    "Gemma 3 4B, the text": [("factor", None), ("factor", 0), ("factor", "8")],
}
BAD_VALUES = {
    "Llama 3.2 1B": [
        ("rms_norm_eps", 10**30),
        ("rope_theta", 1e-300),
        ("rope_theta", 10**30),
        ("id2label", 3),
    ],
    "Gemma 2 2B": [
        (key, bad)
        for key in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
        for bad in NO_NUMBERS
    ],
    "Gemma 3 1B": [("rope_local_base_freq", bad) for bad in NO_NUMBERS]
    + [("sliding_window_pattern", bad) for bad in ("x", 0, 2.5)],
    "Phi-4-mini": [("partial_rotary_factor", bad) for bad in ("x", 0, -1, 1.5, math.nan)]
    + [("original_max_position_embeddings", bad) for bad in ("4096", 1)],
    "SmolLM3 3B": [("no_rope_layers", bad) for bad in ([1, 1, 1, 0], "x" * 36, 3, ["x"] * 36)]
    + [("no_rope_layer_interval", bad) for bad in (0, "4")],
    "Qwen3 0.6B": [("max_window_layers", bad) for bad in (None, "28", -1, 1.5)],
}
CASES = [(name, key, bad) for name, cases in BAD_VALUES.items() for key, bad in cases]
ROPE_CASES = [(name, key, bad) for name, cases in BAD_ROPES.items() for key, bad in cases]


def refused(directory, values, key, bad):
    """In one line that has the file and the key, and the value where it is short."""
    (directory / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError) as refusal:
        load_config(directory)
    message = str(refusal.value)
    assert message.startswith(f"{directory / 'config.json'}: ") and "\n" not in message
    assert key in message and "wrong kind" not in message and len(message) < 300, message
    assert repr(bad)[:40] in message or (bad is None and "null" in message) or isinstance(bad, list), message


def test_a_share_of_a_head_too_small_for_one_number_is_refused():
    with pytest.raises(UserError, match=r"partial_rotary_factor 0.001 of a head of 96 is no number"):
        ModelConfig.from_hf(CONFIGS["Phi-3 mini 4k"] | {"partial_rotary_factor": 0.001})


@pytest.mark.parametrize(("name", "key", "bad"), CASES)
def test_a_value_that_no_model_can_have_is_refused_by_its_key(name, key, bad, tmp_path):
    windows = {"use_sliding_window": True, "sliding_window": 64} if key == "max_window_layers" else {}
    refused(tmp_path, CONFIGS[name] | windows | {key: bad}, key, bad)


@pytest.mark.parametrize("spelled", ["rope_scaling", "rope_parameters", "by kind of layer"])
@pytest.mark.parametrize(("name", "key", "bad"), ROPE_CASES)
def test_a_rotary_setting_that_no_model_can_have_is_refused_by_its_key(name, key, bad, spelled, tmp_path):
    rope = CONFIGS[name]["rope_scaling"] | {key: bad}
    if spelled == "rope_scaling":
        changes = {"rope_scaling": rope}
    elif spelled == "rope_parameters":
        changes = {"rope_scaling": None, "rope_parameters": rope}
    else:
        changes = {"rope_scaling": None, "rope_parameters": {"full_attention": rope}}
    refused(tmp_path, CONFIGS[name] | changes, key, bad)


@pytest.mark.parametrize("local", [{"rope_theta": 0}, {"rope_theta": "1e4"}, {"factor": "x"}, "x", 3])
def test_the_rotary_settings_of_windowed_layers_are_checked_too(local, tmp_path):
    values = CONFIGS["Gemma 3 1B"] | {"rope_parameters": {"full_attention": {}, "sliding_attention": local}}
    bad = next(iter(local.values())) if isinstance(local, dict) else local
    refused(tmp_path, values, "rope_parameters.sliding_attention", bad)
