"""What a run shows beside its loss: samples of text, bits per byte, the share of the machine it uses."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_data import TOKENIZER
from tiny_runs import metrics, refused, run
from tiny_shards import shards, text_file, texts

from tutelage.data.loader import Loader
from tutelage.data.streams import TokenStreams
from tutelage.objectives.base import linear_cross_entropy
from tutelage.text.token_bytes import token_bytes
from tutelage.text.train import train_tokenizer
from tutelage.text.train_sentencepiece import train_sentencepiece
from tutelage.train.precision import LossScale

BYTE_LEVEL, SENTENCEPIECE = train_tokenizer(texts(200), 300), train_sentencepiece(texts(200), 320)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tokenizer and shards to pretrain on."""
    place = tmp_path_factory.mktemp("watched")
    TOKENIZER.save(place / "tok")
    shards(place, 200)
    text_file(place / "held_out.txt", texts(20, seed=8))
    return place


def pretrain(place, out, *words: str, data: str | None = None):
    settings = (
        "--dim 32 --n_layers 1 --n_heads 2 --max_seq_len 32 --micro_batch_size_per_gpu 2 --warmup_steps 1"
    )
    paths = data or f"shards:{place}/shards/train"
    command = ["pretrain", "--tokenizer", place / "tok", "--train_data_paths", paths]
    return run(*command, *settings.split(), "--output_dir", out, *words)


@pytest.mark.parametrize(
    "text", ["", "hello world", " two  spaces\n\n\ttabs", "Grüße, 你好 👋🏽!", "\x00\x7f", "a" * 300]
)
def test_the_bytes_of_tokens_add_up_to_the_text(text):
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        # A vocabulary of SentencePiece puts a space of its own before every text, as Llama 2's does.
        own = len(tokenizer.decode(tokenizer.encode(text)).encode()) - len(text.encode())
        dummy = tokenizer is SENTENCEPIECE and bool(text)
        assert own == 0 and token_bytes(tokenizer)[tokenizer.encode(text)].sum() == len(text.encode()) + dummy


def test_control_tokens_are_no_text():
    for tokenizer in (BYTE_LEVEL, SENTENCEPIECE):
        assert not token_bytes(tokenizer)[list(tokenizer.control.values())].any()


