"""Runs with role embeddings: what they begin with, keep, resume and say, however they are made."""

import json
import shutil

import pytest
import torch
from parallel_runs import all_of
from safetensors.torch import load_file
from tiny_roles import ON, TABLE, finished_run, refuse_weights
from tiny_runs import differences, dying, leavings, material, metrics, refused, run, stored

from tutelage.checkpoint.hf import load_config
from tutelage.train.saver import newest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    return finished_run(made, tmp_path_factory.mktemp("finished") / "out")


@pytest.fixture
def weightless(monkeypatch):
    refuse_weights(monkeypatch)


def test_a_table_of_zeros_begins_where_the_base_is_bit_for_bit(made, tmp_path):
    losses = []
    for name, settings in (("with", ON), ("without", {})):
        out = tmp_path / name
        assert run(*made.sft(out, train_steps=2, **settings)).code == 0
        losses.append([row["loss"] for row in metrics(out)])
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]
    trained = load_file(tmp_path / "with" / "model" / "model.safetensors")[TABLE]
    assert trained.any(1).tolist() == [False, True, True, False, True], (
        "no system and no tool spoke in the data"
    )


def test_what_is_handed_over_holds_the_table_and_says_that_others_ignore_it(finished):
    out, err = finished.out, finished.said
    values = json.loads((out / "model" / "config.json").read_text())
    assert (values["use_role_embeddings"], values["role_embeddings_init"]) == (True, "gaussian:0.3")
    assert load_file(out / "model" / "model.safetensors")[TABLE].shape == (5, 32)
    note = "ignores model.role_embeddings.weight and so computes something else"
    card = (out / "model" / "README.md").read_text()
    assert "note: the model has role embeddings" in err and note in err
    assert "## Only tutelage runs this model\n\nThe model has role embeddings" in card and note in card
    assert "logits over" in card and "| parameters | 23,968 |" in card
    assert "role embeddings: a fresh table, gaussian:0.3\n" in err
    assert "llama, 23,968 parameters" in err, "the plan counts it"


def test_models_without_a_table_are_not_told_of_one(made, tmp_path):
    ended = run(*made.sft(tmp_path / "out", train_steps=1))
    assert ended.code == 0 and "role" not in ended.err
    assert "role" not in (tmp_path / "out" / "model" / "README.md").read_text()
    assert "role" not in (tmp_path / "out" / "model" / "config.json").read_text()


def test_samples_of_a_run_hear_roles(made, tmp_path):
    """At the last step: greedily, what the exported model says to the same question."""
    out = tmp_path / "out"
    settings = {**ON, "role_embeddings_init": "gaussian:0.5", "train_steps": 2, "sample_prompts": "hi there"}
    assert run(*made.sft(out, sample_temperature=0, sample_tokens=9, **settings)).code == 0
    (row,) = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    words = ["--prompt", "hi there", "--max_new_tokens", 9, "--device", "cpu"]
    assert run("generate", out, *words).out == row["text"] + "\n"


def test_a_run_that_died_and_was_resumed_ends_as_if_it_had_not(made, finished, tmp_path, monkeypatch):
    out, settings = finished.out, finished.settings
    again = tmp_path / "out"
    with monkeypatch.context() as patch:
        dying(patch, step=5)
        assert run(*made.sft(again, **settings)).code == 1
    assert run(*made.sft(again, "--resume", **settings)).code == 0
    assert f"model.{TABLE}" in stored(newest(again / "checkpoints"))
    assert differences(leavings(out), leavings(again)) == []


def test_a_resumed_run_without_the_flag_is_refused(made, finished, tmp_path):
    out = shutil.copytree(finished.out, tmp_path / "out")
    settings = {**finished.settings, "role_embeddings_init": "zeros", "use_role_embeddings": "false"}
    message = refused(run(*made.sft(out, "--resume", **settings)))
    assert f"model.{TABLE} is 5x32 torch.float32 there and missing here; resume with the settings" in message


