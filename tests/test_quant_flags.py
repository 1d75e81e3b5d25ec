"""`--quant` on the command line: what it refuses, and that answers come from quantized weights."""

import sys
from importlib import util

import pytest
import torch
from tiny_chat import GREEDY, byte_tokenizer, tiny_model

from tutelage import cli
from tutelage.checkpoint.hf import load_model, save_model
from tutelage.config import help_text
from tutelage.errors import UserError
from tutelage.infer.engine import generate
from tutelage.model.quantize import Quantization, quantize_
from tutelage.recipes.chat import ChatConfig
from tutelage.recipes.pretrain import PretrainConfig
from tutelage.recipes.sft import SFTConfig

ALONE = "quant is nf4, and a quantized weight cannot be trained; add --lora"
NOTHING = "quant_double is about the scales of nf4 and fp4, and quant is {}"
CHAT = (ChatConfig, {"ckpt_paths": ("m",)})
SFT = (SFTConfig, {"ckpt_paths": ("m",), "train_data_paths": ("jsonl:x",)})
PRETRAIN = (PretrainConfig, {"ckpt_paths": ("m",), "train_data_paths": ("text:x",)})


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (SFT, {"quant": "nf4"}, ALONE),
        (PRETRAIN, {"quant": "nf4"}, ALONE),
        (SFT, {"quant_double": False}, NOTHING.format("none")),
        (CHAT, {"quant_double": False}, NOTHING.format("none")),
        (CHAT, {"quant": "int8", "quant_double": False}, NOTHING.format("int8")),
    ],
)
def test_settings_that_do_nothing_or_cannot_work_are_refused(command, words, message):
    config, required = command
    with pytest.raises(UserError) as caught:
        config(**required, **words)
    assert str(caught.value) == message


def test_a_missing_library_is_told_before_anything_else_happens(monkeypatch):
    find = util.find_spec
    monkeypatch.setattr(
        sys.modules["tutelage.recipes.stage.quantizing"],
        "find_spec",
        lambda name: None if name == "bitsandbytes" else find(name),
    )
    config, required = CHAT
    with pytest.raises(UserError) as caught:
        config(**required, quant="fp4")
    assert str(caught.value) == ("quant fp4 needs bitsandbytes: pip install 'tutelage[quant]', or take int8")
    assert config(**required, quant="int8").quant == "int8"


@pytest.mark.parametrize("words", [["--quant", "nf4", "--no_quant_double"], ["--quant", "int8"]])
def test_generate_answers_with_quantized_weights(words, capsys, tmp_path):
    model = tiny_model()
    save_model(model, model.config, tmp_path, dtype=torch.float32)
    byte_tokenizer().save(tmp_path)
    cli.main(["generate", str(tmp_path), "--raw", "--prompt", "hello", "--max_new_tokens", "24", *words])
    out = capsys.readouterr().out
    model = load_model(tmp_path).eval()
    tokens, tokenizer = byte_tokenizer().encode("hello"), byte_tokenizer()
    plain = generate(model, [tokens], GREEDY, max_new_tokens=24, stop={tokenizer.eos})[0].tokens
    quantize_(model, Quantization(kind=words[1], double=False))
    expected = generate(model, [tokens], GREEDY, max_new_tokens=24, stop={tokenizer.eos})[0].tokens
    assert out == tokenizer.decode(expected) + "\n"
    assert words[1] == "int8" or expected != plain


def test_help_says_what_the_kinds_are():
    for config, _ in (CHAT, SFT, PRETRAIN):
        text = help_text("x", config, "")
        assert "--quant {none,nf4,fp4,int8}" in text
        assert "--quant_double, --no_quant_double" in text
