"""Files with role embeddings: who asks them with roles, what other programs make of them, what cannot be."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import TEMPLATE, TOKENIZER
from tiny_roles import ON, TABLE, finished_run, refuse_weights
from tiny_runs import material, refused, run
from transformers import AutoModelForCausalLM

from tutelage.checkpoint.hf import load_model
from tutelage.infer.chat import ChatSession, stop_tokens
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.transformer import add_role_embeddings_
from tutelage.text.pieces import Encoded
from tutelage.train.export import export

GREEDY = Sampling(temperature=0)
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "c 3???"}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def finished(made, tmp_path_factory):
    return finished_run(made, tmp_path_factory.mktemp("finished") / "out")


@pytest.fixture
def weightless(monkeypatch):
    refuse_weights(monkeypatch)


def said_by(model, prompt: Encoded, roles: list[int] | None, new: int = 12) -> list[int]:
    own = None if roles is None else [roles]
    return generate(model, [prompt.tokens], GREEDY, roles=own, max_new_tokens=new, stop=set())[0].tokens


def test_transformers_loads_it_and_computes_what_we_do_without_roles(finished):
    directory = finished.model
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
    directory = finished.model
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
    asked = run("generate", finished.out, "--input", tmp_path / "in.jsonl", *words)
    assert asked.out == expected + "\n"
    asked = run("generate", finished.out, "--system", "Be brief.", "--prompt", ASKED[1]["content"], *words)
    assert asked.out == expected + "\n"
    session = ChatSession(model, TOKENIZER, TEMPLATE, GREEDY, system="Be brief.", max_new_tokens=12)
    assert session.ask(ASKED[1]["content"]).text == expected
    unheard = said_by(model, prompt, None)
    assert TOKENIZER.decode(unheard) != expected, "or this test would show nothing"


def test_raw_text_has_the_role_other(finished):
    model, text = load_model(finished.model), "Once upon"
    tokens = TOKENIZER.encode(text)
    expected = generate(
        model, [tokens], GREEDY, roles=[[4] * len(tokens)], max_new_tokens=8, stop=set(model.config.eos)
    )[0]
    words = ["--raw", "--prompt", text, "--max_new_tokens", 8, "--device", "cpu"]
    assert run("generate", finished.out, *words).out == TOKENIZER.decode(expected.tokens) + "\n"


def test_the_gate_hears_roles_on_both_sides(made, tmp_path):
    """A file whose table were lost would be taken for the model by probes without roles."""
    model = load_model(made.model)
    add_role_embeddings_(model, "gaussian:0.5", seed=1)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    weights[TABLE].zero_()
    probes = [TEMPLATE.encode(ASKED, TOKENIZER, reply=True)]
    both = r"does not reproduce .*: logits differ by [1-9]\S*, greedy text is different"
    with pytest.raises(RuntimeError, match=both):
        export(model, weights, model.config, tmp_path, dtype=torch.float32, probes=probes)
    gate = export(model, model.state_dict(), model.config, tmp_path, dtype=torch.float32, probes=probes)
    assert gate.passed and gate.logit_error == 0


def edited(base, target, **values):
    """A copy of a model whose config.json says otherwise."""
    shutil.copytree(base, target)
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return target


def test_a_table_that_the_config_hides_or_invents_is_named(made, finished, tmp_path, weightless):
    """Only a fresh table may be missing, and only because it was asked for."""
    hidden = edited(finished.model, tmp_path / "hidden", use_role_embeddings=False)
    invented = edited(made.model, tmp_path / "invented", use_role_embeddings=True)
    message = refused(run(*made.sft(tmp_path / "out", ckpt_paths=hidden)))
    assert f"unexpected: {TABLE}" in message
    for settings in ({}, ON):
        message = refused(run(*made.sft(tmp_path / "out", ckpt_paths=invented, **settings)))
        assert f"missing: {TABLE} (for a fresh table set use_role_embeddings = false" in message


def test_conversion_keeps_the_table_and_says_who_ignores_it(finished, tmp_path):
    words = ["convert", finished.out, "--output", tmp_path / "hf", "--precision", "bf16"]
    ended = run(*words)
    assert ended.code == 0 and "note: the model has role embeddings" in ended.err
    written, was = (load_file(place / "model.safetensors") for place in (tmp_path / "hf", finished.model))
    assert torch.equal(written[TABLE], was[TABLE].bfloat16())
    assert load_model(tmp_path / "hf").config.role_embeddings


def test_other_formats_and_folding_are_refused_with_the_reason(finished, made, tmp_path):
    words = ["convert", finished.out, "--output", tmp_path / "out"]
    message = refused(run(*words, "--format", "llama2c"))
    assert "llama2.c's program cannot run this model: " in message
    assert "it has no role embeddings" in message
    message = refused(run(*words, "--fold"))
    assert message == (
        "convert: fold: role embeddings cannot go into other weights: what they add depends on whose "
        "the token is, the same token can be anybody's, and no weight of other programs knows whose it is"
    )
    assert not (tmp_path / "out").exists()
