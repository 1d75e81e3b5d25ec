"""TRL's RewardTrainer from the same score-headed directory on the same rows: equal losses and weights."""

import pytest
import torch
from safetensors.torch import load_file
from score_models import loaded
from test_preference_trl import EPS, JINJA, RATE, SETTINGS, STEPS, TEMPLATE, assert_same, pairs
from tiny_pairs import prefer, write_records
from tiny_runs import base_model, material, metrics, run

from tutelage.checkpoint.hf import load_model, save_model
from tutelage.model.transformer import give_score_head_


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model that judges already: both programs begin with its head."""
    made = material(tmp_path_factory.mktemp("material"))
    (made.place / "template.yaml").write_text(TEMPLATE)
    model = load_model(made.model)
    give_score_head_(model, seed=3)
    with torch.no_grad():
        model.head_weight.mul_(20)
    base_model()[0].save(made.place / "judge", chat_template=JINJA)
    save_model(model, model.config, made.place / "judge", dtype=torch.float32)
    return made


def ours(made, out, rows, **settings):
    """The losses of a run with all rows in one batch, and its weights."""
    chosen = {"ckpt_paths": made.place / "judge", "template_config": made.place / "template.yaml"}
    chosen |= {"micro_batch_size_per_gpu": 64, "gradient_accum_steps": 1, "train_steps": STEPS, "lr": RATE}
    chosen |= {"lr_scheduler": "constant", "max_seq_len": 256, "eps": EPS, "train_data_paths": rows}
    ended = run(*prefer(made, out, "reward", **chosen | settings))
    assert ended.code == 0, ended.err
    return [row["loss"] for row in metrics(out)], load_file(out / "model" / "model.safetensors")


def theirs(made, rows, **settings):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(made.place / "judge")
    tokenizer.chat_template = JINJA
    model = loaded(made.place / "judge")
    # Turns end with what pads: the score would be read before it, and its embedding would never learn.
    tokenizer.pad_token = "<|endoftext|>"
    model.config.pad_token_id = tokenizer.pad_token_id
    model.get_input_embeddings().padding_idx = None
    options = SETTINGS | {"output_dir": str(made.place / "trl"), "per_device_train_batch_size": len(rows)}
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**options | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return losses, {name: p.detach() for name, p in trainer.model.named_parameters()}


def test_a_reward_model_is_trls(made, tmp_path):
    rows, records = pairs(made)
    assert_same(ours(made, tmp_path / "out", rows), theirs(made, records))


def test_centring_is_trls(made, tmp_path):
    rows, records = pairs(made)
    found = ours(made, tmp_path / "out", rows, center_rewards_coefficient=0.1)
    assert_same(found, theirs(made, records, center_rewards_coefficient=0.1))


def test_margins_are_trls_with_centring(made, tmp_path):
    _, records = pairs(made)
    records = [record | {"margin": 0.25 * number} for number, record in enumerate(records)]
    rows = write_records(made.place, "margins", records)
    found = ours(made, tmp_path / "out", rows, use_margins="true", center_rewards_coefficient=0.05)
    assert_same(found, theirs(made, records, center_rewards_coefficient=0.05))
