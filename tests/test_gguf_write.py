"""Models written as GGUF are the models they were: for us, for transformers, and by hand."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from gguf import GGMLQuantizationType as Kind
from tiny_models import CONFIGS, VOCABULARY, WINDOW, oracle, ours, positions_of, random_tokens
from tokenizers import models, pre_tokenizers
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tutelage.checkpoint import source as source_file
from tutelage.checkpoint.gguf.file import read_header
from tutelage.checkpoint.gguf.rope import llama3_factors, rope_settings
from tutelage.checkpoint.gguf.write import write_gguf
from tutelage.checkpoint.hf import load_config, load_model, open_source
from tutelage.checkpoint.streamed import Held
from tutelage.cli import main
from tutelage.errors import UserError
from tutelage.text.tokenizer import Tokenizer

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}


@pytest.fixture(scope="module")
def tokenizer():
    """As many tokens as the tiny models have, cut as GPT-2's are."""
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 4]
    ids = {token: place for place, token in enumerate([*named.values(), *letters, "AB"])}
    made = tokenizers.Tokenizer(models.BPE(ids, [("A", "B")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(list(named.values()))
    return Tokenizer(made.to_str(), named)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Tiny models and the Hugging Face directories of them."""
    made = {}

    def of(name):
        if name not in made:
            theirs = oracle(name)
            directory = tmp_path_factory.mktemp("model")
            theirs.save_pretrained(directory)
            made[name] = theirs, directory
        return made[name]

    return of


@pytest.fixture
def write(saved, tokenizer, tmp_path):
    def written(name, kind=Kind.F32, **changes):
        config, source = open_source(saved(name)[1])
        path = tmp_path / "model.gguf"
        remarks = write_gguf(replace(config, **changes), source, tokenizer, path, kind, name="tiny")
        assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
        return path, remarks

    return written


def refusal(action, *arguments, **options):
    with pytest.raises(UserError) as refused:
        action(*arguments, **options)
    return str(refused.value)


@pytest.mark.parametrize(
    "name", ["llama", "llama tied", "llama one head", "qwen2", "mistral window", "mistral head_dim"]
)
def test_what_is_written_is_read_back_bit_by_bit_and_by_transformers(name, saved, write, monkeypatch):
    monkeypatch.setattr(source_file, "PIECE", 32 * 11)  # heads have 8 rows, which pieces then cut
    theirs, _ = saved(name)
    path, remarks = write(name)
    copy, wanted = load_model(path), ours(theirs)
    family = "llama" if name == "mistral head_dim" else wanted.config.family  # without a window it is one
    assert copy.config == replace(wanted.config, family=family)
    for key, tensor in wanted.state_dict().items():
        assert torch.equal(copy.state_dict()[key], tensor), key
    assert bool(remarks) == (name == "mistral window")
    if name == "mistral window":
        assert remarks[0].startswith(f"llama.cpp has no sliding window in this architecture: from {WINDOW} ")
        return  # nor has transformers' reading
    read = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokens = random_tokens(2, 30)
    with torch.no_grad():
        torch.testing.assert_close(read(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, torch.float16), (Kind.BF16, torch.bfloat16)])
def test_matrices_are_rounded_and_vectors_are_not(kind, dtype, saved, write):
    theirs, _ = saved("qwen2")
    path, _ = write("qwen2", kind)
    header, copy = read_header(path), load_model(path, dtype=torch.float32)
    assert header.settings["general.file_type"] == {Kind.F16: 1, Kind.BF16: 32}[kind]
    assert {stored.kind for stored in header.tensors.values() if len(stored.shape) > 1} == {kind}
    assert {stored.kind for stored in header.tensors.values() if len(stored.shape) == 1} == {Kind.F32}
    for key, tensor in theirs.state_dict().items():
        if key == "lm_head.weight":
            continue
        wanted = tensor.to(dtype).float() if tensor.ndim > 1 else tensor
        assert torch.equal(copy.state_dict()[key], wanted), key
    assert "output.weight" not in header.tensors  # tied


def test_blocks_of_eight_bits_are_those_of_the_gguf_package(saved, write):
    theirs, _ = saved("llama")
    path, remarks = write("llama", Kind.Q8_0)
    copy = load_model(path)
    kinds = {name: stored.kind for name, stored in read_header(path).tensors.items()}
    assert kinds.pop("blk.0.ffn_down.weight") == kinds.pop("blk.1.ffn_down.weight") == Kind.F16  # rows of 48
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {Kind.Q8_0}
    assert remarks == [
        "2 matrices, first blk.0.ffn_down.weight, are in F16: their rows do not divide into blocks of 32"
    ]
    value = theirs.model.layers[1].self_attn.q_proj.weight.detach()
    wanted = gguf.dequantize(gguf.quantize(value.numpy(), Kind.Q8_0), Kind.Q8_0)
    assert torch.equal(copy.model.layers[1].self_attn.q_proj.weight, torch.from_numpy(wanted))
    assert 0 < (torch.from_numpy(wanted) - value).abs().max() < value.abs().max() / 127


def test_scaled_frequencies_are_those_of_transformers(saved, write):
    old = {"original_max_position_embeddings": 8192}
    path, _ = write("llama", rope_scaling={**LLAMA3, **old}, rope_theta=500000.0)
    factors = torch.from_numpy(read_header(path).read("rope_freqs.weight", 0, 4))
    config = replace(ours(saved("llama")[0]).config, rope_theta=500000.0)
    hf = type(CONFIGS["llama"])(
        **CONFIGS["llama"].to_dict() | {"rope_parameters": {**LLAMA3, **old, "rope_theta": 500000.0}}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](hf, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(factors, plain / scaled, atol=0, rtol=1e-5)
    assert factors.max() == 8 and factors.min() == 1
    assert load_config(path) == replace(config, rope_scaling={**LLAMA3, **old})
    assert 1 < llama3_factors(128, 500000.0, {**LLAMA3, **old})[30] < 8  # between them


def test_linear_and_yarn_scaling_are_stated_by_keys():
    assert rope_settings(1e6, {"rope_type": "linear", "factor": 2}) == {
        "rope.freq_base": 1e6,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 2.0,
    }
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 32}
    assert rope_settings(1e6, yarn) == {
        "rope.freq_base": 1e6,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32768,
        "rope.scaling.yarn_beta_fast": 32.0,
    }
    assert refusal(rope_settings, 1e4, yarn | {"mscale": 0.7}).startswith("yarn scaling with mscale = 0.7 ")
    assert refusal(rope_settings, 1e4, {"rope_type": "dynamic", "factor": 2.0}) == (
        "rotary scaling 'dynamic' cannot be written as GGUF; linear, yarn and llama3 can"
    )


def test_models_that_llama_cpp_would_compute_otherwise_are_refused(saved, write, tmp_path):
    assert refusal(write, "llama", head="score").startswith("a model with a score head cannot be written")
    assert "llama.cpp does not know whose a token is" in refusal(write, "llama", role_embeddings=True)
    message = refusal(write, "qwen2", windows=(None, WINDOW))
    assert message == (
        "this model cannot be written as GGUF: of architecture qwen2 llama.cpp takes some settings for "
        f"granted, and windows = (None, {WINDOW}) would be ({WINDOW}, {WINDOW})"
    )
    assert refusal(write, "llama", vocab_size=60) == (
        "the tokenizer has 61 tokens and the model embeds 60; GGUF keeps one list for both: give the "
        "tokenizer that the model was trained with by --tokenizer"
    )
    assert list(tmp_path.iterdir()) == []


def test_values_that_half_precision_cannot_hold_are_refused(saved, tokenizer, tmp_path):
    theirs, _ = saved("llama")
    state = theirs.state_dict()
    large = {name: tensor * 1e6 if "layers.1.mlp.up" in name else tensor for name, tensor in state.items()}

    class Source:
        where, problems, dtype = "memory", [], torch.float32
        shapes = {name: tuple(tensor.shape) for name, tensor in large.items()}

        def rows(self, name, start, stop):
            return large[name][start:stop]

    options = (ours(theirs).config, Source(), tokenizer, tmp_path / "model.gguf")
    message = refusal(write_gguf, *options, Kind.F16, name="large")
    assert message.startswith("model.layers.1.mlp.up_proj.weight has values of ")
    assert message.endswith(", and fp16 ends at 65504; give --precision bf16 or fp32")
    assert list(tmp_path.iterdir()) == []
    write_gguf(*options, Kind.BF16, name="large")


def test_a_block_whose_scale_half_precision_cannot_hold_is_refused(saved, tokenizer, tmp_path, recwarn):
    theirs, _ = saved("llama")
    name, state = "model.layers.1.mlp.up_proj.weight", dict(theirs.state_dict())
    path = tmp_path / "model.gguf"

    def written(value):
        state[name] = state[name].clone()
        state[name][0, 0] = value
        options = (ours(theirs).config, Held(state), tokenizer, path, Kind.Q8_0)
        write_gguf(*options, name="large")
        return read_header(path).read("blk.1.ffn_up.weight", 0, 1)[0, 0]

    assert written(127 * 65504.0) == 127 * 65504.0  # the largest: each number is an int8 times an fp16
    path.unlink()
    message = refusal(written, 127.2 * 65504)
    assert message.startswith(f"{name} has values of 8.33e+06, and q8_0 ends at 8.31901e+06; ")
    assert not path.exists()
    assert not [each for each in recwarn if issubclass(each.category, RuntimeWarning)]


def test_an_infinite_scale_is_read_without_a_warning(saved, write, recwarn):
    path, _ = write("llama", Kind.Q8_0)
    header = read_header(path)
    with path.open("r+b") as file:
        file.seek(header.tensors["blk.1.ffn_up.weight"].offset)
        file.write(b"\x00\x7c" + bytes(32))  # infinity in fp16, times 0
    assert not np.isfinite(read_header(path).read("blk.1.ffn_up.weight", 0, 1)).all()
    assert not [each for each in recwarn if issubclass(each.category, RuntimeWarning)]


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


def test_convert_writes_a_file_or_a_directory_and_refuses_what_is_there(saved, tokenizer, tmp_path, capsys):
    directory = saved("llama tied")[1]
    tokenizer.save(directory)
    for output, path in [(tmp_path / "a.gguf", tmp_path / "a.gguf"), (tmp_path, tmp_path / "model.gguf")]:
        main(["convert", str(directory), "--output", str(output), "--format", "gguf", "--precision", "fp16"])
        assert read_header(path).settings["general.file_type"] == 1
        assert read_header(path).settings["general.name"] == directory.name
    for name, words, kind, said in [("b", [], 0, "float32"), ("d", ["--precision", "q8_0"], 7, "q8_0")]:
        path = tmp_path / f"{name}.gguf"
        main(["convert", str(directory), "--output", str(path), "--format", "gguf", *words])
        assert read_header(path).settings["general.file_type"] == kind  # without --precision as stored
        assert capsys.readouterr().err.endswith(f" parameters, {said}\n")
    for words, message in [
        (["--output", tmp_path, "--format", "gguf"], f"{tmp_path / 'model.gguf'} exists; give --overwrite"),
        (["--output", tmp_path / "hf", "--precision", "q8_0"], "precision q8_0 is GGUF's"),
        (["--output", tmp_path / "c.gguf"], "is a .gguf file; give --format gguf with it"),
    ]:
        assert run("convert", directory, *words) == 2
        assert message in capsys.readouterr().err


def test_positions_and_logits_survive_eight_bits(saved, write):
    theirs, _ = saved("qwen2")
    copy = load_model(write("qwen2", Kind.Q8_0)[0]).eval()
    tokens = random_tokens(2, 30)
    with torch.no_grad():
        found, wanted = copy.unembed(copy(tokens, positions_of(tokens))), theirs(tokens).logits
    assert 0 < (found - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_no_more_than_a_piece_is_ever_held(saved, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(source_file, "PIECE", 32 * 11)
    config, source = open_source(saved("llama")[1])
    read, asked = source.rows, []
    monkeypatch.setattr(source, "rows", lambda *rows: asked.append(rows[2] - rows[1]) or read(*rows))
    write_gguf(config, source, tokenizer, tmp_path / "model.gguf", Kind.F32, name="tiny")
    assert max(asked) <= 32  # 11 rows, of queries and keys whole heads of 8; vectors are one row
