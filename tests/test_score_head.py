"""A score head in a language model's place: transformers gives equal scores, and every count agrees."""

import dataclasses
import json
import math

import pytest
import torch
from score_models import loaded, our_score, scorer, scores_of, their_score
from tiny_models import oracle, ours, random_tokens

from tutelage.checkpoint.hf import check_files, load_config, load_model, save_model
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.score import with_score_head
from tutelage.model.transformer import Transformer, give_score_head_, initialise_
from tutelage.text.pieces import Encoded
from tutelage.train.export import export
from tutelage.train.flops import flops_per_token
from tutelage.train.freezing import Freezing, freeze_
from tutelage.train.optim import by_muon

FAMILIES = ["llama", "llama tied", "llama 3.1", "qwen2", "qwen2 window", "mistral window"]
ROWS = [row[:n] for row, n in zip(random_tokens(3, 14).tolist(), (14, 5, 9), strict=True)]


def made(name: str, *, seed: int = 3) -> Transformer:
    """A language model with a score head, large enough to be compared."""
    model = ours(oracle(name))
    give_score_head_(model, seed=seed)
    with torch.no_grad():
        model.head_weight.mul_(100)
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_our_files_and_gives_our_scores(name, tmp_path):
    model = made(name)
    save_model(model, dataclasses.replace(model.config, pad=0), tmp_path, dtype=torch.float32)
    theirs = loaded(tmp_path)
    torch.testing.assert_close(their_score(theirs, ROWS, 0), our_score(model, ROWS), atol=1e-5, rtol=1e-5)
    assert theirs.num_labels == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_we_load_what_transformers_wrote_and_give_its_scores(name, tmp_path):
    theirs = scorer(name)
    theirs.save_pretrained(tmp_path)
    check_files(tmp_path)
    model = load_model(tmp_path)
    assert model.config.head == "score" and not model.config.tied
    torch.testing.assert_close(our_score(model, ROWS), their_score(theirs, ROWS, 0), atol=1e-5, rtol=1e-5)
    save_model(model, model.config, tmp_path / "again", dtype=torch.float32)
    torch.testing.assert_close(their_score(loaded(tmp_path / "again"), ROWS, 0), our_score(model, ROWS))


@pytest.mark.parametrize(
    "key, values", [("id2label", {"id2label": {"0": "a", "1": "b"}}), ("num_labels", {})]
)
def test_more_than_one_label_is_refused_with_its_key(key, values, tmp_path):
    scorer("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for label in ("id2label", "label2id", "num_labels"):
        config.pop(label, None)
    path.write_text(json.dumps(config | values))
    with pytest.raises(UserError, match=rf"config\.json: {key} makes 2 labels of a text; supported is 1"):
        load_config(tmp_path)


def test_files_of_another_head_than_the_config_says_are_refused(tmp_path):
    oracle("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(
        json.dumps(values | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1})
    )
    with pytest.raises(
        UserError, match=r"missing: score\.weight .*LlamaForCausalLM\)\n  unexpected: lm_head"
    ):
        check_files(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_is_drawn_by_seed_and_nothing_else_moves(name):
    model, before = ours(oracle(name)), ours(oracle(name)).state_dict()
    give_score_head_(model, seed=5)
    state = model.state_dict()
    assert state.keys() == before.keys() - {"lm_head.weight"} | {"score.weight"}
    assert all(torch.equal(state[key], before[key]) for key in state if key != "score.weight")
    again, other = ours(oracle(name)), ours(oracle(name))
    give_score_head_(again, seed=5)
    give_score_head_(other, seed=6)
    assert torch.equal(again.head_weight, model.head_weight)
    assert not torch.equal(other.head_weight, model.head_weight)
    assert model.config == with_score_head(ours(oracle(name)).config)
    assert [key for key, _ in Transformer(model.config).named_parameters()] == [*state]


def test_the_head_is_as_small_as_instructllama_draws_it():
    """N(0, 0.02 / sqrt(2 layers)): of 4,096 numbers the deviation is within 5 %."""
    shape = ModelConfig(
        vocab_size=8, dim=4096, n_layers=3, n_heads=1, n_kv_heads=1, head_dim=2, ffn_dim=1, tied=True
    )
    model = Transformer(shape)
    give_score_head_(model, seed=0)
    assert model.head_weight.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    fresh = Transformer(with_score_head(shape))
    initialise_(fresh, seed=0)
    assert torch.equal(fresh.head_weight, model.head_weight)


@pytest.mark.parametrize("name", ["llama", "llama tied", "qwen2"])
def test_every_count_is_that_of_the_weights(name):
    model = made(name)
    assert model.config.n_parameters == sum(p.numel() for p in model.parameters())
    other = ours(oracle(name))
    less = 6 * (other.config.vocab_size - 1) * other.config.dim
    assert flops_per_token(other, 8.0) - flops_per_token(model, 8.0) == less
    for parts, expected in (("head", {"score.weight"}), ("embeddings", {"model.embed_tokens.weight"})):
        freeze_(model, Freezing(parts=parts))
        assert {key for key, p in model.named_parameters() if p.requires_grad} == expected
    freeze_(model, Freezing(parts="blocks"))
    assert not by_muon("score.weight", model.head_weight)
    assert not model.head_weight.requires_grad and not model.model.embed_tokens.weight.requires_grad


def test_logits_are_the_scores_with_one_more_dimension():
    model, tokens = made("llama"), random_tokens(2, 9)
    positions = torch.arange(9).expand(2, -1)
    logits = model.unembed(model(tokens, positions))
    assert logits.shape == (2, 9, 1) and logits.dtype == torch.float32
    torch.testing.assert_close(logits[..., 0], scores_of(model, tokens))
    assert model.bfloat16().scores(model(tokens, positions)).dtype == torch.float32


def test_the_export_gate_compares_scores_at_every_position(tmp_path):
    model = made("qwen2")
    probes = [Encoded(row, [0.0] * len(row), [4] * len(row)) for row in ROWS]
    weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
    good = export(model, weights, model.config, tmp_path / "good", dtype=torch.float32, probes=probes)
    assert good.passed and good.logit_error == 0 and good.positions == sum(map(len, ROWS))
    assert (good.given, good.text) == ("scores", "")
    weights["score.weight"][0, 3] += 1
    with pytest.raises(RuntimeError, match=r"does not reproduce .*: scores differ by \d\S*; look into"):
        export(model, weights, model.config, tmp_path / "bad", dtype=torch.float32, probes=probes)
