"""The storyteller by LoRA of rank 2: so many weights, merged, and the same model in llama2.c's file."""

import json
from random import Random

import numpy as np
import pytest
import torch
from llama2c_files import logits_of, read_v0
from llama2c_models import logits, piece_tokenizer
from safetensors.torch import load_file
from tiny_runs import run

from tutelage.checkpoint.hf import load_model, save_model
from tutelage.data.stories.plots import story
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer, initialise_

# As in the reference: queries, keys, values and outputs, alpha 1, dropout 0.1, eps and betas of its AdamW.
FLAGS = "--lora --lora_rank 2 --lora_alpha 1 --lora_dropout 0.1 --lora_targets q_proj k_proj v_proj o_proj"
FLAGS += (
    " --template_config storyteller --lr 5e-3 --train_steps 3 --micro_batch_size_per_gpu 4 --max_seq_len 256"
)
FLAGS += " --precision fp32 --device cpu --no_visualize_dataset"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(base, run) of the reference's shape, dim 288 in 6 layers of 6 heads, with a small vocabulary."""
    place, tokenizer = tmp_path_factory.mktemp("storyteller"), piece_tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.size,
        dim=288,
        n_layers=6,
        n_heads=6,
        n_kv_heads=6,
        head_dim=48,
        ffn_dim=768,
        max_positions=512,
        tied=True,
        bos=1,
        eos=(2,),
    )
    model = Transformer(config)
    initialise_(model, seed=0)
    save_model(model, config, place / "base", dtype=torch.float32)
    tokenizer.save(place / "base")
    rng = Random(0)
    rows = [
        [{"role": "user", "content": "Write a story."}, {"role": "assistant", "content": story(rng).text}]
        for _ in range(12)
    ]
    text = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
    (place / "chats.jsonl").write_text(text)
    words = ["--ckpt_paths", place / "base", "--train_data_paths", f"jsonl:{place / 'chats.jsonl'}"]
    ended = run("sft", *words, *FLAGS.split(), "--output_dir", place / "out", "--cache_dir", place / "cache")
    assert ended.code == 0, ended.err
    return place, ended.err


def test_rank_2_adds_27648_weights(trained):
    """6 layers, 4 projections of 288 x 288, each 2 x (288 + 288)."""
    place, said = trained
    assert "trained: 27,648 of " in said
    tensors = load_file(place / "out" / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == 27_648 == 6 * 4 * 2 * (288 + 288)
    config = json.loads((place / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 1, 0.1)


def test_merged_and_written_for_llama2c_it_is_the_model_that_was_trained(trained, tmp_path):
    place, _ = trained
    assert run("merge", place / "out", "--output", tmp_path / "merged").code == 0
    words = ["--format", "llama2c", "--output"]
    assert run("convert", tmp_path / "merged", *words, tmp_path / "c").code == 0
    assert run("convert", place / "out", *words, tmp_path / "straight").code == 0
    assert (tmp_path / "c" / "model.bin").read_bytes() == (tmp_path / "straight" / "model.bin").read_bytes()
    header, arrays = read_v0(tmp_path / "c" / "model.bin")
    tokens = [1, *range(5, 40)]
    found = logits_of(header, arrays, tokens)
    expected = logits(load_model(place / "base", adapters=[place / "out" / "adapter"]), tokens)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    assert np.abs(expected - logits(load_model(place / "base"), tokens)).max() > 1e-2
