"""Pretraining that goes on with a model that exists: weights, shape, tokenizer and chat template are kept."""

import json
import shutil
import signal

import pytest
import torch
from gguf_files import write_model
from safetensors.torch import load_file
from tiny_runs import differences, leavings, material, refused, run, watched
from transformers import AutoModelForCausalLM, AutoTokenizer

SHAPE = ("tokenizer", "dim", "n_layers", "n_heads", "n_kv_heads")  # what other pretraining runs here say


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def continuing(made, out, **settings) -> list[str]:
    """The words of a run that goes on with the base model; None leaves a setting out."""
    settings = dict.fromkeys(SHAPE) | {"ckpt_paths": made.model} | settings
    words = made.pretrain(out, **settings)
    pairs = list(zip(words[1::2], words[2::2], strict=True))
    return [words[0], *(word for pair in pairs if pair[1] != "None" for word in pair)]


def weights(directory) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("kind", ["directory", "run", "gguf"])
def test_it_starts_from_the_weights_that_are_there(made, tmp_path, kind):
    """Trained at a rate of 0, the result is what it began with; even a GGUF file's, bit for bit."""
    out, base = tmp_path / "out", made.model
    if kind == "run":
        base = tmp_path / "earlier"
        (base / "checkpoints").mkdir(parents=True)
        shutil.copytree(made.model, base / "model")
    if kind == "gguf":
        base = tmp_path / "gguf"
        base.mkdir()
        write_model(base / "model.gguf", AutoModelForCausalLM.from_pretrained(made.model))
        for path in made.model.glob("token*"):
            shutil.copy(path, base)
    ended = run(*continuing(made, out, ckpt_paths=base, lr=0.0, train_steps=1))
    assert ended.code == 0, ended.err
    assert differences(weights(made.model), weights(out / "model")) == []
    assert json.loads((out / "model" / "config.json").read_text())["hidden_size"] == 32
    text = "naïve 東京 <|im_end|>"
    kept = AutoTokenizer.from_pretrained(out / "model")
    assert kept.encode(text) == AutoTokenizer.from_pretrained(made.model).encode(text)
    assert kept.chat_template == AutoTokenizer.from_pretrained(made.model).chat_template


def test_it_learns_from_where_it_was(made, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(*continuing(made, first, lr=1e-2, train_steps=30)).code == 0
    assert run(*continuing(made, second, ckpt_paths=first, train_steps=1)).code == 0
    losses = [
        [json.loads(line)["loss"] for line in (out / "metrics.jsonl").open()] for out in (first, second)
    ]
    assert losses[0][0] > 4.5 and losses[1][0] < losses[0][0] - 1


def test_rows_longer_than_the_model_knew_are_in_its_new_config(made, tmp_path):
    for length, positions in ((24, 256), (300, 300)):
        out = tmp_path / str(length)
        assert run(*continuing(made, out, max_seq_len=length, train_steps=1)).code == 0
        config = json.loads((out / "model" / "config.json").read_text())
        assert config["max_position_embeddings"] == positions


def test_interrupted_and_resumed_it_is_unbroken(made, tmp_path, monkeypatch):
    watch = watched(monkeypatch)
    whole, broken = tmp_path / "whole" / "out", tmp_path / "broken" / "out"
    assert run(*continuing(made, whole, train_steps=5)).code == 0
    watch.signals = {3: signal.SIGINT}
    assert run(*continuing(made, broken, train_steps=5)).code == 130
    assert run(*continuing(made, broken, train_steps=5), "--resume").code == 0
    assert differences(leavings(whole), leavings(broken)) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"dim": 32, "model": "stories42M", "tied": "false"},
            "model, dim, tied and ckpt_paths exclude each other: a model that exists has its tokenizer and",
        ),
        ({"tokenizer": "anything"}, "tokenizer and ckpt_paths exclude each other"),
        ({"init_std": 0.02, "pad_vocab_to_multiple_of": 64}, "pad_vocab_to_multiple_of, init_std and ckpt"),
        (
            {"ckpt_paths": None},
            "tokenizer is missing: a directory with tokenizer.json, such as `tutelage tok",
        ),
        ({"ckpt_paths": "./nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_continued_is_refused_before_the_run_begins(made, tmp_path, settings, says):
    assert says in refused(run(*continuing(made, tmp_path / "out", **settings)))
    assert not (tmp_path / "out").exists()


def test_two_models_are_refused(made, tmp_path):
    words = [*continuing(made, tmp_path / "out", ckpt_paths=None), "--ckpt_paths", made.model, made.model]
    assert "two models; after the first one only adapters" in refused(run(*words))


def test_pretraining_goes_on_by_adapters(made, tmp_path):
    out = tmp_path / "out"
    ended = run(*continuing(made, out, lora="true", lora_rank=4, save_merged="true"))
    assert ended.code == 0, ended.err
    assert (out / "adapter" / "adapter_model.safetensors").exists() and (
        out / "model" / "config.json"
    ).exists()
    new = made.pretrain(tmp_path / "new", lora="true")
    assert "lora adapts a model that exists; give --ckpt_paths" in refused(run(*new))
