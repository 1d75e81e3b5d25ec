"""Named shapes have the published numbers of parameters, and a shape changed in one place stays a model."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import material, refused, run
from transformers import AutoConfig

from tutelage.cli import configure
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.presets import PRESETS, reshaped
from tutelage.recipes.pretrain import PretrainConfig
from tutelage.text.tokenizer import Tokenizer

PUBLISHED = {  # of the model cards' safetensors and of the systems' own prints, with the published vocabulary
    "stories260K": 260_032,
    "stories840K": 836_736,
    "stories15M": 15_191_712,
    "stories42M": 41_689_600,
    "stories110M": 109_529_856,
    "instruct_llama-7b": 6_738_415_616,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "smollm3-3b": 3_075_098_624,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "olmo2-1b": 1_484_916_736,
    "olmo2-7b": 7_298_617_344,
    "gemma-2b": 2_506_172_416,
    "gemma2-2b": 2_614_341_888,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "phi3-mini": 3_821_079_552,
    "phi3-medium": 13_960_238_080,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    assert PRESETS[name].n_parameters == PUBLISHED[name]


def test_only_sizes_nobody_published_a_count_of_are_unchecked():
    assert PRESETS.keys() - PUBLISHED.keys() == {"instruct_llama-1b", "instruct_llama-3b"}


TRAITS = {  # of the published config.json: rope_theta, rms_norm_eps, tied, rope factor, window
    "smollm2-135m": (1e5, 1e-5, True, None, None),
    "smollm2-360m": (1e5, 1e-5, True, None, None),
    "smollm2-1.7b": (1.3e5, 1e-5, True, None, None),
    "smollm3": (5e6, 1e-6, True, None, None),
    "qwen3-0.6b": (1e6, 1e-6, True, None, None),
    "qwen3-1.7b": (1e6, 1e-6, True, None, None),
    "qwen3-8b": (1e6, 1e-6, False, None, None),
    "qwen2.5-0.5b": (1e6, 1e-6, True, None, None),
    "qwen2.5-1.5b": (1e6, 1e-6, True, None, None),
    "qwen2.5-7b": (1e6, 1e-6, False, None, None),
    "llama3.2": (5e5, 1e-5, True, 32, None),
    "llama3.1": (5e5, 1e-5, False, 8, None),
    "mistral": (1e4, 1e-5, False, None, 4096),
    "olmo2": (5e5, 1e-6, False, None, None),
    "gemma-2b": (1e4, 1e-6, True, None, None),
    "gemma2": (1e4, 1e-6, True, None, 4096),
    "gemma3": (1e6, 1e-6, True, None, 512),
    "phi3": (1e4, 1e-5, False, None, 2047),
    "stories": (1e4, 1e-5, True, None, None),
    "instruct_llama": (1e4, 1e-5, False, None, None),
}


@pytest.mark.parametrize("name", PRESETS)
def test_what_a_count_does_not_show_is_as_published_too(name):
    (expected,) = (traits for start, traits in TRAITS.items() if name.startswith(start))
    values = PRESETS[name].to_hf()
    factor = (values["rope_scaling"] or {}).get("factor")
    found = (values["rope_theta"], values["rms_norm_eps"], values["tie_word_embeddings"], factor)
    assert (*found, values.get("sliding_window")) == expected


def test_the_page_lists_every_preset_as_it_is():
    page = (Path(__file__).parent.parent / "docs" / "pretrain.md").read_text(encoding="utf-8")
    for name, shape in PRESETS.items():
        numbers = [f"`{name}`", f"{shape.n_parameters:,}", f"{shape.dim:,}", f"{shape.n_layers}"]
        numbers += [f"{shape.n_heads} / {shape.n_kv_heads}", f"{shape.ffn_dim:,}", f"{shape.max_positions:,}"]
        assert f"| {' | '.join(numbers)} | {shape.vocab_size:,} |\n" in page, name


def test_the_storyteller_counts_of_the_specification():
    assert replace(PRESETS["stories15M"], vocab_size=4096).n_parameters == 7_155_360


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_written_down_is_read_as_itself_here_and_by_transformers(name, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(PRESETS[name].to_hf()))
    assert ModelConfig.from_hf(json.loads(path.read_text())) == PRESETS[name]
    assert AutoConfig.from_pretrained(tmp_path).model_type == PRESETS[name].family


def changed(name: str, **changes) -> dict:
    """What of the preset differs after the changes."""
    before, after = PRESETS[name], reshaped(PRESETS[name], **changes)
    values = {key: getattr(after, key) for key in ModelConfig.__dataclass_fields__}
    return {key: value for key, value in values.items() if value != getattr(before, key)}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("stories15M", {}, {}),
        ("stories15M", {"dim": 288}, {}),
        # 8/3 of 128 is 341.3, and 352 the next multiple of 32; heads are 32 wide
        (
            "stories15M",
            {"dim": 128, "n_heads": 4},
            {"dim": 128, "n_heads": 4, "n_kv_heads": 4} | {"head_dim": 32, "ffn_dim": 352},
        ),
        ("stories15M", {"n_kv_heads": 2, "ffn_dim": 700}, {"n_kv_heads": 2, "ffn_dim": 700}),
        ("llama3.2-1b", {"dim": 1024}, {"dim": 1024, "head_dim": 32, "ffn_dim": 4096}),
        ("llama3.2-1b", {"n_heads": 16}, {"n_heads": 16, "head_dim": 128}),
        ("llama3.2-1b", {"tied": False, "rope_theta": 1e4}, {"tied": False, "rope_theta": 1e4}),
        ("mistral-7b", {"n_layers": 2}, {"n_layers": 2, "windows": (4096, 4096)}),
        ("gemma3-270m", {"n_layers": 4}, {"n_layers": 4, "windows": (512,) * 4}),
        ("gemma2-2b", {"n_layers": 3}, {"n_layers": 3, "windows": (4096, None, 4096)}),
        ("smollm3-3b", {"n_layers": 5}, {"n_layers": 5, "rope_layers": (True, True, True, False, True)}),
        ("stories42M", {"n_heads": 16}, {"n_heads": 16, "n_kv_heads": 16, "head_dim": 32}),
    ],
)
def test_a_changed_shape_keeps_what_was_not_named(name, changes, expected):
    assert changed(name, **changes) == expected


def test_contradictory_shapes_are_refused():
    with pytest.raises(UserError, match="^dim 100 does not divide into n_heads 6$"):
        reshaped(PRESETS["stories15M"], dim=100)
    with pytest.raises(UserError, match="^14 attention heads cannot share 3 key-value heads"):
        reshaped(PRESETS["qwen2.5-0.5b"], n_kv_heads=3)
    some = replace(PRESETS["mistral-7b"], n_layers=2, windows=(None, 8))
    with pytest.raises(UserError, match="^n_layers 3: the model has 2 layers with sliding windows in some"):
        reshaped(some, n_layers=3)
    assert reshaped(some, n_layers=2) == some


def shape_of(out) -> dict:
    return json.loads((out / "model" / "config.json").read_text())


def test_a_new_model_has_the_shape_of_its_name_with_the_flags_that_beat_it(made, tmp_path):
    """stories260K has 5 layers, 8 heads of 8 and 4 kv heads; the tokenizer's 259 tokens fill 320 rows."""
    out, none = tmp_path / "out", {"dim": None, "n_heads": None, "n_kv_heads": None}
    settings = {"model": "stories260K", "n_layers": 1, "pad_vocab_to_multiple_of": 64, "train_steps": 2}
    words = [word for word in made.pretrain(out, **settings | none) if word != "None"]
    words = [word for word in words if word not in ("--dim", "--n_heads", "--n_kv_heads")]
    ended = run(*words)
    assert ended.code == 0, ended.err
    assert "stories260K has room for 512 positions; this run's rows have 24 (--max_seq_len)" in ended.err
    written = {key: shape_of(out)[key] for key in ("hidden_size", "num_hidden_layers", "vocab_size")}
    assert written == {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 320}
    assert (shape_of(out)["num_key_value_heads"], shape_of(out)["intermediate_size"]) == (4, 172)
    assert shape_of(out)["max_position_embeddings"] == 24
    assert run("generate", out, "--raw", "--prompt", "東京", "--max_new_tokens", 3).code == 0


