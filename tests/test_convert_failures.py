"""A conversion that fails, is killed, or goes over another model: nothing of two models lies side by side."""

import shutil
from base64 import b64encode
from pathlib import Path

import pytest
import torch
from llama2c_models import piece_tokenizer, tiny
from safetensors.torch import load_file, save_file
from test_convert import tell
from test_convert_formats import FORMATS
from test_convert_formats import model as model  # a fixture
from tiny_chat import byte_tokenizer

from tutelage.checkpoint.hf import save_model
from tutelage.checkpoint.meta.write import write_meta
from tutelage.checkpoint.streamed import Checked, Held
from tutelage.text.tokenizer import Tokenizer


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory) -> Path:
    """Another model, with a NaN in its last tensor and a tokenizer of its own."""
    directory = tmp_path_factory.mktemp("spoiled") / "model"
    made = tiny(vocab_size=piece_tokenizer().size, ffn_dim=96)
    save_model(made, made.config, directory, dtype=torch.bfloat16)
    state = load_file(directory / "model.safetensors")
    state["lm_head.weight"][-1, 0] = float("nan")
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    own = piece_tokenizer()
    Tokenizer(own.source, {**own.settings, "chat_template": "another"}).save(directory)
    return directory


@pytest.mark.parametrize("kind", [*FORMATS, "gguf"])
def test_what_could_not_be_written_changes_nothing_and_leaves_nothing(kind, model, spoiled, tmp_path, capsys):
    kept, fresh = tmp_path / "kept", tmp_path / "fresh"
    assert tell(capsys, "convert", model, "--output", kept, "--format", kind)[0] == 0
    before = contents(kept)
    words = ["convert", spoiled, "--format", kind, "--overwrite", "--output"]
    for place in (kept, fresh):
        code, _, err = tell(capsys, *words, place)
        assert code == 2 and "lm_head.weight has NaN or infinity" in err, err
    assert contents(kept) == before and not fresh.exists()


@pytest.mark.parametrize("kind", ["hf", "torchllms", "litgpt", "meta", "llama2c_pt"])
def test_nothing_of_an_earlier_tokenizer_stays_beside_the_next_model(kind, model, tmp_path, capsys):
    out, next_model = tmp_path / "out", tmp_path / "next"
    assert tell(capsys, "convert", model, "--output", out, "--format", kind)[0] == 0
    (out / "tokenizer.model").write_text("of the earlier model")
    if kind in ("hf", "torchllms", "litgpt"):
        (out / "chat_template.jinja").write_text("of the earlier model")
        (out / "added_tokens.json").write_text("{}")
    made = tiny(vocab_size=byte_tokenizer().size, ffn_dim=96)
    save_model(made, made.config, next_model, dtype=torch.bfloat16)
    byte_tokenizer().save(next_model)
    assert tell(capsys, "convert", next_model, "--output", out, "--format", kind, "--overwrite")[0] == 0
    left = {"tokenizer.model", "chat_template.jinja", "added_tokens.json"} & contents(out).keys()
    assert not left
    if kind in ("hf", "torchllms", "litgpt"):
        assert Tokenizer.load(out).fingerprint == byte_tokenizer().fingerprint


def test_a_model_converted_in_place_keeps_the_tokenizer_that_it_came_with(tmp_path, capsys):
    """Llama 3's tokenizer.model, no SentencePiece, is not held, so it could not be written anew."""
    made = tiny(vocab_size=byte_tokenizer().size)
    write_meta(Held(made.state_dict()), made.config, tmp_path, dtype=torch.float32)
    byte_tokenizer().save(tmp_path)
    ranks = "".join(f"{b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (tmp_path / "tokenizer.model").write_text(ranks)
    words = ["convert", tmp_path, "--output", tmp_path, "--format", "meta", "--overwrite"]
    code, _, err = tell(capsys, *words, "--precision", "bf16")
    assert code == 0, err
    assert (tmp_path / "tokenizer.model").read_text() == ranks


@pytest.mark.parametrize("kind", [*FORMATS, "gguf"])
def test_what_a_kill_left_goes_with_the_same_command(kind, model, tmp_path, capsys, monkeypatch):
    words = ["convert", model, "--output", tmp_path / "out", "--format", kind]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # so nothing is cleaned up
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(Checked, "rows", lambda *_: 1 / 0)
        assert tell(capsys, *words)[0] == 1
    assert any("partial" in path.name for path in (tmp_path / "out").iterdir())
    for place in ("out", "once"):
        assert tell(capsys, *words[:3], tmp_path / place, *words[4:])[0] == 0
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "once").keys()


def test_a_tokenizer_model_that_gguf_cannot_take_scores_from_is_refused(model, tmp_path, capsys):
    copy = shutil.copytree(model, tmp_path / "model")
    (copy / "tokenizer.model").write_bytes(b"no model of SentencePiece")
    code, _, err = tell(capsys, "convert", copy, "--output", tmp_path / "out", "--format", "gguf")
    assert code == 2 and "the tokenizer.model beside tokenizer.json" in err and "it is damaged" in err
