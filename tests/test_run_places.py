"""Where runs lie: nothing that a run needs is thrown away, and places that cannot be are told in words."""

import json
import resource

import pytest
import torch
from llama2c_models import piece_tokenizer, tiny
from tiny_runs import material, refused, run

from tutelage.checkpoint.hf import save_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


def test_overwriting_never_takes_the_model_that_the_run_starts_from(made, tmp_path):
    out = tmp_path / "out"
    assert run(*made.sft(out, train_steps=1)).code == 0
    for base in (out, out / "model"):
        words = made.sft(out, train_steps=1, ckpt_paths=base)
        assert "--overwrite would throw away" in refused(run(*words, "--overwrite"))
        assert (out / "model" / "model.safetensors").exists()
    assert run(*made.sft(out, train_steps=1), "--overwrite").code == 0


def test_a_run_that_is_there_is_refused_before_any_data_is_read_and_in_a_dry_run_too(made, tmp_path):
    out = tmp_path / "out"
    assert run(*made.sft(out, train_steps=1)).code == 0
    for extra in ([], ["--dry_run"]):
        ended = run(*made.sft(out, train_steps=1), *extra)
        assert "already holds a run" in refused(ended) and "train data" not in ended.err


def test_a_model_trained_on_longer_samples_than_it_was_made_for_says_so(made, tmp_path):
    base = json.loads((made.model / "config.json").read_text())
    short = tmp_path / "short"
    short.mkdir()
    for path in made.model.iterdir():
        (short / path.name).write_bytes(path.read_bytes())
    (short / "config.json").write_text(json.dumps({**base, "max_position_embeddings": 16}))
    ended = run(*made.sft(tmp_path / "out", train_steps=1, ckpt_paths=short))
    assert ended.code == 0 and "its config will say" in ended.err
    written = json.loads((tmp_path / "out" / "model" / "config.json").read_text())["max_position_embeddings"]
    assert 16 < written <= 64


WRITERS = [
    "convert {model} --output {place}",
    "convert {model} --output {place} --format torchllms",
    "convert {model} --output {place} --format litgpt",
    "data build stories --output_dir {place}",
    "data convert --input {data} --output {place}/chats.jsonl",
    "data download tinystories --output_dir {place}",
    "data download http://127.0.0.1:9/a.txt --output_dir {place}",
    "tokenizer train --train_data_paths {data} --output_dir {place}",
    "sft --ckpt_paths {model} --template_config chatml --train_data_paths {data} --output_dir {place}",
]


@pytest.mark.parametrize("words", WRITERS)
@pytest.mark.parametrize("place", ["{file}", "/proc/nope", "{file}" + "x" * 300])
def test_a_place_where_nothing_can_be_written_is_told_in_words(made, tmp_path, words, place):
    (tmp_path / "file").write_text("x")
    place = place.format(file=tmp_path / "file")
    ended = run(*words.format(place=place, model=made.model, data=made.chats).split())
    assert place.removesuffix("x" * 300) in refused(ended)


@pytest.mark.parametrize("kind", ["hf", "gguf", "meta", "torchllms", "litgpt", "llama2c_pt"])
def test_a_file_larger_than_its_disk_allows_is_told_and_leaves_nothing(kind, tmp_path):
    """As on FAT disks, whose files end at 4 GB; Python ignores the signal that would come with it."""
    model, out = tmp_path / "model", tmp_path / "out"
    made = tiny(vocab_size=piece_tokenizer().size)
    save_model(made, made.config, model, dtype=torch.float32)
    piece_tokenizer().save(model)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        ended = run("convert", model, "--output", out, "--format", kind)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "a file is larger than its disk, or `ulimit -f`, lets it be" in refused(ended)
    assert not out.exists()


def test_a_second_word_where_one_is_wanted_is_refused(tmp_path):
    ended = run("tokenizer", "inspect", "one", "two", "--data_paths", "x.txt")
    assert "two: one tokenizer is wanted, and this is another" in refused(ended)


def test_flash_attention_without_a_gpu_is_refused_whatever_the_device_is_called(made, tmp_path):
    for device in ("auto", "cpu"):
        words = made.sft(tmp_path / "out", attention_impl="flash", device=device)
        assert "needs a GPU" in refused(run(*words, "--dry_run"))
