"""llama.cpp and its converter: the files we write are those that it writes, and it goes on as we do.

The first part needs the package llama-cpp-python, which is compiled when it is installed; PYTHONPATH may
name a folder that it was installed into by `pip install --target`."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from materials import llama_cpp_converter, smollm2_gguf
from tiny_sentencepiece import stories
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config

from tutelage.checkpoint.gguf.file import read_header
from tutelage.checkpoint.gguf.write import KINDS, write_gguf
from tutelage.checkpoint.hf import load_model, open_source, save_model
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.text.train import train_tokenizer
from tutelage.text.train_sentencepiece import train_sentencepiece

pytestmark = pytest.mark.slow
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
TEXTS = [
    "Once upon a time there was  a rabbit, who didn't\tknow 1234 things.\n\n\n",
    "naïve café, 日本語 हिन्दी 😀👍🏽 I'LL \u200b\u00a0x\r\ny",
]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
# What a matrix and, in llama.cpp, an activation of a kind is off by, over the logits' size.
TOLERANCES = {"fp32": 2e-5, "fp16": 2e-3, "bf16": 2e-2, "q8_0": 6e-2}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2 as a Hugging Face directory in float32."""
    directory, gguf = tmp_path_factory.mktemp("smollm2"), smollm2_gguf()
    load_tokenizer(gguf).save(directory)
    model = load_model(gguf)
    save_model(model, model.config, directory, dtype=torch.float32)
    return directory


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A storyteller with SentencePiece's vocabulary, one of bytes with tied head, and a Qwen 2."""
    made = {}

    def of(name):
        if name in made:
            return made[name]
        train = train_sentencepiece if name == "sentencepiece" else train_tokenizer
        tokenizer = train(stories()[:200], 700, ["<|im_start|>", "<|im_end|>"])
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 704}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
        shape |= {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
        config = {
            "sentencepiece": LlamaConfig(**shape),
            "bytes": LlamaConfig(**shape, tie_word_embeddings=True),
            "llama 3": LlamaConfig(**shape, rope_parameters=LLAMA3),
            "mistral": MistralConfig(**shape, sliding_window=None),
            "qwen2": Qwen2Config(**shape),
        }[name]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for key, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, 1.0 if "norm" in key else 0.0, 0.2)
        made[name] = tmp_path_factory.mktemp("tiny")
        model.save_pretrained(made[name])
        tokenizer.save(made[name])
        return made[name]

    return of


def written(directory, path, precision="fp32"):
    config, source = open_source(directory)
    write_gguf(config, source, load_tokenizer(directory), path, KINDS[precision], name="Model")
    return path


def opened(path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    float32 = llama_cpp.GGML_TYPE_F32  # or keys and values are kept in half precision
    return llama_cpp.Llama(
        str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=1,
        type_k=float32, type_v=float32, flash_attn=False,
    )  # fmt: skip


def check_goes_on_alike(llama, directory, prompt, precision, steps):
    """Logits of the prompt within what the kind explains, and the same tokens after it, greedily."""
    model, tokenizer = load_model(directory, dtype=torch.float32).eval(), load_tokenizer(directory)
    for text in [*TEXTS, prompt.replace("<|", "< |")]:
        assert llama.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text), text
    tokens = llama.tokenize(prompt.encode(), add_bos=False, special=True)
    assert set(tokens) & set(tokenizer.control.values()) or "<|" not in prompt
    llama.eval(tokens)
    theirs = np.array(llama.scores[: len(tokens)])
    with torch.no_grad():
        ours = model.unembed(model(torch.tensor([tokens]), torch.arange(len(tokens))[None]))[0].numpy()
    assert np.abs(ours - theirs).max() <= TOLERANCES[precision] * np.abs(ours).max()
    found = []
    for _ in range(steps):
        found.append(int(llama.scores[llama.n_tokens - 1].argmax()))
        llama.eval(found[-1:])
    greedy = Sampling(temperature=0.0)
    (wanted,) = generate(model, [tokens], greedy, max_new_tokens=steps, stop=set())
    assert found == list(wanted.tokens)
    return tokenizer.decode(found)


@pytest.mark.parametrize("precision", KINDS)
def test_llama_cpp_answers_as_smollm2_does_here(precision, smollm2, tmp_path):
    llama = opened(written(smollm2, tmp_path / "model.gguf", precision))
    answer = check_goes_on_alike(llama, smollm2, QUESTION, precision, 32)
    assert answer.startswith("The capital of France is Paris.")


@pytest.mark.parametrize("name", ["sentencepiece", "bytes", "llama 3", "mistral", "qwen2"])
def test_llama_cpp_goes_on_as_tiny_models_do_here(name, tiny, tmp_path):
    llama = opened(written(tiny(name), tmp_path / "model.gguf"))
    check_goes_on_alike(llama, tiny(name), "Once upon a time there was a rabbit named Jack", "fp32", 40)
    added = llama.tokenize(b"Once", add_bos=True)
    assert (added[0] == llama.token_bos()) == (name == "sentencepiece")  # of which a text begins with BOS


CONVERT = """
import sys
import convert_hf_to_gguf as program
for directory, path, kind in [line.split("\\t") for line in sys.stdin.read().splitlines()]:
    sys.argv = ["convert", directory, "--outfile", path, "--outtype", kind, "--model-name", "Model"]
    program.main()
"""


def test_files_are_those_of_llama_cpp_s_own_converter_byte_for_byte(smollm2, tiny, tmp_path):
    kinds = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "q8_0": "q8_0"}
    made = [(smollm2, "q8_0"), (tiny("sentencepiece"), "fp32"), (tiny("sentencepiece"), "q8_0")]
    lines = []
    for place, (directory, precision) in enumerate(made):
        written(directory, tmp_path / f"ours-{place}.gguf", precision)
        lines.append(f"{directory}\t{tmp_path / f'theirs-{place}.gguf'}\t{kinds[precision]}")
    converter = llama_cpp_converter()
    done = subprocess.run(
        [sys.executable, "-c", CONVERT],
        input="\n".join(lines),
        cwd=converter.parent,
        env=os.environ | {"PYTHONPATH": str(converter.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for place in range(len(made)):
        ours, theirs = (read_header(tmp_path / f"{whose}-{place}.gguf") for whose in ("ours", "theirs"))
        assert _known(ours.settings) == _known(theirs.settings)
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, stored in ours.tensors.items():
            other = theirs.tensors[name]
            assert (stored.shape, stored.kind) == (other.shape, other.kind), name
            assert _raw(stored) == _raw(other), name


def _known(settings):
    """Without what the converter leaves to llama.cpp's defaults, and a key of BERT's."""
    ignored = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_sep_token")
    return {key: value for key, value in settings.items() if key not in ignored}


def _raw(stored):
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        return file.read(stored.end - stored.offset)
