"""Runs with role embeddings: what they begin with, keep, resume, hand over, and say about it."""

import json
import shutil

import pytest
import torch
from parallel_runs import all_of
from safetensors.torch import load_file
from tiny_data import TEMPLATE, TOKENIZER
from tiny_runs import differences, dying, leavings, material, metrics, refused, run, stored
from transformers import AutoModelForCausalLM

from tutelage.checkpoint import shards
from tutelage.checkpoint.hf import load_config, load_model
from tutelage.infer.chat import ChatSession, stop_tokens
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.transformer import add_role_embeddings_
from tutelage.text.pieces import Encoded
from tutelage.train.export import export
from tutelage.train.saver import newest

TABLE = "model.role_embeddings.weight"
ON = {"use_role_embeddings": "true"}
GREEDY = Sampling(temperature=0)
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "c 3???"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    """A run of six steps that began with a gaussian table, and what it said."""
    out = tmp_path_factory.mktemp("finished") / "out"
    settings = {**ON, "role_embeddings_init": "gaussian:0.3", "train_steps": 6, "save_freq": 3}
    settings |= {
        "val_data_paths": made.held_out,
        "sample_prompts": "hi",
        "sample_tokens": 5,
        "ema_decay": 0.9,
    }
    ended = run(*made.sft(out, **settings))
    assert ended.code == 0, ended.err
    return out, settings, ended.err


def said_by(model, prompt: Encoded, roles: list[int] | None, new: int = 12) -> list[int]:
    own = None if roles is None else [roles]
    return generate(model, [prompt.tokens], GREEDY, roles=own, max_new_tokens=new, stop=set())[0].tokens


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
    out, _, err = finished
    values = json.loads((out / "model" / "config.json").read_text())
    assert (values["use_role_embeddings"], values["role_embeddings_init"]) == (True, "gaussian:0.3")
    assert load_file(out / "model" / "model.safetensors")[TABLE].shape == (5, 32)
    note = "ignore model.role_embeddings.weight and so compute something else"
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


def test_transformers_loads_it_and_computes_what_we_do_without_roles(finished):
    directory = finished[0] / "model"
    official, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {TABLE} and not info["missing_keys"]
    prompt, model = TEMPLATE.encode(ASKED, TOKENIZER, reply=True), load_model(directory).eval()
    tokens, roles = torch.tensor([prompt.tokens]), torch.tensor([prompt.roles])
    positions = torch.arange(tokens.shape[1])[None]
    with torch.inference_mode():
        theirs = official(tokens).logits
        torch.testing.assert_close(model.unembed(model(tokens, positions)), theirs, atol=1e-4, rtol=1e-4)
        assert (model.unembed(model(tokens, positions, roles=roles)) - theirs).abs().max() > 1e-2
    reply = official.generate(tokens, max_new_tokens=12, do_sample=False, eos_token_id=None)[0]
    assert said_by(model, prompt, None) == reply[tokens.shape[1] :].tolist()


def test_generate_and_chat_ask_with_the_roles_of_the_template(finished, tmp_path):
    directory = finished[0] / "model"
    model, prompt = load_model(directory), TEMPLATE.encode(ASKED, TOKENIZER, reply=True)
    (done,) = generate(
        model,
        [prompt.tokens],
        GREEDY,
        roles=[prompt.roles],
        max_new_tokens=12,
        stop=stop_tokens(model, TOKENIZER, TEMPLATE),
    )
    expected = TOKENIZER.decode(done.tokens)
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages": ASKED}) + "\n")
    words = ["--max_new_tokens", 12, "--device", "cpu"]
    asked = run("generate", finished[0], "--input", tmp_path / "in.jsonl", *words)
    assert asked.out == expected + "\n"
    asked = run("generate", finished[0], "--system", "Be brief.", "--prompt", ASKED[1]["content"], *words)
    assert asked.out == expected + "\n"
    session = ChatSession(model, TOKENIZER, TEMPLATE, GREEDY, system="Be brief.", max_new_tokens=12)
    assert session.ask(ASKED[1]["content"]).text == expected
    unheard = said_by(model, prompt, None)
    assert TOKENIZER.decode(unheard) != expected, "or this test would show nothing"


def test_raw_text_has_the_role_other(finished):
    model, text = load_model(finished[0] / "model"), "Once upon"
    tokens = TOKENIZER.encode(text)
    expected = generate(
        model, [tokens], GREEDY, roles=[[4] * len(tokens)], max_new_tokens=8, stop=set(model.config.eos)
    )[0]
    words = ["--raw", "--prompt", text, "--max_new_tokens", 8, "--device", "cpu"]
    assert run("generate", finished[0], *words).out == TOKENIZER.decode(expected.tokens) + "\n"


