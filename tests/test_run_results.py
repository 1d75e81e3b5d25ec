"""What a run leaves: numbers, curves, a card and a model that transformers loads as it is."""

import json
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_data import TEMPLATE, TOKENIZER
from tiny_runs import CLOCKS, conversation, dying, material, metrics, run, stored
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.checkpoint.hf import load_model
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.train import export
from tutelage.train.saver import newest

CHATS = [conversation(number, "chats") for number in range(20)]
SYSTEM = [{"role": "system", "content": " Be brief.\n"}, *CHATS[2]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    """A finished run in float32 with validation at every third of its seven steps."""
    out = tmp_path_factory.mktemp("finished") / "out"
    settings = {"train_steps": 7, "val_data_paths": made.held_out, "val_freq": 3, "warmup_steps": 2}
    ended = run(*made.sft(out, **settings))
    assert ended.code == 0, ended.err
    return out


def test_there_is_a_row_of_numbers_for_every_step(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    plain = {"step", "loss", "lr", "grad_norm", "tokens", "learned", *CLOCKS}
    held_out = {"val_loss", "val_perplexity"}
    for row in rows:
        assert row.keys() == (plain | held_out if row["step"] in (3, 6, 7) else plain)
        assert row["grad_norm"] > 0 and 0 < row["learned"] < row["tokens"] and row["seconds"] > 0
    assert [row["lr"] for row in rows] == pytest.approx([0.005, 0.01, 0.01, 0.008, 0.006, 0.004, 0.002])
    assert rows[6]["val_loss"] < rows[2]["val_loss"]
    encoded = [TEMPLATE.encode(messages, TOKENIZER).weights[1:65] for messages in CHATS]  # 64 positions
    assert sum(row["tokens"] for row in rows[:5]) == sum(map(len, encoded)), "an epoch"
    assert sum(row["learned"] for row in rows[:5]) == sum(map(sum, encoded))


def test_the_curves_of_a_run_that_died_and_was_resumed_show_every_step_once(made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    words = made.sft(out, train_steps=8, save_freq=4, val_data_paths=made.held_out, val_freq=3)
    with monkeypatch.context() as patch:
        dying(patch, step=7)
        assert run(*words).code == 1
    assert [row["step"] for row in metrics(out)] == [1, 2, 3, 4, 5, 6]
    ended = run(*words, "--resume")
    assert ended.code == 0 and "resumed at step 4 of 8" in ended.err
    rows = metrics(out)
    assert [row["step"] for row in rows] == list(range(1, 9))
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert {*events.Tags()["scalars"]} == {*rows[-1], *CLOCKS} - {"step"}
    for name in ("loss", "lr", "val_loss"):
        curve = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(row["step"], row[name]) for row in rows if name in row]
        assert [step for step, _ in curve] == [step for step, _ in expected]
        assert [value for _, value in curve] == pytest.approx([value for _, value in expected])


def test_the_card_says_how_the_model_was_made_and_how_exact_its_files_are(made, finished):
    card, last = (finished / "model" / "README.md").read_text(), metrics(finished)[-1]
    assert card.startswith("---\nlibrary_name: transformers\ntags: [tutelage, sft]\n---\n\n# out\n\n")
    assert f"Trained with `tutelage sft` from `{made.model}`. Chat template: chatml.\n" in card
    for line in (
        "| parameters | 23,808 |",
        "| optimizer steps | 7 |",
        "| precision | fp32 |",
        f"| loss | {last['loss']:.4f} |",
        f"| validation loss | {last['val_loss']:.4f} |",
        f"| validation perplexity | {last['val_perplexity']:.4f} |",
    ):
        assert f"\n{line}\n" in card
    probes = ("What is the capital of France?", "Write a short story about a rabbit.", "Grüße! 你好 👋")
    positions = sum(
        len(TEMPLATE.encode([{"role": "user", "content": text}], TOKENIZER, reply=True).tokens)
        for text in probes
    )
    assert f"logits over {positions} positions differ by at most 0, greedy text is equal.\n" in card


def test_transformers_loads_the_model_bit_for_bit_and_says_the_same(finished):
    official = AutoModelForCausalLM.from_pretrained(finished / "model")
    assert official.dtype == torch.float32
    trained = {
        name.removeprefix("model."): tensor
        for name, tensor in stored(newest(finished / "checkpoints")).items()
        if name.startswith("model.")
    }
    parameters = dict(official.named_parameters())
    assert parameters.keys() == trained.keys()
    assert all(torch.equal(parameters[name], tensor) for name, tensor in trained.items())
    ours, tokens = load_model(finished / "model"), torch.tensor([TEMPLATE.encode(SYSTEM, TOKENIZER).tokens])
    with torch.inference_mode():
        logits = ours.unembed(ours(tokens, torch.arange(tokens.shape[1])[None]))
        torch.testing.assert_close(logits, official(tokens).logits, atol=1e-4, rtol=1e-4)
    prompt = TEMPLATE.encode(CHATS[3][:1], TOKENIZER, reply=True).tokens
    reply = official.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    words = ["generate", finished, "--prompt", CHATS[3][0]["content"], "--max_new_tokens", 12]
    text = AutoTokenizer.from_pretrained(finished / "model").decode(reply, skip_special_tokens=True)
    assert run(*words).out == text + "\n"


def test_whoever_may_read_one_file_of_the_model_may_read_all(finished):
    assert len({path.stat().st_mode for path in (finished / "model").iterdir()}) == 1


@pytest.mark.parametrize("named", [None, "chatml", "qwen2.5_instruct"])
def test_the_model_carries_the_template_it_was_trained_with(made, tmp_path, named):
    """Its own, to the letter, where that writes the same; else the one that was named."""
    base, out = shutil.copytree(made.model, tmp_path / "base"), tmp_path / "out"
    own = "{# ours since 2023 #}" + Template.load("chatml").jinja
    Tokenizer.load(base).save(base, chat_template=own)
    settings = {"ckpt_paths": base, "train_steps": 1, "max_seq_len": 256} | (
        {"template_config": named} if named else {}
    )
    assert run(*made.sft(out, **settings)).code == 0
    template, tokenizer = Template.load(named or "chatml"), Tokenizer.load(out / "model")
    assert tokenizer.chat_template == (template.jinja if named == "qwen2.5_instruct" else own)
    official = AutoTokenizer.from_pretrained(out / "model")
    for messages in (*CHATS, SYSTEM):
        ids = official.apply_chat_template(messages, return_dict=False)
        assert template.encode(messages, tokenizer).tokens == ids
        ids = official.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        assert template.encode(messages[:-1], tokenizer, reply=True).tokens == ids


def test_a_bfloat16_run_leaves_its_masters_rounded(made, tmp_path):
    out = tmp_path / "out"
    assert run(*made.sft(out, precision="bf16", train_steps=3)).code == 0
    model, checkpoint = load_model(out / "model"), stored(newest(out / "checkpoints"))
    for name, parameter in model.named_parameters():
        master = checkpoint[f"model.{name}"]
        assert master.dtype == torch.float32 and parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, master.bfloat16()) and not torch.equal(parameter.float(), master)
    assert "differ by at most 0, greedy text is equal" in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    "how",
    [
        {"attention_impl": "eager"},
        {"selective_ac_ratio": 0.5},
        pytest.param({"compile": "true"}, marks=pytest.mark.slow),
    ],
)
def test_the_gate_measures_the_files_and_not_how_the_model_was_run(made, tmp_path, how):
    """In bfloat16 other kernels round otherwise, by more than the gate lets through."""
    ended = run(*made.sft(tmp_path / "out", precision="bf16", train_steps=2, **how))
    assert ended.code == 0, ended.err
    assert "read back from disk, logits differ by 0, greedy text is equal" in ended.err