def test_bits_per_byte_are_nats_over_the_bytes_that_were_predicted(place, tmp_path):
    ended = pretrain(
        place, tmp_path / "out", "--train_steps", "3", "--val_data_paths", f"text:{place}/held_out.txt"
    )
    assert ended.code == 0, ended.err
    last = metrics(tmp_path / "out")[-1]
    lines = (place / "held_out.txt").read_text().splitlines()
    # The first token of a document is given, its end is predicted and is no text.
    counts = token_bytes(TOKENIZER)
    encoded = [TOKENIZER.encode(line) for line in lines]
    predicted = sum(int(counts[tokens[1:]].sum()) for tokens in encoded)
    nats = last["val_loss"] * sum(map(len, encoded))
    assert last["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / predicted, rel=1e-5)
    assert f"bits per byte {last['val_bits_per_byte']:.4f}" in ended.err


def test_samples_are_said_and_kept_and_change_nothing(place, tmp_path):
    watched = ["--sample_prompts", "alpha", "beta x", "--sample_freq", "2", "--sample_tokens", "5"]
    ended = pretrain(place, tmp_path / "watched", "--train_steps", "5", "--precision", "fp32", *watched)
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (tmp_path / "watched" / "samples.jsonl").open()]
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (step, prompt) for step in (2, 4, 5) for prompt in ("alpha", "beta x")
    ]
    assert all(row["text"] in ended.err for row in rows)
    pretrain(place, tmp_path / "alone", "--train_steps", "5", "--precision", "fp32")
    one, other = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("watched", "alone"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_an_empty_sample_prompt_is_refused(place, tmp_path):
    assert "sample_prompts" in refused(pretrain(place, tmp_path / "out", "--sample_prompts", ""))


def test_a_sample_prompt_too_long_for_the_model_is_refused_before_the_run(place, tmp_path):
    ended = pretrain(place, tmp_path / "out", "--sample_prompts", "alpha " * 40, "--dry_run")
    assert "sample_prompts has one of" in refused(ended)


def test_flags_for_shards_are_refused_for_files_and_the_other_way_round(place, tmp_path):
    text = f"text:{place}/held_out.txt"
    flags = ["--shard_packing", "stream"]
    assert "rows are made of shards" in refused(pretrain(place, tmp_path / "out", *flags, data=text))
    splits = refused(pretrain(place, tmp_path / "out", "--train_data_splits", "train"))
    assert "train_data_splits" in splits
    whole = refused(pretrain(place, tmp_path / "out", data=f"shards:{place}/shards"))
    assert f"give shards:{place}/shards/train" in whole
    assert "no meta.json" in refused(pretrain(place, tmp_path / "out", data="shards:~nobody-at-all/x"))
    assert "seed is -1" in refused(pretrain(place, tmp_path / "out", "--seed", "-1"))
    assert "none that training runs on" in refused(pretrain(place, tmp_path / "out", "--device", "meta"))


def test_a_resume_that_is_refused_leaves_the_settings_as_they_were(place, tmp_path):
    out = tmp_path / "out"
    assert pretrain(place, out, "--train_steps", "2", "--save_freq", "1").code == 0
    before = (out / "config.yaml").read_text()
    refused(pretrain(place, out, "--train_steps", "4", "--resume", "--optimizer", "muon"))
    assert (out / "config.yaml").read_text() == before
    assert pretrain(place, out, "--train_steps", "4", "--resume").code == 0
    assert "train_steps: 4" in (out / "config.yaml").read_text()


def test_the_loss_scale_reaches_the_gradient_of_the_head_before_it_is_rounded():
    """One frequent token and long rows: the sum of the head's gradient has no room in float16."""
    torch.manual_seed(0)
    hidden = (3 * torch.ones(4096, 32)).half().requires_grad_()
    head = torch.zeros(70, 32).half().requires_grad_()
    targets, weights = torch.full((4096,), 7), torch.ones(4096)
    for scale, fits in ((1.0, True), (2.0**12, False), (2.0**-6, True)):
        hidden.grad = head.grad = None
        (linear_cross_entropy(hidden, head, targets, weights * 8) * scale).backward()
        assert bool(head.grad.isfinite().all()) is (fits if scale != 1.0 else False)
    expected = -(1 - 1 / 70) * 3 * 4096 * 8 * 2.0**-6
    assert head.grad[7].float().mean() == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("tokens", [1, 64, 65, 6400])
def test_the_length_of_a_run_may_be_given_in_tokens(place, tmp_path, tokens):
    ended = pretrain(place, tmp_path / "out", "--train_tokens", str(tokens), "--dry_run")
    source = shards(tmp_path, 200)
    loader = Loader(TokenStreams([source]), length=32, rows=2, accumulate=1, packed=True, seed=1)
    steps = math.ceil(tokens * len(loader) / source.positions)
    assert f"plan: {steps:,} optimizer steps" in ended.err
    assert abs(steps - tokens / 64) < 2 + tokens / 64 * 0.01


def test_two_lengths_of_a_run_are_refused(place, tmp_path):
    both = pretrain(place, tmp_path / "out", "--train_tokens", "100", "--train_steps", "3")
    assert "give one of them" in refused(both)


def test_the_share_of_the_machine_is_reported(place, tmp_path):
    ended = pretrain(place, tmp_path / "out", "--train_steps", "2")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    assert all(0 < row["mfu"] < 1 for row in rows) and "MFU" in ended.err


def test_float16_learns_as_float32_does(place, tmp_path):
    for precision in ("fp32", "fp16"):
        ended = pretrain(place, tmp_path / precision, "--train_steps", "12", "--precision", precision)
        assert ended.code == 0, ended.err
    wide, half = (metrics(tmp_path / precision) for precision in ("fp32", "fp16"))
    assert [row["loss"] for row in half] == pytest.approx([row["loss"] for row in wide], rel=5e-3)
    assert {row["loss_scale"] for row in half} == {1.0}


def test_a_loss_scale_halves_on_overflow_doubles_after_peace_and_gives_up_in_the_end():
    scale = LossScale(patience=3)
    assert scale.update(False) and scale.value == 0.5
    assert [scale.value for _ in range(6) if scale.update(True)] == [0.5, 0.5, 1.0, 1.0, 1.0, 2.0]
    kept = LossScale(patience=3)
    kept.tensors()["loss_scale"].copy_(scale.tensors()["loss_scale"])
    assert kept.value == 2.0
    assert not all(kept.update(False) for _ in range(40))


def test_the_rows_that_a_mean_position_sees():
    from tutelage.data.batch import Sample
    from tutelage.data.order import Packed
    from tutelage.data.store import SampleStore

    store = SampleStore.of([Sample([1] * n, [1.0] * n, [0] * n) for n in (2, 5)])
    order = Packed(store, length=8, seed=0, shuffle=False)
    assert order.positions == 5 and order.context == np.mean([1, 1, 2, 3, 4])
