"""Numbers in a config.json: what stands for none is none, and what no model can have is refused by key."""

import json

import pytest
from tiny_models import oracle

from tutelage.checkpoint.hf import load_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny Llama that transformers wrote."""
    directory = tmp_path_factory.mktemp("llama")
    oracle("llama").save_pretrained(directory)
    return directory


@pytest.fixture
def written(whole, tmp_path):
    """Writes a config.json, of the Llama with these changes, and a generation_config.json."""

    def write(changes, generation=None):
        values = json.loads((whole / "config.json").read_text()) | changes
        (tmp_path / "config.json").write_text(json.dumps(values))
        (tmp_path / "generation_config.json").write_text(json.dumps(generation or {}))
        return tmp_path

    return write


def test_minus_one_is_no_token_in_either_file_and_is_not_written_on(written):
    none = {f"{name}_token_id": -1 for name in ("bos", "eos", "pad")}
    config = load_config(written(none))
    assert (config.bos, config.eos, config.pad) == (None, (), None)
    values = config.to_hf()
    assert [values[key] for key in none] == [None, None, None]
    assert load_config(written({"eos_token_id": [7, -1]})).eos == (7,)
    config = load_config(written({"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": None}, none))
    assert (config.bos, config.eos, config.pad) == (5, (6,), None)