def test_a_new_model_has_the_shape_of_a_config_json(made, tmp_path):
    """The file may be called anything; its tokens are not taken over, the tokenizer has its own."""
    path, out = tmp_path / "mine.json", tmp_path / "out"
    shape = PRESETS["qwen2.5-0.5b"].to_hf() | {
        "num_hidden_layers": 1,
        "intermediate_size": 40,
        "eos_token_id": 9,
    }
    path.write_text(json.dumps(shape))
    ended = run(*made.pretrain(out, model=path, train_steps=1, rope_theta=77.0, ffn_dim=40))
    assert ended.code == 0, ended.err
    written = shape_of(out)
    assert (written["model_type"], written["rope_theta"], written["vocab_size"]) == ("qwen2", 77.0, 259)
    assert written["num_hidden_layers"] == 2, "the flags' two layers"
    own = Tokenizer.load(made.model)
    assert (written["bos_token_id"], written["eos_token_id"]) == (own.bos, own.eos)
    assert written["pad_token_id"] == own.pad is not None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"model": "lama3.2-1b"},
            "model lama3.2-1b is no file and no name of a shape; did you mean llama3.2-1b?",
        ),
        ({"model": "STORIES42m"}, "did you mean stories42M? names are stories260K, stories840K, "),
        ({"model": "nothing/like/it"}, "no name of a shape; names are stories260K, "),
        ({"model": "stories15M", "dim": 33}, "dim 33 does not divide into n_heads 4"),
        ({"n_kv_heads": 3}, "4 attention heads cannot share 3 key-value heads"),
        ({"pad_vocab_to_multiple_of": 0}, "pad_vocab_to_multiple_of is 0, must be at least 1"),
        ({"init_std": -1}, "init_std is -1.0, must be above 0"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_before_the_run_begins(made, tmp_path, settings, says):
    assert says in refused(run(*made.pretrain(tmp_path / "out", **settings)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("word", "tied"), [("--tied", True), ("--no_tied", False), ("--tied=false", False)])
def test_a_head_is_tied_or_not_as_a_switch_says(made, tmp_path, word, tied):
    assert configure([*made.pretrain(tmp_path), word])[1].tied is tied
    assert configure(made.pretrain(tmp_path))[1].tied is None


@pytest.mark.parametrize(("given", "std"), [({"init_std": 0.05}, 0.05), ({}, (2 / (5 * 32)) ** 0.5)])
def test_a_new_model_is_drawn_as_wide_as_it_was_told(made, tmp_path, given, std):
    assert run(*made.pretrain(tmp_path, lr=0.0, train_steps=1, **given)).code == 0
    embedding = load_file(tmp_path / "model" / "model.safetensors")["model.embed_tokens.weight"]
    assert embedding.std().item() == pytest.approx(std, rel=0.05)


def test_the_default_shape_is_the_15m_model():
    config = PretrainConfig(tokenizer="t", train_data_paths=("text:a",))
    assert (config.model, config.dim, config.max_seq_len) == ("stories15M", None, 256)
