"""What cannot be trained on as it is: shortened, split, dropped or refused, and every loss told."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import TEMPLATE, TOKENIZER, chat, chats, refusal

from tutelage.data.batch import Sample
from tutelage.data.cut import cut, refuse_unmasked
from tutelage.data.dataset import prepare
from tutelage.data.faults import Faults
from tutelage.data.pack import collate
from tutelage.data.store import SampleStore, split_documents


@pytest.fixture
def prepared(tmp_path):
    """`prepare` with a cache of the test's own."""
    return partial(
        prepare, num_samples=(), template=TEMPLATE, tokenizer=TOKENIZER, log=lambda line: None,
        cache_dir=tmp_path / "cache", max_seq_len=512,
    )  # fmt: skip


def document(n: int, learned: int) -> Sample:
    """n tokens, the last `learned` of them learned."""
    return Sample(np.arange(n), np.r_[np.zeros(n - learned), np.ones(learned)], np.zeros(n))


def test_a_document_of_one_token_more_than_the_row_fits():
    store, report = cut(SampleStore.of([document(9, 4)]), max_seq_len=8, too_long="truncate")
    assert store.lengths.tolist() == [9] and report.cuts == [] and report.learned == 4
    assert report.lines() == ["1 row, 9 tokens: nothing cut, 44.4 % is learned"]


def test_everything_that_is_lost_is_in_exactly_one_cut():
    """Rows of 8 positions: 12 tokens lose 3; of 20 with only the last 2 learned nothing is left to learn."""
    store = SampleStore.of(
        [document(1, 1), document(5, 0), document(5, 2), document(12, 9), document(20, 2), document(0, 0)]
    )
    faults = Faults(1, ["a.jsonl:7: not JSON: x"])
    kept, report = cut(store, max_seq_len=8, too_long="truncate", faults=faults)
    assert kept.ids == ["0-3", "0-4"]
    assert [sample.tokens.tolist() for sample in kept] == [list(range(5)), list(range(9))]
    assert report.learned == 2 + 6
    assert report.lines() == [
        "7 rows, 43 tokens; 57.1 % of what is left is learned; cut or dropped:",
        "  bad rows skipped: 1 row (14.3 %), 0 tokens (0.0 %), first a.jsonl:7",
        "  dropped, too short to predict anything: 2 rows (28.6 %), 1 tokens (2.3 %), first 0-1, 0-6",
        "  dropped, nothing to learn: 1 row (14.3 %), 5 tokens (11.6 %), first 0-2",
        "  truncated to 8 positions: 1 row (14.3 %), 3 tokens (7.0 %), first 0-4",
        "  dropped, nothing to learn in the first 8 positions: 1 row (14.3 %), 20 tokens (46.5 %), first 0-5",
    ]
    assert round(report.percent, 1) == 85.7
    kept, report = cut(store, max_seq_len=8, too_long="drop")
    assert kept.ids == ["0-3"]
    assert report.lines()[-1] == (
        "  dropped, longer than 8 positions: 2 rows (33.3 %), 32 tokens (74.4 %), first 0-4, 0-5"
    )


def test_a_first_token_is_never_learned():
    store, report = cut(SampleStore.of([Sample([1, 2], [1, 0], [0, 0])]), max_seq_len=8, too_long="drop")
    assert len(store) == 0 and report.cuts[0].reason == "dropped, nothing to learn"


def test_more_than_the_agreed_share_is_refused(tmp_path, prepared):
    """2 of 40 rows are 5 %, which may go; 3 may not."""
    log = []
    path = chats(tmp_path / "a.jsonl", [chat()] * 38 + [chat("x" * 600)] * 2)
    store = prepared([path], too_long="drop", log=log.append, max_cut_percent=60)
    assert len(store) == 38
    path = chats(tmp_path / "b.jsonl", [chat("y" * 300, "z" * 300)] * 38 + [chat("x" * 550)] * 2)
    assert len(prepared([path], too_long="drop", max_seq_len=700)) == 40
    long = chats(tmp_path / "d.jsonl", [chat("y" * 300)] * 37 + [chat("", "x" * 600)] * 3)
    message = refusal(prepared, [long])
    assert message.startswith(
        "7.5 % of the data would be cut or dropped, and --max_cut_percent allows 5; "
        "mend the data, raise --max_seq_len, or raise --max_cut_percent:\n40 rows, "
    )
    assert "  truncated to 512 positions: 3 rows (7.5 %), " in message and "first 0-38, 0-39, 0-40" in message
    assert len(prepared([long], max_cut_percent=7.5)) == 40
    assert any("dropped, longer than 512 positions: 2 rows (5.0 %)" in line for line in log)


def test_nothing_learned_and_everything_learned_are_refused(tmp_path, prepared):
    everything = SampleStore.of([document(5, 4), document(7, 7)])
    assert refusal(refuse_unmasked, everything) == (
        "every token of the conversations is learned, prompts included; look with `tutelage data show` "
        "and give another --template_config, or pass --allow_unmasked if that is what you want"
    )
    assert refusal(refuse_unmasked, SampleStore.of([document(5, 0)])) == (
        "no token of the conversations is learned: the template marks nothing as the assistant's; "
        "look with `tutelage data show` and give another --template_config"
    )
    refuse_unmasked(SampleStore.of([document(5, 5)], kind="text"))
    refuse_unmasked(SampleStore.of([document(5, 4), document(5, 3)]))
    (tmp_path / "a.txt").write_text("all of this\n")
    assert len(prepared([tmp_path / "a.txt"], template=None)) == 1


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 9))
def test_splitting_predicts_every_token_but_the_first_exactly_once(sizes, length):
    offset, samples = 0, []
    for n in sizes:
        samples.append(Sample(np.arange(offset, offset + n), np.ones(n), np.zeros(n)))
        offset += n
    pieces = split_documents(SampleStore.of(samples), length)
    assert pieces.positions.max() <= length
    predicted = []
    for piece in pieces:
        batch = collate([[piece]], length)
        real = batch.docs[0] >= 0
        assert (batch.targets[0][real] == batch.tokens[0][real] + 1).all()
        predicted += batch.targets[0][real].tolist()
    firsts = np.cumsum([0, *sizes])[:-1].tolist()
    expected = [
        token for first, n in zip(firsts, sizes, strict=True) for token in range(first + 1, first + n)
    ]
    assert predicted == expected
    assert len(set(pieces.ids)) == len(pieces)


def test_long_text_is_split_and_nothing_is_lost(tmp_path, prepared):
    text = "".join(chr(97 + n % 26) for n in range(1000))
    (tmp_path / "a.txt").write_text(f"{text}\nshort\n")
    log = []
    store = prepared([tmp_path / "a.txt"], too_long="split", max_seq_len=100, log=log.append)
    assert store.ids == [f"0-1/{piece}" for piece in range(10)] + ["0-2/0"]
    tokens = [token for sample in list(store)[:10] for token in sample.tokens.tolist()[1:]]
    assert tokens == [*TOKENIZER.encode(text)[1:], TOKENIZER.eos]
    assert log[-1] == "train data: 2 rows, 1,007 tokens: nothing cut, 99.8 % is learned"
