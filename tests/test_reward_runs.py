"""Reward runs of the command line: what learns, how they go on, what they leave, show and refuse."""

import json
import random

import numpy as np
import pytest
import torch
from score_models import loaded, their_score
from tiny_pairs import labelled, pair, prefer, ranked, write_records
from tiny_runs import differences, leavings, material, metrics, refused, run, watched
from transformers import AutoTokenizer

from tutelage.checkpoint.hf import load_model

LORA = {"lora": "true", "lora_rank": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def held_out(made):
    return write_records(made.place, "val", [pair(number) for number in range(20, 28)])


def done(words):
    ended = run(*words)
    assert ended.code == 0, ended.err
    return ended


def weights(out):
    return dict(load_model(out).named_parameters())


def scored(place, model, records, *words):
    """The lines of the records with their scores."""
    rows = write_records(place, "to_score", records).removeprefix("jsonl:")
    out = done(["reward", "score", model, "--input", rows, "--precision", "fp32", "--device", "cpu", *words])
    return [json.loads(line) for line in out.out.splitlines()]


KINDS = {
    "full": {},
    "lora": LORA | {"save_merged": "true"},
    "packed, bf16": {"pack_samples": "true", "precision": "bf16", "micro_batch_size_per_gpu": 1},
    "shared, margins": {"share_prompt": "true", "use_margins": "true", "center_rewards_coefficient": 0.01},
}


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_is_unbroken(made, held_out, tmp_path, monkeypatch, kind):
    """Bit for bit, though it scored samples on the way."""
    watch = watched(monkeypatch)
    settings = KINDS[kind] | {"val_data_paths": held_out, "val_freq": 2, "sample_freq": 2}
    whole, broken = tmp_path / "a" / "out", tmp_path / "b" / "out"
    done(prefer(made, whole, "reward", **settings))
    watch.signals = {3: 15}
    assert run(*prefer(made, broken, "reward", **settings)).code == 143
    done(prefer(made, broken, "reward", "--resume", **settings))
    assert not differences(leavings(whole), leavings(broken))
    assert (whole / "samples.jsonl").read_text() == (broken / "samples.jsonl").read_text()


def test_under_frozen_blocks_the_head_still_learns(made, tmp_path):
    """With --frozen_layers 1 and with queries and values alone: the same head is drawn, and moves."""
    done(prefer(made, tmp_path / "still", "reward", train_steps=1, lr=1e-30))
    begun = weights(tmp_path / "still" / "model")
    for name, words, moving in (
        ("blocks", {"frozen_layers": 1}, ("model.layers.1.", "model.norm.", "score.")),
        ("qv", {"train_atten_qv_layers_only": "true"}, ("q_proj.", "v_proj.", "model.norm.", "score.")),
        ("head", {"train_parts": "head"}, ("score.",)),
    ):
        done(prefer(made, tmp_path / name, "reward", train_steps=2, **words))
        for key, weight in weights(tmp_path / name / "model").items():
            moves = any(part in key for part in moving)
            assert torch.equal(weight, begun[key]) != moves, (name, key)


def test_transformers_scores_as_reward_score_does(made, tmp_path):
    """Conversations through the exported chat template, alone and padded on the right."""
    done(prefer(made, tmp_path / "out", "reward", train_epochs=2))
    turns = [pair(number) for number in (1, 4, 7, 10)]
    conversations = [messages for record in turns for messages in (record["chosen"], record["rejected"])]
    lines = scored(tmp_path, tmp_path / "out", [{"messages": each} for each in conversations])
    assert [line["messages"] for line in lines] == conversations
    ours = torch.tensor([line["score"] for line in lines])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    theirs = loaded(tmp_path / "out" / "model")
    rows = [tokenizer.apply_chat_template(each, return_dict=False) for each in conversations]
    assert len({len(row) for row in rows}) > 2 and theirs.config.pad_token_id == tokenizer.pad_token_id
    torch.testing.assert_close(their_score(theirs, rows, tokenizer.pad_token_id), ours, atol=1e-5, rtol=1e-5)
    for row, score in zip(rows, ours, strict=True):
        alone = their_score(theirs, [row], tokenizer.pad_token_id)
        torch.testing.assert_close(alone, score[None], atol=1e-5, rtol=1e-5)
    batch = tokenizer.apply_chat_template(
        conversations, padding=True, padding_side="right", return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits[:, 0], ours, atol=1e-5, rtol=1e-5)


def test_an_adapter_is_scored_as_its_merged_model_is(made, tmp_path):
    done(prefer(made, tmp_path / "out", "reward", save_merged="true", **LORA))
    records = [pair(number) for number in range(6)]
    adapter, merged = (scored(tmp_path, tmp_path / "out" / kind, records) for kind in ("adapter", "model"))
    assert np.std([line["scores"] for line in merged]) > 1e-3
    for one, other in zip(adapter, merged, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_a_reward_model_is_trained_on_quantized_weights(made, tmp_path):
    settings = LORA | {"quant": "nf4", "precision": "bf16", "train_epochs": 4}
    done(prefer(made, tmp_path / "out", "reward", **settings))
    losses = [row["loss"] for row in metrics(tmp_path / "out")]
    assert losses[0] == pytest.approx(0.69, abs=0.03) and losses[-1] < losses[0]
    line = scored(tmp_path, tmp_path / "out", [pair(0)], "--quant", "nf4")[0]
    assert line["scores"][0] > line["scores"][1]


def test_a_finished_reward_model_goes_on_where_it_was(made, held_out, tmp_path):
    """Its validation is that of the end before: the head is its own and not a fresh one."""
    settings = {"val_data_paths": held_out, "train_epochs": 2}
    done(prefer(made, tmp_path / "first", "reward", **settings))
    again = settings | {"lr": 1e-30, "train_epochs": 1}
    done(prefer(made, tmp_path / "second", "reward", **again, ckpt_paths=tmp_path / "first"))
    first, second = (metrics(tmp_path / name)[-1] for name in ("first", "second"))
    for name in ("val_loss", "val_accuracy", "val_margin", "val_rewards_chosen"):
        assert second[name] == pytest.approx(first[name], abs=1e-6)


def words_of(draw, *, good):
    """Five words of an answer, so many of them `good`."""
    words = ["good"] * good + draw.choices(("poor", "dull", "grim", "evil", "mean"), k=5 - good)
    draw.shuffle(words)
    return " ".join(words)


def pairs_of(draw, count):
    for number in range(count):
        good, bad = words_of(draw, good=draw.randint(1, 3)), words_of(draw, good=0)
        yield {"prompt": f"say {number}", "chosen": good, "rejected": bad}


def ranked_of(draw, count):
    for number in range(count):
        yield {"prompt": f"say {number}", "answers": [words_of(draw, good=good) for good in (4, 2, 1, 0)]}


@pytest.mark.parametrize("records", [pairs_of, ranked_of])
def test_it_learns_which_answers_are_good(made, tmp_path, records):
    """Held-out accuracy from a guess to above .95, in a few seconds."""
    draw = random.Random(5)
    rows = [
        write_records(tmp_path, name, list(records(draw, n))) for name, n in (("train", 200), ("val", 50))
    ]
    settings = {"train_data_paths": rows[0], "val_data_paths": rows[1], "lr": 5e-3, "train_epochs": 3}
    settings |= {
        "micro_batch_size_per_gpu": 16,
        "gradient_accum_steps": 1,
        "lr_scheduler": "constant",
        "seed": 1,
    }
    done(prefer(made, tmp_path / "before", "reward", **settings | {"lr": 1e-30, "train_steps": 1}))
    done(prefer(made, tmp_path / "out", "reward", **settings))
    before, after = metrics(tmp_path / "before")[-1], metrics(tmp_path / "out")[-1]
    assert 0.4 < before["val_accuracy"] < 0.6 and after["val_accuracy"] > 0.95
    assert after["val_margin"] > 1


def test_held_out_answers_are_scored_as_samples(made, held_out, tmp_path):
    """The first two prompts, best answer first, at the steps that --sample_freq says and at the last."""
    settings = {"val_data_paths": held_out, "sample_freq": 2, "share_prompt": "true"}
    ended = done(prefer(made, tmp_path / "out", "reward", **settings))
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").open()]
    assert [row["step"] for row in rows] == [2] * 4 + [4] * 4 + [5] * 4
    prompts = [row["prompt"] for row in rows[-4:]]
    assert prompts[0] == prompts[1] and prompts[2] == prompts[3] == "user\nquestion 21 and more \nassistant\n"
    lines = scored(tmp_path, tmp_path / "out", [pair(20), pair(21)])
    scores = [f"{score:+.3f} " for line in lines for score in line["scores"]]
    texts = [row["text"] for row in rows[-4:]]
    assert texts[2:] == [f"{scores[2]}no, never good\n", f"{scores[3]}naïve 🙂 yes bad\n"]
    assert texts[0].startswith(scores[0]) and texts[1].startswith(scores[1])
    assert all(f"{row['prompt']}▸{row['text']}" in ended.err for row in rows)


def test_without_held_out_data_answers_that_it_learns_from_are_scored(made, tmp_path):
    done(prefer(made, tmp_path / "out", "reward", train_steps=1))
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").open()]
    assert [row["text"].split(" ", 1)[1] for row in rows[:2]] == ["aye good\n", "perhaps 東京 bad\n"]


def test_ranked_records_train_beside_pairs(made, tmp_path):
    rows = write_records(made.place, "mixed", [*map(ranked, range(8)), *map(pair, range(8))])
    done(prefer(made, tmp_path / "out", "reward", train_data_paths=rows, use_margins="true"))
    assert metrics(tmp_path / "out")[-1]["learned"] > 8


REFUSED = {
    "prompts": (
        {"sample_prompts": "hi"},
        "reward: sample_prompts are for models that write; held-out answers are scored instead",
    ),
    "centre": ({"center_rewards_coefficient": -1}, "center_rewards_coefficient is -1.0, must be 0 or more"),
    "head": ({"lora": "true", "lora_head": "true"}, "lora_head"),
    "labels": (
        {"train_data_paths": "LABELLED"},
        "0-1 has one answer and a label, and nothing to compare it with; that is for `tutelage dpo",
    ),
    "margins": (
        {"train_data_paths": "PLAIN", "use_margins": "true"},
        "has a margin, or scores of its answers",
    ),
    "chats": ({"train_data_paths": "CHATS"}, "no chosen and rejected, prompt and answers, or prompt, comp"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_are_named(made, tmp_path, name):
    settings, message = REFUSED[name]
    plain = [{"prompt": f"{n}", "chosen": "yes", "rejected": "no"} for n in range(4)]
    rows = {"LABELLED": [labelled(number) for number in range(4)], "PLAIN": plain}
    named = {key: write_records(tmp_path, key, records) for key, records in rows.items()} | {
        "CHATS": made.chats
    }
    settings = {key: named.get(value, value) for key, value in settings.items()}
    assert message in refused(run(*prefer(made, tmp_path / "out", "reward", **settings)))
    assert not (tmp_path / "out").exists()
