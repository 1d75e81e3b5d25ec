"""GGUF files are read as the models they were converted from, and what cannot be is refused by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter
from gguf_files import write, write_model, write_settings
from tiny_models import CONFIGS, WINDOW, oracle, ours, positions_of, random_tokens
from transformers import AutoModelForCausalLM

from tutelage.checkpoint import source
from tutelage.checkpoint.gguf.file import read_header
from tutelage.checkpoint.hf import check_files, load_config, load_model
from tutelage.errors import UserError
from tutelage.model.rope import frequencies

LLAMA_3_1 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def refusal(action, *arguments):
    with pytest.raises(UserError) as refused:
        action(*arguments)
    return str(refused.value)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("llama 3.1", "qwen2 window")])
def test_a_converted_model_is_the_model(name, tmp_path):
    theirs = oracle(name)
    path = write_model(tmp_path / "model.gguf", theirs)
    check_files(path)
    model, wanted = load_model(path), ours(theirs)
    assert model.config == load_config(path)
    assert replace(model.config, family=wanted.config.family) == wanted.config
    assert model.config.family == ("llama" if name == "mistral head_dim" else wanted.config.family)
    for key, tensor in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_every_kind_of_block_is_decoded_as_transformers_does(name, kind, tmp_path):
    write_model(tmp_path / "model.gguf", oracle(name), matrices=kind, settings={"general.name": "tiny"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    model = load_model(tmp_path / "model.gguf", dtype=torch.float32)
    state = theirs.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    tokens = random_tokens(2, 30)
    with torch.no_grad():
        logits = model.unembed(model(tokens, positions_of(tokens)))
        torch.testing.assert_close(logits, theirs(tokens).logits, atol=1e-4, rtol=0)


def test_weights_come_in_the_dtype_of_the_file_and_blocks_in_float32(tmp_path):
    kinds = {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16, Kind.F32: torch.float32}
    for kind, wanted in {**kinds, Kind.Q8_0: torch.float32}.items():
        path = write_model(tmp_path / f"{kind.name}.gguf", oracle("llama"), matrices=kind)
        loaded = load_model(path)
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {wanted}
        assert loaded.config.dtype == str(wanted).removeprefix("torch.")
    assert load_model(path, dtype=torch.bfloat16).head_weight.dtype == torch.bfloat16


def test_rows_can_be_read_in_pieces_of_any_size(tmp_path, monkeypatch):
    theirs = oracle("llama")
    path = write_model(tmp_path / "model.gguf", theirs)
    for rows in (1, 3, 11):  # heads have 8 rows, which pieces then cut
        monkeypatch.setattr(source, "PIECE", 32 * rows)
        for key, tensor in ours(theirs).state_dict().items():
            assert torch.equal(load_model(path).state_dict()[key], tensor), key


def test_our_header_is_what_the_gguf_package_reads(tmp_path):
    settings = {
        "a.text": "grüße \U0001f600",
        "a.flag": True,
        "a.number": -0.5,
        "a.integers": [1, 2, 3],
        "a.texts": ["", "▁", "ab"],
        "a.reals": [0.5, -1.0],
    }
    path = write_model(tmp_path / "model.gguf", oracle("llama"), matrices=Kind.Q8_0, settings=settings)
    header, reader = read_header(path), GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert header.settings == fields and header.settings == header.settings | settings
    for tensor in reader.tensors:
        stored = header.tensors[tensor.name]
        assert stored.shape == tuple(tensor.shape.tolist()[::-1]) and stored.kind == tensor.tensor_type
        assert stored.offset == tensor.data_offset and stored.end == tensor.data_offset + tensor.n_bytes


def test_a_directory_with_one_gguf_file_is_that_file(tmp_path):
    theirs = oracle("llama")
    write_model(tmp_path / "model-Q8.gguf", theirs)
    assert load_config(tmp_path) == ours(theirs).config
    assert torch.equal(load_model(tmp_path).head_weight, theirs.lm_head.weight)
    write_model(tmp_path / "other.gguf", theirs)
    assert refusal(load_model, tmp_path) == (
        f"{tmp_path} holds 2 .gguf files; give one: model-Q8.gguf, other.gguf"
    )
    theirs.save_pretrained(tmp_path)
    assert load_config(tmp_path).dtype == "float32"  # safetensors go first


def test_end_tokens_are_those_of_text_and_of_a_turn(tmp_path):
    for extra, wanted in [({}, (2,)), ({"eot": 5}, (2, 5)), ({"eot": 2}, (2,))]:
        settings = {f"tokenizer.ggml.{name}_token_id": token for name, token in extra.items()}
        path = write_model(tmp_path / f"{wanted}{len(extra)}.gguf", oracle("llama"), settings=settings)
        assert load_config(path).eos == wanted
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "padding")]
    config = load_config(write_model(tmp_path / "none.gguf", oracle("llama"), without=keys))
    assert (config.bos, config.eos, config.pad) == (None, (), None)


def test_a_window_as_long_as_the_context_is_none(tmp_path):
    for window, wanted in [(WINDOW, (WINDOW, WINDOW)), (256, None)]:
        settings = {"llama.attention.sliding_window": window}
        path = write_model(tmp_path / f"{window}.gguf", oracle("llama"), settings=settings)
        config = load_config(path)
        assert config.windows == wanted and config.family == ("mistral" if wanted else "llama")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling_is_recognised_by_its_frequencies(factor, tmp_path):
    scaling = LLAMA_3_1 | {"factor": factor}
    divided = frequencies(8, 500000.0) / frequencies(8, 500000.0, scaling)
    assert divided.max() == factor and divided.min() == 1
    settings = {"llama.rope.freq_base": 500000.0}
    extra = {"rope_freqs.weight": divided.numpy()}
    path = write_model(tmp_path / "model.gguf", oracle("llama"), settings=settings, extra=extra)
    model = load_model(path)
    assert model.config.rope_scaling == scaling
    assert torch.equal(model._ropes["all"].frequencies[0], frequencies(8, 500000.0, scaling))


def test_frequencies_of_no_known_scaling_are_refused(tmp_path):
    def divided_by(last):
        extra = {"rope_freqs.weight": np.array([1, 1, 1, last], dtype=np.float32)}
        return write_model(tmp_path / f"{last}.gguf", oracle("llama"), extra=extra)

    assert load_config(divided_by(1)).rope_scaling is None
    path = divided_by(4)
    assert refusal(load_config, path) == (
        f"{path}: its rotary frequencies are divided by up to 4, and not as Llama "
        "3.1's are; use the safetensors of this model, whose config.json states how"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"split.count": 3},
            " is one of 3 parts, which are found by their names: NAME-00001-of-00003.gguf and so on; "
            "give them these names again",
        ),
        ({"llama.expert_count": 8}, ": a mixture of 8 experts is not supported"),
        (
            {"llama.attention.value_length": 16},
            ": keys of length 8 and values of length 16 are not supported",
        ),
        (
            {"llama.rope.dimension_count": 4},
            ": rotary embeddings of 4 of 8 numbers are not supported",
        ),
        (
            {"llama.attention.sliding_window_pattern": 4},
            ": llama.attention.sliding_window_pattern = 4 is not supported",
        ),
        (
            {"llama.feed_forward_length": [48, 64]},
            ": llama.feed_forward_length differs from layer to layer, which is not supported",
        ),
        (
            {"llama.attention.layer_norm_rms_epsilon": float("nan")},
            ": rms_norm_eps = nan, wanted a number above 0, from 1e-18 to 1e+18, or null",
        ),
        (
            {"llama.feed_forward_length": 64},
            " cannot be loaded:\n"
            "  model.layers.0.mlp.gate_proj.weight is 48x32, config.json makes it 64x32\n"
            "  model.layers.0.mlp.up_proj.weight is 48x32, config.json makes it 64x32\n"
            "  model.layers.0.mlp.down_proj.weight is 32x48, config.json makes it 32x64\n"
            "  model.layers.1.mlp.gate_proj.weight is 48x32, config.json makes it 64x32\n"
            "  model.layers.1.mlp.up_proj.weight is 48x32, config.json makes it 64x32\n"
            "  1 more of the wrong shape",
        ),
    ],
)
def test_models_that_would_be_computed_wrongly_are_refused(settings, message, tmp_path):
    path = write_model(tmp_path / "model.gguf", oracle("llama"), settings=settings)
    assert refusal(check_files, path) == f"{path}{message}"


def test_an_unknown_scaling_is_refused_as_in_a_config_json(tmp_path):
    settings = {"llama.rope.scaling.type": "strange", "llama.rope.scaling.factor": 4.0}
    path = write_model(tmp_path / "model.gguf", oracle("llama"), settings=settings)
    assert refusal(check_files, path).startswith(f"{path}: rope type 'strange' is not supported")


def test_missing_keys_and_tensors_are_named(tmp_path):
    path = write_model(tmp_path / "1.gguf", oracle("llama"), without=["llama.block_count"])
    assert refusal(check_files, path) == f"{path}: the key llama.block_count is missing"
    path = write_model(tmp_path / "2.gguf", oracle("llama"), without=["token_embd.weight"])
    assert refusal(check_files, path) == f"{path} holds no token_embd.weight: it is not a whole model"
    extra = {"blk.0.attn_q.bias": np.zeros(32, dtype=np.float32), "blk.0.odd": np.zeros(2, dtype=np.float32)}
    path = write_model(tmp_path / "3.gguf", oracle("llama"), without=["blk.1.attn_v.weight"], extra=extra)
    assert refusal(check_files, path) == (
        f"{path} cannot be loaded:\n  missing: model.layers.1.self_attn.v_proj.weight\n"
        "  unexpected: model.layers.0.self_attn.q_proj.bias, blk.0.odd"
    )


def test_other_architectures_and_files_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "mamba")
    write_settings(writer, {"mamba.block_count": 2})
    write(writer, path)
    assert refusal(load_config, path) == (
        f"{path}: architecture 'mamba' is not supported; supported are llama, smollm3, qwen2, qwen3, olmo2, "
        "gemma, gemma2, gemma3, phi3"
    )
    for content, message in [
        (b"", " is not a GGUF file: it does not begin with GGUF"),
        (b"GGUF\x01\0\0\0", " is GGUF version 1; supported are 2 and 3 (little-endian)"),
        (b"GGUF\0\0\0\x03", " is GGUF version 50331648; supported are 2 and 3 (little-endian)"),
    ]:
        path.unlink()
        path.write_bytes(content)
        assert refusal(load_config, path) == f"{path}{message}"


def test_truncated_files_are_refused_wherever_they_end(tmp_path):
    path = write_model(tmp_path / "model.gguf", oracle("llama"))
    content, header = path.read_bytes(), read_header(path)
    data = min(stored.offset for stored in header.tensors.values())
    for length in (8, 30, 300, data // 2, data - 64):
        path.write_bytes(content[:length])
        assert refusal(check_files, path).startswith(f"{path} is truncated or not a GGUF file ("), length
    last = max(header.tensors, key=lambda name: header.tensors[name].offset)
    path.write_bytes(content[: header.tensors[last].end - 1])
    assert refusal(check_files, path) == (
        f"{path} cannot be loaded:\n  the file is truncated: 1 tensors, first {last}, lie past its end"
    )


def test_a_model_in_several_files_is_read_through_the_first(tmp_path):
    theirs = oracle("llama")
    first = write_model(tmp_path / "model.gguf", theirs, tensors_per_part=8)
    assert first.name == "model-00001-of-00003.gguf"
    for path in (first, tmp_path):
        model = load_model(path)
        for key, tensor in ours(theirs).state_dict().items():
            assert torch.equal(model.state_dict()[key], tensor), key
    second, third = (tmp_path / f"model-0000{part}-of-00003.gguf" for part in (2, 3))
    assert refusal(load_model, second) == (
        f"{second} is part 2 of 3; give the first, model-00001-of-00003.gguf"
    )
    third.write_bytes(third.read_bytes()[:-64])
    assert f"the file {third.name} is truncated: 1 tensors, first " in refusal(check_files, first)
    third.unlink()
    first.touch()
    read_header.__globals__["_header_as_of"].cache_clear()
    assert refusal(check_files, first) == f"{first} is one of 3 parts, and beside it lies no {third.name}"