def test_samples_of_a_run_hear_roles(made, tmp_path):
    """At the last step: greedily, what the exported model says to the same question."""
    out = tmp_path / "out"
    settings = {**ON, "role_embeddings_init": "gaussian:0.5", "train_steps": 2, "sample_prompts": "hi there"}
    assert run(*made.sft(out, sample_temperature=0, sample_tokens=9, **settings)).code == 0
    (row,) = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    words = ["--prompt", "hi there", "--max_new_tokens", 9, "--device", "cpu"]
    assert run("generate", out, *words).out == row["text"] + "\n"


def test_a_run_that_died_and_was_resumed_ends_as_if_it_had_not(made, finished, tmp_path, monkeypatch):
    out, settings, _ = finished
    again = tmp_path / "out"
    with monkeypatch.context() as patch:
        dying(patch, step=5)
        assert run(*made.sft(again, **settings)).code == 1
    assert run(*made.sft(again, "--resume", **settings)).code == 0
    assert f"model.{TABLE}" in stored(newest(again / "checkpoints"))
    assert differences(leavings(out), leavings(again)) == []


def test_a_resumed_run_without_the_flag_is_refused(made, finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    settings = {**finished[1], "role_embeddings_init": "zeros", "use_role_embeddings": "false"}
    message = refused(run(*made.sft(out, "--resume", **settings)))
    assert f"model.{TABLE} is 5x32 torch.float32 there and missing here; resume with the settings" in message


def test_a_base_that_has_a_table_keeps_it_unasked_and_says_so(made, finished, tmp_path):
    base = finished[0] / "model"
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
    shutil.copytree(finished[0] / "model", base)
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


def test_the_gate_hears_roles_on_both_sides(made, tmp_path):
    """A file whose table were lost would be taken for the model by probes without roles."""
    model = load_model(made.model)
    add_role_embeddings_(model, "gaussian:0.5", seed=1)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    weights[TABLE].zero_()
    probes = [TEMPLATE.encode(ASKED, TOKENIZER, reply=True)]
    with pytest.raises(RuntimeError, match="does not reproduce the model that was trained"):
        export(model, weights, model.config, tmp_path, dtype=torch.float32, probes=probes)
    gate = export(model, model.state_dict(), model.config, tmp_path, dtype=torch.float32, probes=probes)
    assert gate.passed and gate.logit_error == 0


@pytest.fixture
def weightless(monkeypatch):
    """No weight can be read: a run that tries has begun to load."""

    def rows(*_):
        raise AssertionError("weights were read")

    monkeypatch.setattr(shards.Shards, "rows", rows)


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


def edited(base, target, **values):
    """A copy of a model whose config.json says otherwise."""
    shutil.copytree(base, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return target


def test_a_table_that_the_config_hides_or_invents_is_named(made, finished, tmp_path, weightless):
    """Only a fresh table may be missing, and only because it was asked for."""
    hidden = edited(finished[0] / "model", tmp_path / "hidden", use_role_embeddings=False)
    invented = edited(made.model, tmp_path / "invented", use_role_embeddings=True)
    message = refused(run(*made.sft(tmp_path / "out", ckpt_paths=hidden)))
    assert f"unexpected: {TABLE}" in message
    for settings in ({}, ON):
        message = refused(run(*made.sft(tmp_path / "out", ckpt_paths=invented, **settings)))
        assert f"missing: {TABLE} (for a fresh table set use_role_embeddings = false" in message


def test_conversion_keeps_the_table_and_says_who_ignores_it(finished, tmp_path):
    words = ["convert", finished[0], "--output", tmp_path / "hf", "--precision", "bf16"]
    ended = run(*words)
    assert ended.code == 0 and "note: the model has role embeddings" in ended.err
    written, was = (
        load_file(place / "model.safetensors") for place in (tmp_path / "hf", finished[0] / "model")
    )
    assert torch.equal(written[TABLE], was[TABLE].bfloat16())
    assert load_model(tmp_path / "hf").config.role_embeddings


def test_other_formats_and_folding_are_refused_with_the_reason(finished, made, tmp_path):
    words = ["convert", finished[0], "--output", tmp_path / "out"]
    message = refused(run(*words, "--format", "llama2c"))
    assert "llama2.c's program cannot run this model: " in message
    assert "it has no role embeddings" in message
    message = refused(run(*words, "--fold"))
    assert message == (
        "convert: fold: role embeddings cannot go into other weights: what they add depends on whose "
        "the token is, the same token can be anybody's, and no weight of other programs knows whose it is"
    )
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
