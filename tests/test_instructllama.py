"""InstructLLaMA's files: written, its model computes what ours does; read, ours computes what its does."""

import dataclasses
import json

import pytest
import torch
from instructllama_model import Theirs
from score_models import scores_of
from tiny_data import refusal
from tiny_models import positions_of, random_tokens
from tiny_runs import refused, run
from tiny_sentencepiece import write_model
from tiny_tokenizer import tiny_tokenizer

from tutelage.checkpoint.hf import check_files, load_config, load_model, save_model
from tutelage.checkpoint.instructllama import refuse_what_it_cannot, write_instructllama
from tutelage.checkpoint.streamed import Held
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.model.config import ModelConfig
from tutelage.model.score import with_score_head
from tutelage.model.transformer import Transformer

SHAPE = ModelConfig(
    vocab_size=61, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, ffn_dim=96, max_positions=64,
    bos=1, eos=(2,),
)  # fmt: skip
KINDS = {
    "head": SHAPE,
    "tied": dataclasses.replace(SHAPE, tied=True),
    "score": with_score_head(SHAPE),
    "its width": dataclasses.replace(SHAPE, ffn_dim=256, norm_eps=1e-6),
}
TOKENS = random_tokens(2, 20)


def tiny(shape: ModelConfig) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model.eval()


def answers(model: Transformer) -> torch.Tensor:
    with torch.no_grad():
        return model.unembed(model(TOKENS, positions_of(TOKENS)))


@pytest.fixture
def written(tmp_path):
    """A directory of its files, of a model with a score head."""
    model = tiny(with_score_head(SHAPE))
    write_instructllama(
        Held(model.state_dict()), model.config, tmp_path / "its" / "model.pth", dtype=torch.float32
    )
    return tmp_path / "its" / "model.pth"


@pytest.mark.parametrize("kind", KINDS)
def test_its_model_computes_what_ours_does_and_back(kind, tmp_path):
    model, path = tiny(KINDS[kind]), tmp_path / "model.pth"
    write_instructllama(Held(model.state_dict()), model.config, path, dtype=torch.float32)
    expected = answers(model)
    torch.testing.assert_close(Theirs(path)(TOKENS), expected, atol=1e-5, rtol=1e-5)
    for place in (path, tmp_path):
        check_files(place)
        again = load_model(place).eval()
        assert again.config == dataclasses.replace(KINDS[kind], tied=False) == load_config(place)
        assert torch.equal(answers(again), expected)


