"""The export gate: the files are compared with the model in memory, and with nothing else."""

import dataclasses

import torch
from tiny_data import refusal
from tiny_models import oracle, ours

from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer, initialise_
from tutelage.text.pieces import Encoded
from tutelage.train.export import export


def test_stop_tokens_that_only_the_files_know_are_no_difference(tmp_path):
    """A model that says 7 for ever, exported with 7 as one more end of a reply, as fine-tuning does."""
    config = ModelConfig(
        vocab_size=11, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=8, ffn_dim=32, eos=(0,)
    )
    model = Transformer(config)
    initialise_(model, seed=0)
    with torch.no_grad():
        model.head_weight.zero_()[7] = torch.ones(16)
        model.model.embed_tokens.weight.fill_(1.0)
    told = dataclasses.replace(config, eos=(0, 7))
    weights = dict(model.named_parameters())
    gate = export(
        model, weights, told, tmp_path, dtype=torch.float32, probes=[Encoded([1, 2, 3], [0.0] * 3, [4] * 3)]
    )
    assert gate.greedy_equal
    assert gate.logit_error == 0.0


def test_weights_that_are_no_numbers_are_not_written_though_no_probe_asks_for_them(tmp_path):
    model = ours(oracle("llama"))
    trained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained["model.embed_tokens.weight"][60, 3] = float("nan")
    probe, out = Encoded([1, 5, 9], [0.0] * 3, [4] * 3), tmp_path / "model"
    said = refusal(export, model, trained, model.config, out, dtype=torch.float32, probes=[probe])
    assert "the trained model.embed_tokens.weight has values that are no numbers" in said
    assert not out.exists()
