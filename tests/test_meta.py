"""Meta's files and torchllms': Meta's own program computes the same with ours, and all comes back."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from foreign_models import RowParallelLinear, meta, meta_logits
from llama2c_models import logits, tiny
from tiny_data import refusal

from tutelage.checkpoint.hf import load_config, load_model
from tutelage.checkpoint.meta.params import SCALING, SCALING_TIED, meta_ffn_dim, meta_width
from tutelage.checkpoint.meta.write import (
    refuse_for_meta,
    write_meta,
)
from tutelage.checkpoint.streamed import Held
from tutelage.model.config import ModelConfig

TOKENS = [1, *range(5, 40)]
SHAPE = {"vocab_size": 64, "n_kv_heads": 2, "ffn_dim": 48}


def written(model, directory, **options):
    write_meta(Held(model.state_dict()), model.config, directory, dtype=torch.float32, **options)
    return directory


def same(model, expected):
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": True},
        {"rope_theta": 500000.0, "rope_scaling": SCALING, "norm_eps": 1e-6},
        {"n_kv_heads": 4, "ffn_dim": 100},
    ],
)
def test_metas_own_program_computes_the_same(changes, tmp_path):
    model = tiny(**SHAPE | changes)
    written(model, tmp_path)
    params = json.loads((tmp_path / "params.json").read_text())
    state = torch.load(tmp_path / "consolidated.00.pth", weights_only=True, mmap=True)
    found = meta_logits(tmp_path, params, state, torch.tensor([TOKENS]))[0]
    torch.testing.assert_close(found, torch.from_numpy(logits(model, TOKENS)), atol=1e-4, rtol=1e-4)
    same(load_model(tmp_path), model.state_dict())


@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("vocab_size", [64, 128_256])
def test_what_devices_have_is_what_metas_layers_say(devices, vocab_size, tmp_path):
    model = tiny(
        **SHAPE | {"vocab_size": vocab_size, "n_kv_heads": 4, "n_layers": 1, "dim": 16, "head_dim": 4}
    )
    one = torch.load(written(model, tmp_path / "1") / "consolidated.00.pth", weights_only=True)
    many = written(model, tmp_path / "many", devices=devices)
    parts = [torch.load(many / f"consolidated.{i:02d}.pth", weights_only=True) for i in range(devices)]
    params = json.loads((many / "params.json").read_text())
    program = meta()
    layers = dict(program.Transformer(program.ModelArgs(**params)).named_modules())
    for name, whole in one.items():
        layer = layers[name.removesuffix(".weight")]
        if isinstance(layer, program.RMSNorm):
            assert all(torch.equal(part[name], whole) for part in parts)
            continue
        columns = isinstance(layer, RowParallelLinear)
        if name == "tok_embeddings.weight" and vocab_size < 128_000:  # of Llama 2's program
            columns = True
        assert torch.equal(torch.cat([part[name] for part in parts], dim=int(columns)), whole), name
    same(load_model(many), model.state_dict())
    same(load_model(many / "consolidated.01.pth"), model.state_dict())


@pytest.mark.parametrize(
    ("dim", "ffn_dim", "expected"),
    [
        (4096, 11008, {"multiple_of": 256}),  # Llama 2 7B
        (5120, 13824, {"multiple_of": 256}),
        (8192, 28672, {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}),  # 70B
        (4096, 14336, {"multiple_of": 1024, "ffn_dim_multiplier": 1.3}),  # Llama 3 8B
        (2048, 8192, {"multiple_of": 256, "ffn_dim_multiplier": 1.5}),  # Llama 3.2 1B
        (3072, 8192, {"multiple_of": 256, "ffn_dim_multiplier": 1.0}),
    ],
)
def test_published_models_have_a_width_that_their_params_make(dim, ffn_dim, expected):
    width = meta_width(dim, ffn_dim)
    assert meta_ffn_dim(dim, width["multiple_of"], width.get("ffn_dim_multiplier")) == ffn_dim
    assert meta_ffn_dim(dim, expected["multiple_of"], expected.get("ffn_dim_multiplier")) == ffn_dim


def test_every_width_has_params_that_make_it():
    for dim in (32, 96, 1000, 4096):
        for ffn_dim in (1, 7, 48, 1003, 2048, 9999, 29568):
            width = meta_width(dim, ffn_dim)
            found = meta_ffn_dim(dim, width["multiple_of"], width.get("ffn_dim_multiplier"))
            assert found == ffn_dim, (dim, ffn_dim, width)


def test_what_params_do_not_say_is_as_transformers_converter_takes_it(tmp_path):
    model = tiny(**SHAPE | {"vocab_size": 128_256, "n_layers": 1, "rope_theta": 500000.0})
    cases = {
        "3": ({}, {}, (8192, None)),
        "3.1": ({"rope_scaling": SCALING}, {}, (131072, SCALING)),
        "3.2": ({"rope_scaling": SCALING_TIED}, {"tied": True}, (131072, SCALING_TIED)),
    }
    for name, (changes, tied, (positions, scaling)) in cases.items():
        config = replace(model.config, **changes, **tied)
        state = {k: v for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
        write_meta(Held(state), config, tmp_path / name, dtype=torch.bfloat16)
        found = load_config(tmp_path / name)
        assert (found.max_positions, found.rope_scaling, found.tied) == (positions, scaling, bool(tied))
        assert (found.bos, found.eos) == (128_000, (128_001, 128_009))
    params = json.loads((tmp_path / "3.2" / "params.json").read_text())
    assert params["use_scaled_rope"] is True and "max_seq_len" not in params  # which its program sets itself
    two = written(tiny(**SHAPE), tmp_path / "2")
    assert (load_config(two).max_positions, load_config(two).bos) == (4096, 1)
    for name, changes, positions in (("1", {"norm_eps": 1e-6}, 2048), ("code", {"rope_theta": 1e6}, 16384)):
        assert load_config(written(tiny(**SHAPE | changes), tmp_path / name)).max_positions == positions


def test_rotary_frequencies_of_old_files_are_left_out(tmp_path):
    model = tiny(**SHAPE)
    path = written(model, tmp_path) / "consolidated.00.pth"
    torch.save(torch.load(path) | {"rope.freqs": torch.ones(4)}, path)
    same(load_model(tmp_path), model.state_dict())


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    return written(tiny(**SHAPE), tmp_path_factory.mktemp("meta") / "two", devices=2)


def _without_first(d):
    (d / "consolidated.00.pth").unlink()
    return "consolidated.00.pth is missing; consolidated.01.pth is there"


def _without_last(d):
    (d / "consolidated.01.pth").unlink()
    return "consolidated.01.pth is missing: params.json says 32 rows of queries, in the file there are 16"


def _other_shape(d):
    _change(d, lambda s: s.update({"layers.1.attention.wo.weight": torch.ones(32, 8)}))
    return "layers.1.self_attn.o_proj.weight is 32x8 float32, in consolidated.00.pth 32x16 float32"


def _other_norm(d):
    _change(d, lambda s: s["norm.weight"].add_(1))
    return "model.norm.weight has other values than in consolidated.00.pth; they are not of one model"


def _one_more(d):
    _change(d, lambda s: s.update({"layers.2.ffn_norm.weight": torch.ones(32)}))
    return "post_attention_layernorm.weight, and consolidated.00.pth does not; they are not of one model"


def _foreign(d):
    _change(d, lambda s: s.update({"vision_model.x": torch.ones(2)}))
    return "holds vision_model.x, which is no part of a Llama"


def _lora(d):
    _change(d, lambda s: s.update({"layers.0.attention.wq.lora_A": torch.ones(2, 2)}))
    return "holds LoRA weights, and no lora_args.json beside it says how to merge them"


def _params(**values):
    def change(d):
        path = d / "params.json"
        params = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in params.items() if v != "gone"}))

    return change


def _change(d, action):
    path = d / "consolidated.01.pth"
    state = torch.load(path)
    action(state)
    torch.save(state, path)


@pytest.mark.parametrize(
    "damage", [_without_first, _without_last, _other_shape, _other_norm, _one_more, _foreign, _lora]
)
def test_files_that_are_not_of_one_whole_model_are_refused(damage, of_two, tmp_path):
    shutil.copytree(of_two, tmp_path / "bad")
    words = damage(tmp_path / "bad")
    assert words in refusal(load_model, tmp_path / "bad")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"n_heads": "gone"}, "params.json has no n_heads"),
        ({"norm_eps": 0}, "params.json: norm_eps = 0, wanted a number above 0"),
        ({"n_layers": 1.5}, "params.json: n_layers = 1.5, wanted a whole number"),
        ({"dim": "4096"}, "params.json: dim = '4096', wanted a number above 0"),
        (
            {"vocab_size": 32000},
            "vocab_size = 32000, and the embedding beside it has 64 rows; write the latter",
        ),
        ({"attn_proj_bias": True}, "attn_proj_bias = True, and the weights beside it have none"),
        ({"olmo2_arch": True}, "olmo2_arch = True, and the weights beside it have no norms of queries and"),
        ({"moe_args": {"num_experts": 8}}, "moe_args is of models that are more than text in full weights"),
        ({"rope_scaling": {"rope_type": "mystery"}}, "params.json: rope type 'mystery' is not supported"),
        ({"n_layers": 3}, "missing: model.layers.2."),
        ({"n_heads": 6}, "attention heads cannot share 2"),
    ],
)
def test_params_that_do_not_fit_are_refused(values, words, of_two, tmp_path):
    shutil.copytree(of_two, tmp_path / "bad")
    _params(**values)(tmp_path / "bad")
    if "n_heads" in values and values["n_heads"] == 6:
        _params(n_kv_heads=4)(tmp_path / "bad")
        words = "6 attention heads cannot share 4"
    assert words in refusal(load_model, tmp_path / "bad")


def test_a_vocabulary_left_to_the_weights_is_that_of_the_embedding(of_two, tmp_path):
    shutil.copytree(of_two, tmp_path / "it")
    _params(vocab_size=-1)(tmp_path / "it")
    assert load_config(tmp_path / "it").vocab_size == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_dim": 16}, "head_dim is 16, it has dim / heads = 8"),
        ({"qkv_bias": True, "family": "qwen2"}, "attention has biases, it has none"),
        ({"family": "mistral", "windows": (8, 8)}, "attention has a sliding window, it has none"),
        ({"role_embeddings": True}, "what is added to a token depends on whose it is"),
        ({"head": "score"}, "it has a score head, and that program writes text"),
        ({"rope_scaling": SCALING | {"factor": 4.0}}, "it has that of Llama 3.1 alone"),
        ({"n_kv_heads": 1}, "1 key-value heads cannot be cut for 2 devices"),
        ({"vocab_size": 61}, "61 tokens cannot be cut for 2 devices"),
    ],
)
def test_what_metas_program_cannot_run_is_refused(changes, words):
    config = ModelConfig(
        **{
            "vocab_size": 64,
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "head_dim": 8,
            "ffn_dim": 48,
        }
        | changes
    )
    assert words in refusal(refuse_for_meta, config, 2)
