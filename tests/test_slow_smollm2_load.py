"""A real chat model from its GGUF file: SmolLM2 computes, tokenizes and answers here as in transformers."""

import subprocess
import sys

import pytest
import torch
from materials import smollm2_gguf
from test_loading_memory import MEASURE
from tiny_models import oracle
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.checkpoint.hf import check_files, load_config, load_model, save_model
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.model.cache import KVCache

pytestmark = pytest.mark.slow

PARAGRAPH = (
    "The water cycle describes how water moves between the oceans, the air and the land. The sun warms the "
    "sea, water evaporates, clouds form, and rain brings the water back to rivers and lakes."
)
TEXTS = [
    PARAGRAPH,
    "",
    " leading and trailing ",
    "Hello,\n\n  world!\tIt's 3:45 pm.",
    "def f(x):\n    return [i ** 2 for i in range(10)]\n",
    "naïve café – “quoted” … €5,00",
    "日本語 中文 한국어 العربية हिन्दी 😀👍🏽",
    "1234567890 and 3.14159",
]


@pytest.fixture(scope="module")
def path():
    return smollm2_gguf()


@pytest.fixture(scope="module")
def ours(path):
    check_files(path)
    return load_model(path).eval()


@pytest.fixture(scope="module")
def theirs(path):
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(path):
    return load_tokenizer(path)


@torch.no_grad()
def logits_of(model, tokens):
    tokens = torch.tensor([tokens])
    return model.unembed(model(tokens, torch.arange(tokens.shape[1])[None]))[0]


def test_it_is_the_model_that_the_file_describes(ours, path):
    config = load_config(path)
    assert ours.config == config
    assert (config.dim, config.n_layers, config.n_heads, config.n_kv_heads) == (576, 30, 9, 3)
    assert (config.ffn_dim, config.vocab_size, config.max_positions) == (1536, 49152, 8192)
    assert (config.rope_theta, config.norm_eps, config.tied) == (100000.0, 1e-5, True)
    assert (config.bos, config.eos, config.pad) == (1, (2,), 2)
    assert config.n_parameters == 134_515_008


def test_logits_equal_those_of_transformers(ours, theirs, tokenizer):
    with torch.no_grad():
        for text in (PARAGRAPH, TEXTS[4], TEXTS[6]):
            tokens = tokenizer.encode(text)
            wanted = theirs(torch.tensor([tokens])).logits[0]
            torch.testing.assert_close(logits_of(ours, tokens), wanted, atol=1e-3, rtol=0)


def test_it_expects_english(ours, tokenizer):
    """Queries and keys in llama.cpp's order would still compute, and predict nothing."""
    tokens = tokenizer.encode(PARAGRAPH)
    nll = F.cross_entropy(logits_of(ours, tokens)[:-1], torch.tensor(tokens[1:])).item()
    shuffled = [tokens[i] for i in torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    noise = F.cross_entropy(logits_of(ours, shuffled)[:-1], torch.tensor(shuffled[1:])).item()
    assert nll < 3.2 and noise > 2 * nll


def test_tokens_equal_those_of_transformers(tokenizer, path):
    official = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert tokenizer.chat_template == official.chat_template
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (1, 2, 2)
    assert tokenizer.size == len(official) == 49152
    for text in TEXTS:
        assert tokenizer.encode(text) == official(text, add_special_tokens=False).input_ids, text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_it_answers_a_question(ours, tokenizer):
    control = tokenizer.control
    start, end, newline = control["<|im_start|>"], control["<|im_end|>"], tokenizer.encode("\n")
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    tokens = []
    for role, text in [("system", system), ("user", "What is the capital of France?")]:
        tokens += [start, *tokenizer.encode(f"{role}\n{text}"), end, *newline]
    tokens += [start, *tokenizer.encode("assistant\n")]
    answer = []
    kv = KVCache(ours.config, rows=1, length=len(tokens) + 20, dtype=torch.float32)
    fresh, position = torch.tensor([tokens]), 0
    with torch.no_grad():
        while len(answer) < 20:
            places = torch.arange(position, position + fresh.shape[1])[None]
            fresh = ours.unembed(ours(fresh, places, kv=kv)[:, -1:]).argmax(-1)
            position = int(places[0, -1]) + 1
            if int(fresh) in ours.config.eos:
                break
            answer.append(int(fresh))
    assert tokenizer.decode(answer) == "The capital of France is Paris."


def test_the_directory_we_write_loads_bit_for_bit_in_transformers(ours, tokenizer, tmp_path):
    save_model(ours, ours.config, tmp_path, dtype=torch.float32, shard_bytes=200_000_000)
    tokenizer.save(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(read[name], tensor), name
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert [saved(text).input_ids for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_loading_it_takes_little_more_memory_than_its_weights(wanted, path, tmp_path):
    tiny = tmp_path / "tiny"
    oracle("llama").save_pretrained(tiny)
    command = [sys.executable, "-c", MEASURE, str(path), str(tiny), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ratio, _ = map(float, done.stdout.split())
    print(f"peak {ratio:.3f} of the weights")
    assert 0.9 < ratio <= 1.3
