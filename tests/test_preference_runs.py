"""Preference runs of the command line: their references, how they go on, what they leave and refuse."""

import json
import math

import pytest
from tiny_pairs import labelled, pair, prefer, ranked, write_records
from tiny_runs import differences, leavings, material, metrics, refused, run, watched

FULL_LN2 = math.log(2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def held_out(made):
    return write_records(made.place, "val", [pair(number) for number in range(20, 28)])


def losses(out):
    return [row["loss"] for row in metrics(out)]


def done(words):
    ended = run(*words)
    assert ended.code == 0, ended.err
    return ended


KINDS = {
    "copy": ("dpo", {}),
    "read once": ("dpo", {"precompute_reference": "true"}),
    "lora": ("dpo", {"lora": "true", "lora_rank": 4, "lora_unfrozen_params": ".*norm.weight"}),
    "pissa": ("dpo", {"lora": "true", "lora_rank": 4, "lora_init": "pissa"}),
    "kto": ("dpo", {"loss": "kto"}),
    "simpo": ("simpo", {"share_prompt": "true"}),
    "packed, bf16": ("dpo", {"pack_samples": "true", "precision": "bf16", "micro_batch_size_per_gpu": 1}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_is_unbroken(made, held_out, tmp_path, monkeypatch, kind):
    """Bit for bit, and so is the divergence from the reference: the model as it began, not as it resumed."""
    watch = watched(monkeypatch)
    stage, settings = KINDS[kind]
    settings = settings | {"val_data_paths": held_out, "val_freq": 2}
    whole, broken = tmp_path / "a" / "out", tmp_path / "b" / "out"
    done(prefer(made, whole, stage, **settings))
    watch.signals = {3: 15}
    assert run(*prefer(made, broken, stage, **settings)).code == 143
    done(prefer(made, broken, stage, "--resume", **settings))
    assert not differences(leavings(whole), leavings(broken))
    assert metrics(whole)[-1]["val_kl"] > 0


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_a_reference_read_once_is_the_live_one(made, held_out, tmp_path, loss):
    live, once, again = (tmp_path / name for name in ("live", "once", "again"))
    settings = {"loss": loss, "val_data_paths": held_out, "cache_dir": tmp_path / "cache"}
    assert "reference: a second model takes 0.1 MiB more" in done(prefer(made, live, "dpo", **settings)).err
    settings["precompute_reference"] = "true"
    first = done(prefer(made, once, "dpo", **settings))
    assert "reference: reading 40 answers once" in first.err and "a second model" not in first.err
    second = done(prefer(made, again, "dpo", **settings))
    assert "reading 40 answers" not in second.err and "log-probabilities of 40 answers, kept in" in second.err
    for row, other in zip(metrics(live), metrics(once), strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
    assert metrics(once) == metrics(again)


def test_a_table_of_another_model_or_of_other_data_is_not_taken(made, tmp_path):
    settings = {"cache_dir": tmp_path / "cache", "precompute_reference": "true", "train_steps": 1}
    done(prefer(made, tmp_path / "a", "dpo", **settings))
    other = write_records(made.place, "others", [pair(number) for number in range(30, 40)])
    for name, changed in {
        "data": {"train_data_paths": other},
        "precision": {"precision": "bf16"},
        "length": {"max_seq_len": 150},
        "loss": {"loss": "kto"},
    }.items():
        ended = done(prefer(made, tmp_path / name, "dpo", **settings | changed))
        assert ("answers once" in ended.err) == (name != "length"), name  # 150 cuts nothing
    (table,) = [path for path in (tmp_path / "cache" / "reference").iterdir()][:1]
    table.write_bytes(table.read_bytes()[:100])
    for path in (tmp_path / "cache" / "reference").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert "answers once" in done(prefer(made, tmp_path / "damaged", "dpo", **settings)).err


def test_a_cache_that_cannot_keep_a_reference_is_named_before_it_is_read(made, tmp_path):
    settings = {"cache_dir": tmp_path, "precompute_reference": "true", "train_steps": 1}
    (tmp_path / "reference").write_text("no directory")
    ended = run(*prefer(made, tmp_path / "out", "dpo", **settings))
    told = (
        f"cannot keep the reference's log-probabilities in {tmp_path / 'reference'}: File exists; free it or "
    )
    assert refused(ended) == told + "pass another --cache_dir" and "answers once" not in ended.err
    (tmp_path / "reference").unlink()
    done(prefer(made, tmp_path / "out", "dpo", "--overwrite", **settings))
    assert [path.suffix for path in (tmp_path / "reference").iterdir()] == [".npy"]


def test_the_first_loss_is_ln_2_whatever_the_reference_is(made, tmp_path):
    """A policy that is its reference prefers nothing; torchllms' reference read no roles (defect 1.13.7)."""
    roles = tmp_path / "roles"
    words = {"use_role_embeddings": "true", "role_embeddings_init": "gaussian:0.5", "lr": 3e-2}
    done(made.sft(roles, **words))
    start = {"ckpt_paths": roles / "model", "train_steps": 1}
    for name, settings in {
        "copy": {},
        "lora": {"lora": "true"},
        "lora with roles": {"lora": "true", "use_role_embeddings": "true"},
        "read once": {"precompute_reference": "true"},
        "shared": {"share_prompt": "true"},
        "named": {"ref_ckpt_paths": roles / "model"},
    }.items():
        done(prefer(made, tmp_path / name, "dpo", **start | settings))
        assert losses(tmp_path / name) == pytest.approx([FULL_LN2], abs=1e-6), name
    done(prefer(made, tmp_path / "other", "dpo", **start | {"ref_ckpt_paths": made.model}))
    assert abs(losses(tmp_path / "other")[0] - FULL_LN2) > 1e-3


def test_fresh_role_embeddings_are_the_references_too(made, tmp_path):
    """However it is made; and a table of that reference is not one of the model without them."""
    fresh = {"use_role_embeddings": "true", "role_embeddings_init": "gaussian:0.5"}
    start = {"train_steps": 1, "cache_dir": tmp_path / "cache"}
    once = {"precompute_reference": "true"}
    for name, settings in {
        "copy": fresh,
        "lora": fresh | {"lora": "true"},
        "read once": fresh | once,
        "read once by another seed": fresh | once | {"seed": 5},
        "read once without": once,
    }.items():
        done(prefer(made, tmp_path / name, "dpo", **start | settings))
        assert losses(tmp_path / name) == pytest.approx([FULL_LN2], abs=1e-6), name


def test_an_adapter_that_goes_on_is_held_to_what_it_was(made, tmp_path):
    """With --lora_continue the reference is the tuned model, not the bare one under its adapter."""
    done(made.sft(tmp_path / "tuned", lora="true", lora_rank=4, lr=3e-2))
    start = {"lora": "true", "lora_continue": "true", "train_steps": 3}
    words = prefer(made, tmp_path / "out", "dpo", **start | {"ckpt_paths": tmp_path / "tuned"})
    done(words)
    assert losses(tmp_path / "out")[0] == pytest.approx(FULL_LN2, abs=1e-6)
    merged = {"lora": "true", "lora_rank": 4, "train_steps": 1, "ckpt_paths": tmp_path / "tuned"}
    done(prefer(made, tmp_path / "on top", "dpo", **merged))
    assert losses(tmp_path / "on top")[0] == pytest.approx(FULL_LN2, abs=1e-6)


def test_resuming_against_another_reference_is_refused(made, tmp_path, monkeypatch):
    watch = watched(monkeypatch)
    done(made.sft(tmp_path / "other"))
    watch.signals = {3: 15}
    out = tmp_path / "out"
    assert run(*prefer(made, out, "dpo")).code == 143
    ended = run(*prefer(made, out, "dpo", "--resume", ref_ckpt_paths=tmp_path / "other" / "model"))
    assert "was trained against another reference than ckpt_paths, or ref_ckpt_paths, give now" in refused(
        ended
    )


def test_ranked_and_labelled_records_train_too(made, held_out, tmp_path):
    rows = write_records(made.place, "ranked", [ranked(number) for number in range(12)])
    done(prefer(made, tmp_path / "ranked", "dpo", train_data_paths=rows, val_data_paths=held_out))
    assert metrics(tmp_path / "ranked")[-1]["val_accuracy"] >= 0
    rows = write_records(made.place, "labelled", [labelled(number) for number in range(12)])
    done(prefer(made, tmp_path / "labelled", "dpo", train_data_paths=rows, loss="kto"))
    assert "accuracy" not in metrics(tmp_path / "labelled")[-1]
    ended = run(*prefer(made, tmp_path / "no", "dpo", train_data_paths=rows))
    told = "0-1 has one answer and a label, and nothing to compare it with; that is for"
    assert refused(ended) == f"{told} `tutelage dpo --loss kto`"


def test_validation_says_what_the_policy_prefers(made, held_out, tmp_path):
    done(prefer(made, tmp_path / "out", "dpo", val_data_paths=held_out, train_epochs=3))
    row = metrics(tmp_path / "out")[-1]
    wanted = "loss accuracy margin rewards_chosen rewards_rejected logps_chosen logps_rejected likelier "
    wanted += "length_gap kl"
    assert {f"val_{name}" for name in wanted.split()} <= row.keys() and "val_perplexity" not in row
    assert row["val_margin"] == pytest.approx(
        row["val_rewards_chosen"] - row["val_rewards_rejected"], rel=1e-4
    )
    assert row["val_accuracy"] == 1.0 and row["val_kl"] > 0
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "| validation kl |" in card and "perplexity" not in card


def test_one_of_the_comparisons_is_shown_before_training(made, tmp_path):
    words = [word for word in prefer(made, tmp_path / "out", "dpo", train_steps=1)]
    at = words.index("--no_visualize_dataset")
    ended = done([*words[:at], *words[at + 2 :]])
    assert (
        ended.err.count("┌─ 0-15: ") == 2
        and "38% of the positions are prompts that answers share" in ended.err
    )


def test_config_and_flags_say_the_same(made, tmp_path):
    words = prefer(made, tmp_path / "out", "dpo", train_steps=1, loss="ipo")
    done(words)
    again = ["dpo", "--config", tmp_path / "out" / "config.yaml", "--output_dir", tmp_path / "again"]
    done(again)
    assert metrics(tmp_path / "out") == metrics(tmp_path / "again")
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("stage", ["dpo", "simpo"])
def test_held_out_prompts_are_answered_as_samples(made, held_out, tmp_path, stage):
    """The first two, up to where their answers begin, as `generate` answers them; and they change nothing."""
    settings = {"val_data_paths": held_out, "share_prompt": "true"}
    watched = {"sample_freq": 2, "sample_tokens": 6, "sample_temperature": 0}
    ended = done(prefer(made, tmp_path / "out", stage, **settings | watched))
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").open()]
    assert [row["step"] for row in rows] == [2, 2, 4, 4, 5, 5]
    assert [row["prompt"] for row in rows[-2:]] == [
        "user\nfirst\nassistant\nsecond\nuser\nquestion 20 \nassistant\n",
        "user\nquestion 21 and more \nassistant\n",
    ]
    assert all(f"{row['prompt']}▸{row['text']}" in ended.err for row in rows)
    asked = [pair(20)["prompt"], [{"role": "user", "content": pair(21)["prompt"]}]]
    asks = write_records(tmp_path, "ask", [{"messages": messages} for messages in asked])
    words = ["--input", asks.removeprefix("jsonl:"), "--output", tmp_path / "said", "--max_new_tokens", 6]
    done(["generate", tmp_path / "out", *words])
    said = [json.loads(line)["messages"][-1]["content"] for line in (tmp_path / "said").open()]
    assert said == [row["text"] for row in rows[-2:]]
    done(prefer(made, tmp_path / "alone", stage, **settings))
    assert metrics(tmp_path / "alone") == metrics(tmp_path / "out")


def test_prompts_of_ones_own_replace_those_held_out_and_without_either_there_are_no_samples(
    made, held_out, tmp_path
):
    own = {"sample_prompts": "hi", "sample_tokens": 3, "train_steps": 1}
    done(prefer(made, tmp_path / "own", "dpo", val_data_paths=held_out, **own))
    (row,) = [json.loads(line) for line in (tmp_path / "own" / "samples.jsonl").open()]
    assert row["prompt"] == "hi"
    done(prefer(made, tmp_path / "none", "dpo", train_steps=1))
    assert not (tmp_path / "none" / "samples.jsonl").exists()
    ended = run(*prefer(made, tmp_path / "no", "dpo", sample_freq=2))
    assert refused(ended) == "dpo: sample_freq does nothing without sample_prompts"


def test_a_held_out_prompt_that_leaves_no_room_for_an_answer_is_passed_over(made, tmp_path):
    records = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in ("long " * 80, "a", "b")]
    settings = {"val_data_paths": write_records(made.place, "long", records), "max_seq_len": 600}
    done(prefer(made, tmp_path / "out", "dpo", **settings, train_steps=1, sample_tokens=3))
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").open()]
    assert [row["prompt"] for row in rows] == ["user\na\nassistant\n", "user\nb\nassistant\n"]
