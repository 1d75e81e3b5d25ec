"""Mistakes in the settings and the data of preference runs are named, and torchllms' commands are none."""

import pytest
from tiny_pairs import prefer
from tiny_runs import material, refused, run

from tutelage.cli import configure


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


REFUSED = {
    "beta": ({"dpo_beta": 0}, "dpo_beta is 0.0, must be above 0"),
    "smoothing": (
        {"loss": "hinge", "dpo_label_smoothing": 0.1},
        "dpo_label_smoothing is 0.1, must be 0: loss hinge has none",
    ),
    "exo": ({"loss": "exo"}, "dpo_label_smoothing is 0.0, must be between 0 and 0.5 for exo, say 0.001"),
    "orpo": (
        {"loss": "orpo", "ref_ckpt_paths": "x"},
        "loss orpo has no reference; leave out ref_ckpt_paths, precompute_reference",
    ),
    "ipo": ({"loss": "ipo", "by_length": "true"}, "by_length does nothing for loss ipo; leave it out"),
    "kto": ({"loss": "kto", "rpo_alpha": 1}, "rpo_alpha is for pairs, and kto takes answers one by one"),
    "weights": (
        {"desirable_weight": 2},
        "desirable_weight and undesirable_weight are for loss kto; leave them out",
    ),
    "chats": (
        {"train_data_paths": "CHATS"},
        "no chosen and rejected, prompt and answers, or prompt, completion and label; ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_named(made, tmp_path, name):
    settings, message = REFUSED[name]
    settings = {key: made.chats if value == "CHATS" else value for key, value in settings.items()}
    assert message in refused(run(*prefer(made, tmp_path / "out", "dpo", **settings)))
    assert not (tmp_path / "out").exists()


def test_a_reference_of_another_vocabulary_is_refused(made, tmp_path):
    other = material(tmp_path / "other" if (tmp_path / "other").mkdir() is None else tmp_path, vocab_size=300)
    ended = run(*prefer(made, tmp_path / "out", "dpo", ref_ckpt_paths=other.model))
    assert "as a reference it must read the same tokens" in refused(ended)


def test_simpo_refuses_what_makes_no_sense(made, tmp_path):
    ended = run(*prefer(made, tmp_path / "out", "simpo", simpo_beta=-1))
    assert refused(ended) == "simpo: simpo_beta is -1.0, must be above 0"


DOCUMENTED = {
    "dpo": "--dpo_beta 0.01",
    "simpo": "--simpo_beta 1.0 --simpo_gamma 1.0",
}


@pytest.mark.parametrize("stage", DOCUMENTED)
def test_torchllms_documented_commands_parse(stage):
    words = (
        "--ckpt_paths checkpoints/llama3.1_8b_instruct/consolidated.00.pth --lr 5e-7 --lr_scheduler cosine "
        "--template_config llama3_instruct.yaml --train_data_paths jsonl:examples.jsonl --train_epochs 1 "
        "--max_seq_len 1024 --micro_batch_size_per_gpu 1 --gradient_accum_steps 8 --output_dir outputs/dpo "
        f"--lora --lora_rank 16 --lora_alpha 16 --lora_dropout 0.0 {DOCUMENTED[stage]}"
    )
    name, config = configure([stage, *words.split()])
    assert name == stage and config.lr == 5e-7 and config.lora_alpha == 16
