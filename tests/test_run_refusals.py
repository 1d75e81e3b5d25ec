"""Mistakes that a run refuses before weights load, and before it leaves anything behind."""

import json
import os
import shutil
from importlib.util import find_spec

import pytest
import torch
from tiny_runs import material, refused, run

from tutelage.checkpoint import shards


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture
def weightless(monkeypatch):
    """No weight can be read: a run that tries has begun to load."""

    def rows(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(shards.Shards, "rows", rows)


def test_a_dry_run_checks_everything_but_weights_and_leaves_nothing(made, tmp_path, weightless):
    out = tmp_path / "out"
    for words in (made.sft(out), made.pretrain(out)):
        ended = run(*words, "--dry_run")
        assert ended.code == 0, ended.err
        assert "optimizer steps of" in ended.err and ended.out == ""
        assert not out.exists()


def change_config(directory, **values) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


BROKEN_MODELS = {
    "weights lost": (lambda base: (base / "model.safetensors").unlink(), "model.safetensors"),
    "weights cut": (
        lambda base: os.truncate(base / "model.safetensors", 50_000),
        "model.safetensors is truncated or not a safetensors file",
    ),
    "another width": (
        lambda base: change_config(base, hidden_size=64),
        "model.embed_tokens.weight is 259x32, config.json makes it 259x64",
    ),
    "another tokenizer": (
        lambda base: (base / "tokenizer.json").write_text(bigger(base / "tokenizer.json")),
        "its tokenizer has 260 tokens, the model embeds 259; they do not belong together",
    ),
    "more named than embedded": (
        lambda base: (base / "special_tokens_map.json").write_text(
            '{"mask_token": "[M]", "cls_token": "[C]"}'
        ),
        "its tokenizer has 261 tokens, the model embeds 259; they do not belong together, or its settings "
        "name control tokens that it never had: take [C], [M] out of them",
    ),
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no template": (
        lambda base: (base / "tokenizer_config.json").write_text("{}"),
        "the model has no chat template of its own; name the template it was trained with by",
    ),
}


def bigger(path) -> str:
    vocabulary = json.loads(path.read_text())
    token = vocabulary["added_tokens"][-1]
    vocabulary["added_tokens"].append({**token, "id": token["id"] + 1, "content": "<|more|>"})
    return json.dumps(vocabulary)


@pytest.mark.parametrize("case", BROKEN_MODELS)
def test_a_model_that_cannot_be_trained_is_refused_before_weights_load(made, tmp_path, weightless, case):
    harm, says = BROKEN_MODELS[case]
    base, out = shutil.copytree(made.model, tmp_path / "base"), tmp_path / "out"
    harm(base)
    message = refused(run(*made.sft(out, ckpt_paths=base)))
    assert says in message
    assert str(base) in message or case == "no template", "which model"
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"template_config": "chatlm"}, "chatlm"),
        ({"template_config": "llama3_instruct"}, "template llama3_instruct writes <|begin_of_text|>, "),
        ({"val_data_paths": "jsonl:nowhere.jsonl"}, "nowhere.jsonl"),
        ({"ckpt_paths": "./nowhere"}, "nowhere"),
        ({"max_seq_len": 8}, "100.0 % of the data would be cut or dropped, and --max_cut_percent allows 5"),
        ({"device": "cuda:0"}, "device cuda was asked for, but torch sees no GPU"),
        ({"wandb": "true"}, "wandb is on, but its package is missing: pip install 'tutelage[wandb]'"),
        ({"device": "gpu"}, "device gpu is no device: cuda, cuda:1, cpu or auto"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_weights_load(
    made, tmp_path, weightless, settings, says
):
    if settings.get("device") == "cuda:0" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "wandb" in settings and find_spec("wandb"):
        pytest.skip("wandb is installed")
    out = tmp_path / "out"
    assert says in refused(run(*made.sft(out, **settings)))
    assert not out.exists()


def test_an_output_directory_that_cannot_be_made_is_refused_before_weights_load(made, tmp_path, weightless):
    (tmp_path / "file").write_text("")
    for out, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "out", "Not a directory")):
        assert refused(run(*made.sft(out))) == f"{out} cannot be made: {reason}"


def test_bad_rows_are_refused_before_weights_load(made, tmp_path, weightless):
    path, out = tmp_path / "bad.jsonl", tmp_path / "out"
    rows = [{"messages": [{"role": "user", "content": "?"}, {"role": "assistant"}]}, {"prompt": "?"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for flag in ("train_data_paths", "val_data_paths"):
        message = refused(run(*made.sft(out, **{flag: f"jsonl:{path}"})))
        assert f"{path}:1: " in message and f"{path}:2: " in message
        assert not out.exists()


def test_a_checkpoint_that_this_run_cannot_continue_is_refused_before_weights_load(
    made, tmp_path, monkeypatch
):
    """And config.yaml goes on saying what the run is."""
    out, larger = tmp_path / "out", tmp_path / "larger"
    larger.mkdir()
    other = material(larger, n_layers=3)
    assert run(*made.sft(out, train_steps=6)).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(shards.Shards, "rows", None)  # reading a weight would be an error of another kind
    checkpoint = out / "checkpoints" / "step-0000006"
    changed = "cannot continue in the middle of other data: the checkpoint was made with "
    for settings, says in (
        (
            {"train_steps": 3},
            f"{checkpoint} is past the end of this run, which has 3 steps; give --train_steps or "
            "--train_epochs as before or higher, or start anew with --overwrite",
        ),
        ({"train_steps": 6, "seed": 1}, f"{changed}seed 1234, this run has seed 1; "),
        ({"train_steps": 6, "train_data_paths": made.held_out}, f"{changed}data "),
        (
            {"train_steps": 6, "micro_batch_size_per_gpu": 3},
            f"{changed}samples or rows a step 4, this run has",
        ),
        (
            {"train_steps": 6, "ckpt_paths": other.model},
            f"{checkpoint} holds another model or optimizer than this run's: "
            "model.model.layers.2.input_layernorm.weight is missing there and 32 torch.float32 here, "
            "and 8 more tensors differ; resume with the settings in",
        ),
        ({"train_steps": 6, "precision": "bf16_pure"}, "is 259x32 torch.float32 there and 259x32 torch.bf"),
    ):
        for words in ([], ["--dry_run"]):
            assert says in refused(run(*made.sft(out, **settings), "--resume", *words))
            assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