def test_a_base_that_has_a_table_keeps_it_unasked_and_says_so(made, finished, tmp_path):
    base = finished.model
    for number, settings in enumerate(({}, {**ON, "role_embeddings_init": "gaussian:0.7"})):
        out = tmp_path / f"out{number}"
        ended = run(*made.sft(out, ckpt_paths=base, train_steps=1, lr=1e-9, **settings))
        assert ended.code == 0, ended.err
        said = "role embeddings: the model has them already, and they are trained further"
        unused = "; --role_embeddings_init gaussian:0.7 has no use" if settings else ""
        assert f"{said}{unused}\n" in ended.err
        kept, was = (load_file(place / "model.safetensors")[TABLE] for place in (out / "model", base))
        torch.testing.assert_close(kept, was, atol=1e-6, rtol=0)
        assert load_config(out / "model").role_embeddings_init == "gaussian:0.3"


def test_pretraining_further_keeps_the_table_of_its_base(made, finished, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(finished.model, base)
    plain = made.pretrain(tmp_path / "out", train_steps=2, ckpt_paths=base)
    for flag in ("tokenizer", "dim", "n_layers", "n_heads", "n_kv_heads"):
        at = plain.index(f"--{flag}")
        del plain[at : at + 2]
    ended = run(*plain)
    assert ended.code == 0, ended.err
    was, now = (load_file(each / "model.safetensors")[TABLE] for each in (base, tmp_path / "out" / "model"))
    moved = [not torch.equal(*rows) for rows in zip(was, now, strict=True)]
    assert moved[4] and "note: the model has role embeddings" in ended.err


HOW = {
    "bfloat16 masters and averages": {"precision": "bf16", "ema_decay": 0.9},
    "packed": {"pack_samples": "true", "micro_batch_size_per_gpu": 1},
    "recomputed, muon": {"selective_ac_ratio": 0.5, "optimizer": "muon"},
    "pure bfloat16": {"precision": "bf16_pure"},
    "float16": {"precision": "fp16"},
    "compiled": {"compile": "true", "precision": "bf16"},
}


@pytest.mark.parametrize(
    "how", [pytest.param(name, marks=[pytest.mark.slow] * (name == "compiled")) for name in HOW]
)
def test_the_table_learns_and_is_exported_however_the_run_is_made(made, tmp_path, how):
    out = tmp_path / "out"
    ended = run(*made.sft(out, train_steps=3, **ON, **HOW[how]))
    assert ended.code == 0, ended.err
    assert "read back from disk, logits differ by 0, greedy text is equal" in ended.err
    assert load_file(out / "model" / "model.safetensors")[TABLE].any(1).tolist()[1:3] == [True, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {**ON, "role_embeddings_init": "uniform"},
            "role_embeddings_init is 'uniform', must be zeros or gaussian:STD, say gaussian:0.02",
        ),
        (
            {"role_embeddings_init": "gaussian:0.02"},
            "role_embeddings_init does nothing without use_role_embeddings",
        ),
    ],
)
def test_mistakes_are_named_before_weights_load(made, tmp_path, weightless, settings, message):
    assert refused(run(*made.sft(tmp_path / "out", **settings))).endswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_train_sample_and_hand_over_what_one_does(made, tmp_path):
    """The table is drawn alike in each process, sharded, gathered to generate, and written whole."""
    settings = {**ON, "role_embeddings_init": "gaussian:0.3", "train_steps": 4, "eps": 1e-3}
    settings |= {"sample_prompts": "hi", "sample_tokens": 5, "val_data_paths": made.held_out}
    (tmp_path / "two").mkdir()
    all_of(tmp_path, [made.sft(tmp_path / "two" / "out", gradient_accum_steps=1, **settings)], {})
    assert run(*made.sft(tmp_path / "one" / "out", gradient_accum_steps=2, **settings)).code == 0
    one, two = (load_file(tmp_path / n / "out" / "model" / "model.safetensors") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5)
    samples = [(tmp_path / n / "out" / "samples.jsonl").read_text() for n in ("one", "two")]
    assert samples[0] == samples[1]
