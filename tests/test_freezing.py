"""What is frozen has no gradient, no optimizer state and no master, and does not move."""

import pytest
import torch
from family_models import MODELS
from tiny_models import oracle, ours
from tiny_runs import differences, leavings, material, refused, run, stored, watched

from tutelage.checkpoint.hf import load_model
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer
from tutelage.report.trained_table import trained_rows
from tutelage.train.freezing import Freezing, freeze_
from tutelage.train.precision import masters
from tutelage.train.saver import newest

BLOCK = [f"self_attn.{kind}_proj.weight" for kind in "qkvo"]
BLOCK += [f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")]
BLOCK += ["input_layernorm.weight", "post_attention_layernorm.weight"]
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def block(number, names=tuple(BLOCK)):
    return {f"model.layers.{number}.{name}" for name in names}


QV = ("self_attn.q_proj.weight", "self_attn.v_proj.weight")
CASES = {
    "nothing": (Freezing(), {EMBEDDING, HEAD, NORM} | block(0) | block(1)),
    "first block": (Freezing(layers=1), {HEAD, NORM} | block(1)),
    "all blocks": (Freezing(layers=2), {HEAD, NORM}),
    "queries and values of the second": (
        Freezing(layers=1, query_value_only=True),
        {HEAD, NORM} | block(1, QV),
    ),
    "queries and values": (Freezing(query_value_only=True), {HEAD, NORM} | block(0, QV) | block(1, QV)),
    "embeddings": (Freezing(parts="embeddings"), {EMBEDDING}),
    "head": (Freezing(parts="head"), {HEAD}),
    "embeddings and head": (Freezing(parts="embeddings_head"), {EMBEDDING, HEAD}),
    "blocks": (Freezing(parts="blocks"), {NORM} | block(0) | block(1)),
    "by name": (
        Freezing(trained=(r".*norm\.weight",), frozen=(NORM,)),
        block(0, BLOCK[-2:]) | block(1, BLOCK[-2:]),
    ),
    "without a name": (Freezing(frozen=(r"model\.layers\..*", "lm_head.weight")), {EMBEDDING, NORM}),
}


@pytest.mark.parametrize("case", CASES)
def test_exactly_what_is_named_is_trained(case):
    settings, expected = CASES[case]
    model = ours(oracle("llama"))
    freeze_(model, settings)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    kept = masters(model, "bf16")
    assert kept.keys() == expected and all(p.dtype == torch.float32 for p in kept.values())
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_of_a_tied_model_the_head_is_the_embedding():
    model = ours(oracle("llama tied"))
    freeze_(model, Freezing(parts="head"))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [EMBEDDING]
    freeze_(model, Freezing(layers=2))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [NORM]


def test_the_table_counts_by_hand():
    """dim 32, two blocks: q is 32 x 32, v 16 x 32, the head 61 x 32, a norm 32."""
    model = ours(oracle("llama"))
    freeze_(model, Freezing(query_value_only=True))
    assert trained_rows(model) == [
        ("model.layers.*.self_attn.q_proj.weight", 2, "32x32", 2048),
        ("model.layers.*.self_attn.v_proj.weight", 2, "16x32", 1024),
        ("model.norm.weight", 1, "32", 32),
        ("lm_head.weight", 1, "61x32", 1952),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Freezing(layers=3), "frozen_layers is 3, the model has 2 blocks"),
        (Freezing(parts="head", frozen=("lm_head.weight",)), "nothing is left to train; freeze less"),
        (Freezing(trained=("q_proj",)), "trained_params: q_proj fits no weight's whole name"),
        (Freezing(frozen=("(",)), r"frozen_params: \( is no regular expression"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        freeze_(ours(oracle("llama")), settings)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


RUNS = {
    "layers": {"frozen_layers": 1},
    "values": {"frozen_layers": 1, "train_atten_qv_layers_only": "true", "precision": "bf16"},
    "embeddings": {"train_parts": "embeddings", "ema_decay": 0.9},
    "names": {"frozen_params": ".*norm.*", "optimizer": "muon", "train_steps": 4},
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_moves_only_what_is_trained_and_resumes_exactly(made, tmp_path, monkeypatch, kind):
    watch = watched(monkeypatch)
    settings = {"train_steps": 6} | RUNS[kind]
    whole, broken = tmp_path / "a" / "out", tmp_path / "b" / "out"
    ended = run(*made.sft(whole, **settings))
    assert ended.code == 0 and "trained: " in ended.err, ended.err
    watch.signals = {3: 15}
    assert run(*made.sft(broken, **settings)).code == 143
    assert run(*made.sft(broken, **settings), "--resume").code == 0
    assert not differences(leavings(whole), leavings(broken))
    before, after = load_model(made.model), load_model(whole / "model", dtype=torch.float32)
    moved = {
        name
        for (name, p), q in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(p.to(torch.bfloat16), q.to(torch.bfloat16))
    }
    tensors = stored(newest(whole / "checkpoints"))
    trained = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
    states = {
        name.removeprefix("optimizer.").rpartition(".")[0]
        for name in tensors
        if name.startswith("optimizer.")
    }
    assert moved <= trained == states and len(moved) >= len(trained) - 2 and len(trained) < 20


def test_a_run_goes_on_only_from_the_model_it_began_with(made, tmp_path, monkeypatch):
    watch = watched(monkeypatch)
    watch.signals = {2: 15}
    words = made.sft(tmp_path / "out", frozen_layers=1, train_steps=4)
    assert run(*words).code == 143
    other = material(tmp_path, dim=32, ffn_dim=48).model
    model = load_model(other)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    from tutelage.checkpoint.hf import save_model

    save_model(model, model.config, other, dtype=torch.float32)
    words[words.index(str(made.model))] = str(other)
    assert "was trained from another model than ckpt_paths" in refused(run(*words, "--resume"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora_rank", "8"], "lora_rank without lora; add --lora, or leave it out"),
        (
            ["--lora", "--frozen_layers", "1"],
            "lora trains adapters and freezes all else; leave out frozen_layers",
        ),
        (
            ["--lora", "--lora_continue", "--lora_rank", "8"],
            "lora_continue trains an adapter as it is; leave out lora_rank",
        ),
        (
            ["--lora", "--lora_dora", "--lora_init", "pissa"],
            "lora_dora and lora_init pissa exclude each other",
        ),
        (["--lora", "--optimizer", "muon"], "leave out optimizer muon"),
        (
            ["--lora", "--lora_rank_pattern", "q_proj"],
            "lora_rank_pattern: q_proj is not PATTERN=NUMBER, like q_proj=8",
        ),
        (
            ["--lora", "--lora_unfrozen_params", "norm"],
            "lora_unfrozen_params: norm fits no weight's whole name",
        ),
        (
            ["--lora", "--lora_targets", "querry"],
            "lora_targets: no linear layer or embedding is named querry",
        ),
        (["--lora", "--lora_rank", "0"], "lora_rank is 0, must be at least 1"),
        (
            ["--lora", "--lora_continue"],
            "lora_continue goes on with the last adapter of ckpt_paths, and they name none",
        ),
    ],
)
def test_mistakes_on_the_command_line_are_named(made, tmp_path, words, message):
    assert message in refused(run(*made.sft(tmp_path / "out"), *words, "--dry_run"))


def test_queries_and_values_alone_are_not_trained_where_one_layer_makes_them_and_the_keys():
    model = Transformer(ModelConfig.from_hf(MODELS["Phi-3 4k"].to_dict()))
    with pytest.raises(
        UserError, match="^query_value_only trains q_proj and v_proj, and this model has them"
    ):
        freeze_(model, Freezing(query_value_only=True))
    freeze_(model, Freezing(trained=(r".*qkv_proj\.weight",)))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"model.layers.{layer}.self_attn.qkv_proj.weight" for layer in range(3)}