@pytest.mark.parametrize("kind", ["lm", "score"])
def test_conversion_there_and_back_with_the_tokenizer(kind, tmp_path):
    write_model(tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    shape = dataclasses.replace(SHAPE, vocab_size=tokenizer.size, bos=tokenizer.bos, eos=(tokenizer.eos,))
    model = tiny(shape if kind == "lm" else with_score_head(shape))
    tokenizer.save(tmp_path / "ours")
    save_model(model, model.config, tmp_path / "ours", dtype=torch.float32)
    ended = run("convert", tmp_path / "ours", "--output", tmp_path / "its", "--format", "instructllama")
    assert ended.code == 0 and "note" not in ended.err
    torch.testing.assert_close(
        Theirs(tmp_path / "its" / "model.pth")(TOKENS), answers(model), atol=1e-5, rtol=1e-5
    )
    assert (tmp_path / "its" / "tokenizer.model").read_bytes() == (tmp_path / "tokenizer.model").read_bytes()
    ended = run(
        "convert", tmp_path / "its" / "model.pth", "--output", tmp_path / "back", "--precision", "fp32"
    )
    assert ended.code == 0, ended.err
    assert torch.equal(answers(load_model(tmp_path / "back").eval()), answers(model))
    back = load_tokenizer(tmp_path / "back")
    assert back.encode("Lily said") == tokenizer.encode("Lily said")
    if kind == "score":
        assert load_config(tmp_path / "back").pad == back.pad == back.control["<unk>"]


def test_another_vocabulary_is_noted_and_precision_is_kept(tmp_path):
    model = tiny(dataclasses.replace(SHAPE, vocab_size=tiny_tokenizer().size))
    tiny_tokenizer().save(tmp_path / "ours")
    save_model(model, model.config, tmp_path / "ours", dtype=torch.float32)
    words = ["--format", "instructllama", "--precision", "bf16"]
    ended = run("convert", tmp_path / "ours", "--output", tmp_path / "its", *words)
    assert "note: InstructLLaMA reads SentencePiece's tokenizer.model, and this model has none" in ended.err
    assert load_model(tmp_path / "its").head_weight.dtype == torch.bfloat16
    assert "exists; give --overwrite" in refused(
        run("convert", tmp_path / "ours", "--output", tmp_path / "its", *words)
    )


def test_heads_of_its_runs_are_read_as_scores(written):
    """Norms in float32 and the rest in bfloat16, and an old head's bias of 0, as its programs leave them."""
    state = torch.load(written, weights_only=True)
    wide = {name: value if "norm" in name else value.bfloat16() for name, value in state.items()}
    torch.save(wide | {"scalar_head.bias": torch.zeros(1)}, written)
    model = load_model(written)
    assert model.head_weight.dtype == torch.bfloat16
    theirs = Theirs.__new__(Theirs)
    theirs.params = json.loads((written.parent / "params.json").read_text())
    theirs.weights = {name: value.float() for name, value in wide.items()}
    found = scores_of(load_model(written, dtype=torch.float32), TOKENS)
    torch.testing.assert_close(found, theirs(TOKENS)[..., 0], atol=1e-5, rtol=1e-5)


UNKNOWN = {
    "num_key_value_heads is 2, it computes with 4": {"n_kv_heads": 2},
    "rope_theta is 500000.0, it computes with 10000.0": {"rope_theta": 500000.0},
    "rope_scaling is {'rope_type': 'llama3'}, it computes with None": {
        "rope_scaling": {"rope_type": "llama3"}
    },
    "attention bias is True, it computes with False": {"qkv_bias": True, "family": "qwen2"},
    "head_dim is 16, it computes with 8": {"head_dim": 16},
    "intermediate_size is 80, it has at least 85": {"ffn_dim": 80},
    "attention has a sliding window, it has none": {"windows": (None, 8), "family": "mistral"},
    "it is no plain Llama: projections are fused": {"fused": True, "family": "phi3"},
    "what is added to a token depends on whose it is, it has no role embeddings": {"role_embeddings": True},
}


@pytest.mark.parametrize("words", UNKNOWN)
def test_what_its_program_does_not_know_is_refused_by_name(words, tmp_path):
    shape = dataclasses.replace(SHAPE, **UNKNOWN[words])
    message = refusal(refuse_what_it_cannot, shape)
    assert message == f"InstructLLaMA's program cannot run this model: {words}"
    assert not any(tmp_path.iterdir())


def test_conversion_refuses_before_weights_are_read(tmp_path, monkeypatch):
    model = tiny(dataclasses.replace(SHAPE, vocab_size=tiny_tokenizer().size, rope_theta=5e5))
    tiny_tokenizer().save(tmp_path / "ours")
    save_model(model, model.config, tmp_path / "ours", dtype=torch.float32)
    monkeypatch.setattr("tutelage.recipes.stage.chain.load_model", pytest.fail)
    ended = run("convert", tmp_path / "ours", "--output", tmp_path / "its", "--format", "instructllama")
    assert "cannot run this model: rope_theta is 500000.0" in refused(ended)


class Runs:
    """What a pickle would run if it were read as one."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


DAMAGE = {
    "is damaged, or holds more than tensors": {"post_norm.weight": Runs()},
    "holds LoRA weights apart from the model's; merge them": {
        "layers.0.attention.wq.lora_A": torch.ones(2, 32)
    },
    "has two heads (head_type dual_head)": {"lm_head.weight": torch.ones(61, 32)},
    "scalar_head.bias is 0.5; a score head has none": {"scalar_head.bias": torch.full((1,), 0.5)},
    "holds tok_embeddings.weight, which is no part of": {"tok_embeddings.weight": torch.ones(61, 32)},
    "post_norm.weight is 16": None,
}


@pytest.mark.parametrize("words", DAMAGE)
def test_files_that_are_something_else_are_refused(words, written):
    change = DAMAGE[words] or {"post_norm.weight": torch.ones(16)}
    torch.save(torch.load(written, weights_only=True) | change, written)
    message = refusal(load_model, written)
    assert words in message or "model.norm.weight is 16, config.json makes it 32" in message


@pytest.mark.parametrize(
    "values, words",
    [
        ({"n_kv_heads": 2}, "params.json: n_kv_heads = 2, InstructLLaMA computes with 4"),
        ({"rope_theta": 500000.0}, "params.json: rope_theta = 500000.0, InstructLLaMA computes with 10000.0"),
        ({"dim": "32"}, "params.json: dim = '32', wanted a number above 0"),
    ],
)
def test_settings_of_another_arithmetic_are_refused(values, words, written):
    path = written.parent / "params.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    assert refusal(load_model, written).endswith(words)


def test_a_directory_of_several_models_asks_for_one(written):
    (written.parent / "other.pth").write_bytes(written.read_bytes())
    assert refusal(load_model, written.parent).endswith("holds 2 .pth files; give one: model.pth, other.pth")
    assert load_model(written).config.head == "score"
