"""Every family that is known here goes into a GGUF file and comes back, by transformers' logits."""

import pytest
import tokenizers
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers import models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM

from tutelage.checkpoint.gguf.file import read_header
from tutelage.checkpoint.gguf.write import write_gguf
from tutelage.checkpoint.hf import load_model, open_source
from tutelage.errors import UserError
from tutelage.model.families import FAMILIES
from tutelage.text.tokenizer import Tokenizer

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OWN = {
    "qwen3": {"head_dim": 16},
    "olmo2": {},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    "phi3": {"sliding_window": None, "max_position_embeddings": 4096},
    "smollm3": {},
    "llama": {},
}
KNOWN = [name for name in OWN if name in FAMILIES and name != "llama"]


def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:57]
    ids = {token: place for place, token in enumerate(["<pad>", "<s>", "</s>", *letters, "AB"])}
    made = tokenizers.Tokenizer(models.BPE(ids, [("A", "B")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<pad>", "<s>", "</s>"])
    return Tokenizer(made.to_str(), {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"})


def saved(name, directory, **changes):
    """A random model of transformers, in a directory."""
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SHAPE | OWN[name] | changes))
    for key, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, 0.0 if "gemma" in name or "norm" not in key else 1.0, 0.3)
    theirs.save_pretrained(directory)
    return theirs.eval()


def written(directory, kind=Kind.F32):
    config, source = open_source(directory)
    path = directory / "gguf" / "model.gguf"
    write_gguf(config, source, tokenizer(), path, kind, name="tiny")
    return config, path


@pytest.mark.parametrize("name", KNOWN)
def test_a_family_goes_there_and_back(name, tmp_path):
    theirs = saved(name, tmp_path)
    config, path = written(tmp_path)
    copy = load_model(path).eval()
    assert copy.config == config
    tokens = torch.randint(3, 61, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = copy.unembed(copy(tokens, torch.arange(40).expand(2, -1)))
        torch.testing.assert_close(found, theirs(tokens).logits, atol=1e-4, rtol=0)
    if "gemma" in name:  # llama.cpp multiplies by what is stored
        stored = torch.from_numpy(read_header(path).read("output_norm.weight", 0, 32))
        assert torch.equal(stored, theirs.model.norm.weight + 1)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "beta_fast": 16.0},
        {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 8192},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_scaled_rotary_embeddings_go_there_and_back(scaling, tmp_path):
    if not KNOWN and scaling["rope_type"] != "llama3":
        pytest.skip("this scaling is not known")
    theta = {"rope_theta": 500000.0}
    theirs = saved("llama", tmp_path, rope_parameters=scaling | theta)
    config, path = written(tmp_path)
    copy = load_model(path).eval()
    assert copy.config == config and config.rope_scaling == config.rope_scaling | scaling
    tokens = torch.randint(3, 61, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = copy.unembed(copy(tokens, torch.arange(60).expand(2, -1)))
        torch.testing.assert_close(found, theirs(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "changes", "field"),
    [
        ("gemma2", {"query_pre_attn_scalar": 8}, "query_scalar = 8 would be 16"),
        ("gemma2", {"layer_types": ["full_attention"] * 6 + ["sliding_attention"]}, "windows = "),
        ("gemma3_text", {"layer_types": ["full_attention"] * 6 + ["sliding_attention"]}, "windows = "),
        ("phi3", {"partial_rotary_factor": 0.5}, "partial_rotary = 0.5 would be 1.0"),
    ],
)
def test_what_llama_cpp_takes_for_granted_must_be_so(name, changes, field, tmp_path):
    if name not in KNOWN:
        pytest.skip(f"{name} is not known")
    saved(name, tmp_path, **changes)
    with pytest.raises(UserError, match="cannot be written as GGUF: of architecture ") as refused:
        written(tmp_path)
    assert field in str(refused.value)
    assert not (tmp_path / "gguf").exists() or not list((tmp_path / "gguf").iterdir())
