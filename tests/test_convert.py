"""`tutelage convert`: what it writes is the same model, for transformers, for llama2.c and for ourselves."""

from pathlib import Path

import pytest
import torch
from llama2c_models import logits, tiny
from tiny_chat import byte_tokenizer
from tiny_models import CONFIGS, oracle
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage import cli
from tutelage.checkpoint.hf import load_model, save_model
from tutelage.checkpoint.llama2c.write import write_llama2c
from tutelage.checkpoint.streamed import Held
from tutelage.model.config import ModelConfig


def tell(capsys, *words: object) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main([*map(str, words)])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.fixture
def stories(tmp_path) -> Path:
    """A model of llama2.c with the files of a tokenizer beside it."""
    model = tiny(vocab_size=byte_tokenizer().size, n_kv_heads=2)
    write_llama2c(Held(model.state_dict()), model.config, tmp_path / "stories.bin")
    byte_tokenizer().save(tmp_path / "vocabulary")
    return tmp_path / "stories.bin"


def test_a_model_of_llama2c_becomes_one_of_transformers(capsys, stories, tmp_path):
    words = ["convert", stories, "--tokenizer", tmp_path / "vocabulary", "--output", tmp_path / "hf"]
    code, out, err = tell(capsys, *words)
    assert (code, out) == (0, "")
    assert f"{tmp_path / 'hf'}: 30,560 parameters, float32" in err
    tokens = [1, *range(5, 40)]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        expected = theirs(torch.tensor([tokens])).logits[0]
    ours = torch.from_numpy(logits(load_model(stories), tokens))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    text = "Zoë 🦜"
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").encode(text) == byte_tokenizer().encode(text)
    assert theirs.generation_config.eos_token_id == [2, 1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "auto"])
def test_precision_is_that_of_the_stored_weights(capsys, tmp_path, precision):
    model = oracle("llama", torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save(tmp_path / "model")
    words = ["convert", tmp_path / "model", "--output", tmp_path / "out", "--precision", precision]
    assert tell(capsys, *words)[0] == 0
    dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert written.dtype == dtype
    for name, parameter in model.named_parameters():
        assert torch.equal(written.get_parameter(name), parameter.to(dtype)), name


def test_what_is_there_is_not_replaced_unasked(capsys, stories, tmp_path):
    words = ["convert", stories, "--tokenizer", tmp_path / "vocabulary", "--output", tmp_path / "hf"]
    assert tell(capsys, *words)[0] == 0
    code, out, err = tell(capsys, *words)
    where = tmp_path / "hf" / "config.json"
    assert (code, out) == (2, "")
    assert err == f"error: {where} exists; give --overwrite to replace it, or another --output\n"
    assert tell(capsys, *words, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["a", "--format", "llama2c", "--precision", "bf16"],
            "convert: precision is bf16, but files of format",
        ),
        (["no.bin"], "no.bin does not exist; give a model directory, a model file"),
    ],
)
def test_mistakes_are_named(capsys, tmp_path, words, message):
    code, out, err = tell(capsys, "convert", *words, "--output", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")


def test_a_byte_level_vocabulary_cannot_go_to_llama2c(capsys, stories, tmp_path):
    out = tmp_path / "out"
    words = [
        "convert",
        stories,
        "--tokenizer",
        tmp_path / "vocabulary",
        "--format",
        "llama2c",
        "--output",
        out,
    ]
    code, _, err = tell(capsys, *words)
    assert code == 2
    assert err.startswith(
        "error: llama2.c's program needs a SentencePiece vocabulary, BPE with the 256 bytes"
    )
    assert not out.exists()


def test_a_model_of_llama2c_is_generated_from_as_it_is(capsys, stories, tmp_path):
    flags = ["--raw", "--prompt", "Once", "--max_new_tokens", 12]
    vocabulary = tmp_path / "vocabulary"
    direct = tell(capsys, "generate", stories, "--tokenizer", vocabulary, *flags)
    tell(capsys, "convert", stories, "--tokenizer", vocabulary, "--output", tmp_path / "hf")
    assert direct == tell(capsys, "generate", tmp_path / "hf", *flags)
    assert direct[0] == 0
    code, _, err = tell(capsys, "generate", stories, *flags)
    assert (code, f"error: {tmp_path} has no tokenizer.json" in err) == (2, True)


def test_a_model_that_run_c_would_compute_otherwise_leaves_nothing_behind(capsys, tmp_path):
    config = ModelConfig.from_hf(CONFIGS["mistral window"].to_dict())
    model = oracle("mistral window")
    save_model(dict(model.state_dict()), config, tmp_path / "model", dtype=torch.float32)
    byte_tokenizer().save(tmp_path / "model")
    out = tmp_path / "out"
    code, _, err = tell(capsys, "convert", tmp_path / "model", "--format", "llama2c", "--output", out)
    assert (code, out.exists()) == (2, False)
    assert err.startswith(
        "error: llama2.c's program cannot run this model: rms_norm_eps is 1e-06, it computes"
    )
    assert err.endswith("; attention has a sliding window, it has none\n")
