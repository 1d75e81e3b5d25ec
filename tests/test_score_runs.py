"""A run of the parts that a reward model's recipe has: from a language model to files that judge."""

import json

import peft
import pytest
import torch
from judge_runs import judge, settings_of
from parallel_runs import HERE, ended, torchrun
from safetensors.torch import load_file, save_file
from score_models import as_judge, loaded, our_score, their_score
from tiny_data import TEMPLATE, TOKENIZER, chat
from tiny_pairs import prefer
from tiny_runs import differences, dying, leavings, material, refused, run

from tutelage.checkpoint.hf import load_config, load_model
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.model.score import with_score_head
from tutelage.model.transformer import give_score_head_
from tutelage.recipes.stage.adapting import start_of
from tutelage.recipes.stage.chain import chain_of, load_chain

ROWS = [each.tokens for each in TEMPLATE.encode_batch([chat("q 1", "yes!"), chat("x", "")], TOKENIZER)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_becomes_a_judge_that_transformers_loads(tied, tmp_path, capsys):
    out = judge(material(tmp_path, tied=tied), tmp_path / "out")
    said = capsys.readouterr().err
    model, theirs = load_model(out / "model"), loaded(out / "model")
    pad = TOKENIZER.control["<|endoftext|>"]
    assert load_tokenizer(out / "model").pad == theirs.config.pad_token_id == model.config.pad == pad
    torch.testing.assert_close(their_score(theirs, ROWS, pad), our_score(model, ROWS), atol=1e-5, rtol=1e-5)
    assert f"llama, {model.config.n_parameters:,} parameters" in said
    assert "read back from disk, scores differ by 0; go on with `tutelage score OUT`" in said
    card = (out / "model" / "README.md").read_text()
    assert "the model in memory: scores over" in card and "differ by at most 0.\n" in card


def test_a_judge_is_trained_further_with_its_own_head(made, tmp_path):
    first = judge(made, tmp_path / "first", train_steps=1)
    second = judge(made, tmp_path / "second", ckpt_paths=(str(first),), lr=1e-9)
    torch.testing.assert_close(
        our_score(load_model(second / "model"), ROWS), our_score(load_model(first / "model"), ROWS)
    )


def test_a_fresh_head_is_not_rounded_under_a_model_that_is(made, tmp_path):
    """Trained beside adapters in bfloat16 it has a float32 master, and that begins as it was drawn."""
    config = settings_of(made, tmp_path / "out", lora=True, precision="bf16", seed=7)
    start = start_of(config, config.ckpt_paths)
    model = start.load(config, with_score_head(start.shape()), torch.device("cpu"))
    drawn = load_model(made.model)
    give_score_head_(drawn, seed=7)
    assert model.head_weight.dtype == torch.float32 and torch.equal(model.head_weight, drawn.head_weight)
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16


KINDS = {
    "lora": {},
    "bf16": {"precision": "bf16"},
    "nf4": {"quant": "nf4", "precision": "bf16"},
    "pissa": {"lora_init": "pissa"},
    "embedding": {"lora_targets": ("q_proj", "embed_tokens")},
}


@pytest.mark.parametrize(
    "kind",
    [kind if kind in ("lora", "nf4") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
)
def test_with_adapters_the_head_is_trained_in_full(made, tmp_path, kind, capsys):
    out = judge(made, tmp_path / "out", lora=True, lora_rank=4, save_merged=True, **KINDS[kind])
    assert "merged; in float32 scores differ from the adapter's by" in capsys.readouterr().err
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["modules_to_save"] == ["score"]
    merged = load_model(out / "model", dtype=torch.float32)
    chained = load_chain(chain_of([str(made.model), str(out / "adapter")]), dtype=torch.float32)
    rounding = {} if "precision" not in KINDS[kind] else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(our_score(chained, ROWS), our_score(merged, ROWS), **rounding)
    pad = load_tokenizer(out / "model").pad
    assert loaded(out / "model").config.pad_token_id == pad == load_tokenizer(out / "adapter").pad
    if kind == "lora":
        theirs = peft.PeftModel.from_pretrained(as_judge(made.model), out / "adapter").eval()
        theirs.config.pad_token_id = pad
        torch.testing.assert_close(
            their_score(theirs, ROWS, pad), our_score(merged, ROWS), atol=1e-5, rtol=1e-5
        )
        ended = run("merge", made.model, out / "adapter", "--output", tmp_path / "merged")
        assert ended.code == 0 and load_config(tmp_path / "merged") == load_config(out / "model")
        ended = run("convert", made.model, out / "adapter", "--output", tmp_path / "p", "--format", "peft")
        assert ended.code == 0
        assert run("merge", made.model, tmp_path / "p", "--output", tmp_path / "q").code == 0
        assert load_tokenizer(tmp_path / "q").pad == load_config(tmp_path / "q").pad == pad
        alone = load_model(made.model, adapters=[tmp_path / "p"])
        torch.testing.assert_close(our_score(alone, ROWS), our_score(merged, ROWS))


def test_an_adapter_is_trained_further(made, tmp_path):
    first = judge(made, tmp_path / "first", lora=True, lora_rank=4)
    settings = {"lora": True, "lora_continue": True, "lr": 1e-9}
    second = judge(
        made, tmp_path / "second", ckpt_paths=(str(made.model), str(first / "adapter")), **settings
    )
    one, other = (load_model(made.model, adapters=[out / "adapter"]) for out in (first, second))
    torch.testing.assert_close(our_score(one, ROWS), our_score(other, ROWS))


@pytest.mark.parametrize("settings", [{}, {"lora": True}], ids=["full", "lora"])
def test_a_run_that_died_ends_as_if_it_had_not(made, tmp_path, monkeypatch, settings):
    whole, broken = tmp_path / "a" / "out", tmp_path / "b" / "out"
    judge(made, whole, **settings)
    with monkeypatch.context() as patch:
        dying(patch, step=4)
        with pytest.raises(RuntimeError, match="the power went"):
            judge(made, broken, **settings)
    judge(made, broken, resume=True, **settings)
    assert differences(leavings(whole), leavings(broken)) == []


def test_what_writes_text_refuses_a_judge_in_words(made, tmp_path):
    out = judge(made, tmp_path / "out", train_steps=1)
    wanted = "has a score head: it judges texts and cannot write any; give a language model, say the one that"
    there = ["--output_dir", tmp_path / "pretrain", "--device", "cpu"]
    asked = ["--device", "cpu", "--template_config", "chatml"]
    for words in (
        ["generate", out, "--prompt", "hi", *asked],
        ["chat", out, *asked],
        made.sft(tmp_path / "sft", ckpt_paths=out),
        ["pretrain", "--ckpt_paths", out, "--train_data_paths", f"text:{made.place / 'text.txt'}", *there],
        made.pretrain(tmp_path / "pretrain", model=out / "model"),
        prefer(made, tmp_path / "dpo", "dpo", ref_ckpt_paths=out),
        prefer(made, tmp_path / "simpo", "simpo", ckpt_paths=out),
        ["plan", "sft", "--ckpt_paths", out, "--device_name", "cpu"],
    ):
        assert wanted in refused(run(*words)), words
    message = refused(run("convert", out, "--output", tmp_path / "c", "--format", "llama2c"))
    assert "it has a score head, and that program writes text" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"lora": True}, {"precision": "bf16"}], ids=["full", "lora", "bf16"]
)
def test_two_processes_train_what_one_trains(made, tmp_path, settings):
    """The head's one row lies on one of them, and on the other nothing."""
    settings = settings | {"eps": 1e-3}  # no noise becomes a step
    one = judge(made, tmp_path / "one", gradient_accum_steps=2, **settings)
    words = [HERE / "judge_runs.py", made.place, tmp_path / "two", json.dumps(settings)]
    done = ended(torchrun(2, *words, log=tmp_path / "log"), tmp_path / "log")
    assert done.code == 0 and "on each of 2 processes" in done.err, done.err
    (path,) = [path.relative_to(one) for path in one.glob("*/*model.safetensors")]
    first, second = load_file(one / path), load_file(tmp_path / "two" / path)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-3)


def test_a_base_that_stores_its_tied_head_twice_is_the_same_base(tmp_path):
    """Its fingerprint counts the head once, for the run and for whoever puts the adapter on it later."""
    made = material(tmp_path)
    path = made.model / "model.safetensors"
    tensors = load_file(path)
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path, {"format": "pt"}
    )
    out = judge(made, tmp_path / "out", lora=True, save_merged=True)
    found = load_model(made.model, adapters=[out / "adapter"])
    torch.testing.assert_close(our_score(found, ROWS), our_score(load_model(out / "model"), ROWS))
