"""What is fetched of a model on the hub, and what is said where nothing can be."""

import shutil
import socket
import threading

import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub.utils import filter_repo_objects
from tiny_data import refusal

from tutelage.checkpoint.hub import config_path, local_path

TOKENS = ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "qwen.tiktoken"]
NEVER = ["README.md", "tf_model.h5", "original/consolidated.00.pth", "onnx/model.onnx"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """The hub's place for a model, of which `snapshot_download` brings what it is asked for."""
    theirs, here = tmp_path / "theirs", tmp_path / "here"
    theirs.mkdir()

    def snapshot_download(name, *, allow_patterns, ignore_patterns):
        names = [str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file()]
        for path in filter_repo_objects(
            names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        ):
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(theirs / path, here / path)
        return str(here)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return theirs


@pytest.mark.parametrize(
    ("wanted", "unwanted"),
    [
        (
            ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json", *TOKENS],
            ["pytorch_model.bin", "consolidated.safetensors", *NEVER],
        ),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "config.json"], NEVER),
        (["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"], NEVER),
        (["lit_model.pth", "model_config.yaml", "tokenizer.json"], NEVER),
        (["adapter_config.json", "adapter_model.bin"], ["pytorch_model.bin", *NEVER]),
    ],
)
def test_weights_are_fetched_once_and_as_safetensors_where_there_are_any(wanted, unwanted, repository):
    for name in (*wanted, *unwanted):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("x")
    found = local_path("some-org/some-model")
    assert sorted(str(p.relative_to(found)) for p in found.rglob("*") if p.is_file()) == sorted(wanted)


def test_a_connection_that_breaks_is_told_in_words(monkeypatch, tmp_path):
    server = socket.create_server(("127.0.0.1", 0))

    def hang_up():
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return

    threading.Thread(target=hang_up, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for asked in (local_path, config_path):
        said = refusal(asked, "some-org/some-model")
        assert said.startswith(
            "some-org/some-model is no folder here and could not be downloaded from the hub"
        )
    server.shutdown(socket.SHUT_RDWR)
    server.close()