def test_a_pretrained_model_loads_too_and_has_no_template_of_its_own(made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made.model, tmp_path / "tokenizer")
    for name in ("tokenizer_config.json", "model.safetensors", "config.json"):
        (tmp_path / "tokenizer" / name).unlink()
    ended = run(*made.pretrain(out, tokenizer=tmp_path / "tokenizer", train_steps=2, tied="false"))
    assert ended.code == 0, ended.err
    official = AutoModelForCausalLM.from_pretrained(out / "model")
    assert not torch.equal(official.lm_head.weight, official.model.embed_tokens.weight)
    tokens = torch.tensor([TOKENIZER.encode("naïve 東京")])
    ours = load_model(out / "model")
    with torch.inference_mode():
        logits = ours.unembed(ours(tokens, torch.arange(tokens.shape[1])[None]))
        torch.testing.assert_close(logits, official(tokens).logits, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(out / "model").chat_template is None
    assert "Chat template: none." in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_files_that_are_not_the_trained_model_are_refused(made, tmp_path, monkeypatch, wrong):
    """A single weight of the saved files is another."""
    save_model = export.save_model

    def careless(weights, *arguments, **options):
        weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        weights["model.layers.1.mlp.down_proj.weight"][3, 5] += wrong
        save_model(weights, *arguments, **options)

    monkeypatch.setattr(export, "save_model", careless)
    ended = run(*made.sft(tmp_path / "out", train_steps=1))
    assert ended.code == 1, "this is our mistake"
    assert f"{tmp_path / 'out' / 'model'} does not reproduce the model that was trained: " in ended.err
    assert not (tmp_path / "out" / "model").exists() and (tmp_path / "out" / "model.refused").exists()
