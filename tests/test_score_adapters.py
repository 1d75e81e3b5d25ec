"""Adapters of reward models: the score head is trained in full beside them, and PEFT has the same files."""

import json

import peft
import pytest
import torch
from peft_models import LINEARS, based, saved_by_peft, saved_by_us, shuffle_
from score_models import as_judge, our_score, scorer, their_score
from tiny_data import refusal
from tiny_models import CONFIGS, oracle, ours, random_tokens
from tiny_runs import base_model, run
from transformers import AutoModelForSequenceClassification

from tutelage.checkpoint.adapter import attach_
from tutelage.checkpoint.hf import config_of, fingerprint_of, load_config, load_model, save_model
from tutelage.checkpoint.peft import read_peft
from tutelage.checkpoint.torchllms_lora import write_torchllms
from tutelage.model.adapters import LoRASettings, add_lora_, targets_of
from tutelage.model.transformer import give_score_head_
from tutelage.recipes.stage.chain import put_on_

ROWS = [row[:n] for row, n in zip(random_tokens(3, 14).tolist(), (14, 5, 9), strict=True)]
FAMILIES = ["llama", "llama tied", "qwen2", "mistral head_dim"]


def judge_with_adapter(name: str, **options) -> peft.PeftModel:
    """PEFT's model of the same weights, its adapter and score random."""
    base = scorer(name)
    lm = oracle(name)
    base.model.load_state_dict(lm.model.state_dict())
    settings = {"r": 4, "lora_alpha": 6, "target_modules": LINEARS, "task_type": "SEQ_CLS"} | options
    model = peft.get_peft_model(base, peft.LoraConfig(**settings))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(0.1 * torch.randn(p.shape, generator=draw))
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("embedding", [False, True])
def test_peft_loads_our_adapter_on_a_language_model_and_scores_alike(name, embedding, tmp_path):
    base = based(tmp_path / "base", name)
    model = ours(oracle(name))
    give_score_head_(model, seed=2)
    add_lora_(model, LoRASettings(rank=4, embedding=embedding), seed=1)
    shuffle_(model)
    model.head_weight.requires_grad_(True)
    directory = saved_by_us(model, tmp_path / "adapter")
    values = json.loads((directory / "adapter_config.json").read_text())
    assert (values["task_type"], values["modules_to_save"]) == ("SEQ_CLS", ["score"])
    theirs = peft.PeftModel.from_pretrained(as_judge(base), directory).eval()
    torch.testing.assert_close(their_score(theirs, ROWS, 0), our_score(model, ROWS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_we_put_pefts_adapter_on_a_language_model_and_score_alike(name, tmp_path):
    base, theirs = based(tmp_path / "base", name), judge_with_adapter(name)
    directory, expected = saved_by_peft(theirs, tmp_path / "adapter"), their_score(theirs, ROWS, 0)
    shape = config_of(base, [directory])
    assert shape.head == "score" and not shape.tied
    merged = load_model(base, adapters=[directory])
    assert merged.config.head == "score" and merged.lm_head is None
    torch.testing.assert_close(our_score(merged, ROWS), expected, atol=1e-5, rtol=1e-5)
    save_model(merged, merged.config, tmp_path / "merged", dtype=torch.float32)
    assert fingerprint_of(base, [directory]) == fingerprint_of(tmp_path / "merged")
    beside = load_model(base)
    put_on_(beside, read_peft(directory))
    torch.testing.assert_close(our_score(beside, ROWS), expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_on_a_model_that_has_a_score_head_brings_its_own(tmp_path):
    theirs = judge_with_adapter("llama")
    directory, expected = saved_by_peft(theirs, tmp_path / "adapter"), their_score(theirs, ROWS, 0)
    model = ours(oracle("llama"))
    give_score_head_(model, seed=9)
    save_model(model, model.config, tmp_path / "base", dtype=torch.float32)
    attach_(model, read_peft(directory))
    torch.testing.assert_close(our_score(model, ROWS), expected, atol=1e-5, rtol=1e-5)
    merged = load_model(tmp_path / "base", adapters=[directory])
    torch.testing.assert_close(our_score(merged, ROWS), expected, atol=1e-5, rtol=1e-5)


def test_a_second_adapter_goes_on_what_the_first_made(tmp_path):
    """The first alone brings the head; the second was trained on both merged."""
    base = based(tmp_path / "base", "llama tied")
    first = saved_by_peft(judge_with_adapter("llama tied"), tmp_path / "first")
    model = load_model(base, adapters=[first])
    add_lora_(model, LoRASettings(rank=2), seed=1)
    shuffle_(model)
    second = saved_by_us(model, tmp_path / "second")
    assert "modules_to_save" not in read_config(second) or not read_config(second)["modules_to_save"]
    both = load_model(base, adapters=[first, second])
    torch.testing.assert_close(our_score(both, ROWS), our_score(model, ROWS), atol=1e-5, rtol=1e-5)


def read_config(directory) -> dict:
    return json.loads((directory / "adapter_config.json").read_text())


def test_an_adapter_of_two_labels_is_refused(tmp_path):
    config = CONFIGS["llama"].__class__.from_dict(CONFIGS["llama"].to_dict() | {"num_labels": 2})
    model = peft.get_peft_model(
        AutoModelForSequenceClassification.from_config(config),
        peft.LoraConfig(r=4, target_modules=LINEARS, task_type="SEQ_CLS"),
    )
    directory, base = saved_by_peft(model, tmp_path / "adapter"), based(tmp_path / "base", "llama")
    message = refusal(load_model, base, adapters=[directory])
    assert message.endswith("score.weight is 1x32 in the model, the adapter holds 2x32")


def test_one_row_gets_no_adapter_of_low_rank(tmp_path):
    model = ours(oracle("llama"))
    give_score_head_(model, seed=2)
    expected = "lora_head: the model's head is a score, trained in full beside the adapters"
    assert refusal(targets_of, model, LoRASettings(head=True)) == expected
    assert "no linear layer or embedding is named score" in refusal(
        targets_of, model, LoRASettings(targets=("score",))
    )
    assert "score" not in targets_of(model, LoRASettings(targets=(".*",)))


def test_merging_keeps_the_pad_token_that_another_programs_judge_was_trained_with(tmp_path):
    """TRL's judge of such a model reads its scores one token early, and so was trained to."""
    tokenizer, model, config = base_model()
    tokenizer.save(tmp_path / "base")
    save_model(model, config, tmp_path / "base", dtype=torch.float32)
    judge = peft.get_peft_model(
        as_judge(tmp_path / "base"), peft.LoraConfig(r=4, target_modules=LINEARS, task_type="SEQ_CLS")
    )
    directory = saved_by_peft(judge, tmp_path / "adapter")
    ended = run("merge", tmp_path / "base", directory, "--output", tmp_path / "merged")
    assert ended.code == 0 and load_config(tmp_path / "merged").pad == tokenizer.pad == tokenizer.eos


def test_torchllms_knows_no_score_head(tmp_path):
    stored = read_peft(saved_by_peft(judge_with_adapter("llama"), tmp_path / "adapter"))
    shape = ours(oracle("llama")).config
    message = refusal(write_torchllms, stored, tmp_path / "model_final.pth", shape)
    assert message.endswith("has a score head, and torchllms knows none; PEFT does")
