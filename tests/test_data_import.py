"""`tutelage data import`: older programs' data files become ours, and stages train on what comes of them."""

import json
import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tiny_tokenizer import tiny_tokenizer

from tutelage import cli
from tutelage.data.dataset import encode_paths
from tutelage.data.groups import Comparisons
from tutelage.data.shards import TokenShards
from tutelage.data.streams import Streamed, TokenStreams
from tutelage.errors import UserError

TOKENIZER = tiny_tokenizer()
RECORDS = [
    {"input": ["Be kind."], "instruction": ["Hi", "More"], "output": ["Hello", "Grüße 👋"]},
    {"input": [], "instruction": ["2 + 2?"], "output": ["4"]},
]
CHATS = [
    [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "More"),
        ("assistant", "Grüße 👋"),
    ],
    [("user", "2 + 2?"), ("assistant", "4")],
]


@pytest.fixture
def tokenizer_dir(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def run(capsys, *words: object) -> tuple[int, list[str], str]:
    code = 0
    try:
        cli.main(["data", "import", *map(str, words)])
    except SystemExit as end:
        code = end.code
    printed, said = capsys.readouterr()
    return code, printed.split(), said


def put(path: Path, value: object, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def chats(path: Path) -> list[list[tuple[str, str]]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [[(message["role"], message["content"]) for message in row["messages"]] for row in rows]


def stored(place: str, *, ranked: bool = False):
    return encode_paths(
        [place], num_samples=(), template=None, tokenizer=TOKENIZER, log=lambda text: None, ranked=ranked
    )[0]


@pytest.mark.parametrize("protocol", range(6))
def test_conversations_come_out_of_every_pickle_protocol(tmp_path, capsys, protocol):
    two = {
        "a": {"train": RECORDS[:1], "validation": RECORDS},
        "b": {"train": RECORDS[1:], "validation": None},
    }
    path = put(tmp_path / "set.pkl", two, protocol)
    code, places, said = run(capsys, path, "--allow_pickle", "--output_dir", tmp_path / "out")
    assert (code, places) == (0, [str(tmp_path / "out" / f"{name}.jsonl") for name in ("train", "val")])
    assert chats(Path(places[0])) == CHATS and chats(Path(places[1])) == CHATS
    assert "2 records" in said


def test_data_sets_of_the_library_come_out_of_pickles_too(tmp_path, capsys):
    data = datasets.Dataset.from_list(RECORDS)
    path = put(tmp_path / "set.pkl", {"a": {"train": data, "validation": data.select([1])}})
    code, _, said = run(capsys, path, "--allow_pickle", "--output_dir", tmp_path / "out")
    if code:  # select() keeps indices, not rows
        assert "a/validation is a datasets.arrow_dataset.Dataset, not a list of records" in said
        path = put(path, {"a": {"train": data, "validation": data.select([1]).flatten_indices()}})
        code, _, _ = run(capsys, path, "--allow_pickle", "--output_dir", tmp_path / "out", "--overwrite")
    assert code == 0 and chats(tmp_path / "out" / "train.jsonl") == CHATS


def test_no_pickle_is_read_without_the_flag_and_nothing_is_overwritten(tmp_path, capsys):
    path = put(tmp_path / "set.pkl", {"a": {"train": RECORDS}})
    code, _, said = run(capsys, path, "--output_dir", tmp_path / "out")
    assert (
        code == 2 and "is a pickle" in said and "--allow_pickle" in said and not (tmp_path / "out").exists()
    )
    words = [path, "--allow_pickle", "--output_dir", tmp_path / "out"]
    assert run(capsys, *words)[0] == 0
    code, _, said = run(capsys, *words)
    assert code == 2 and "train.jsonl exists; give --overwrite" in said
    assert run(capsys, *words, "--overwrite")[0] == 0


def test_bad_records_are_named_or_counted(tmp_path, capsys):
    bad = [{"input": [], "instruction": ["a"], "output": []}, {"instruction": [1], "output": ["b"]}, "text"]
    path = put(tmp_path / "set.pkl", {"a": {"train": [*bad, RECORDS[1]]}})
    words = [path, "--allow_pickle", "--output_dir", tmp_path / "out"]
    code, _, said = run(capsys, *words)
    assert code == 2 and "3 bad rows" in said and not (tmp_path / "out").exists()
    assert f"{path}:1: it has 1 instructions and 0 outputs" in said
    assert f"{path}:2: its input, instruction and output are not texts or lists of texts" in said
    code, _, said = run(capsys, *words, "--skip_bad_rows")
    assert code == 0 and "1 records; 3 bad ones skipped, the first of them" in said


def test_prompts_and_completions_are_tokens_that_a_stage_learns_from(tmp_path, capsys):
    rows = [
        {"prompt_tokens": [5, 6, 7], "completion_tokens": [8, 9]},
        {"prompt_tokens": np.array([5], np.uint16), "completion_tokens": [np.int64(10), 11]},
    ]
    put(tmp_path / "in" / "train.pkl", torch.utils.data.random_split(rows, [2, 0])[0])
    put(tmp_path / "in" / "validation.pkl", rows[:1])
    words = [tmp_path / "in", "--allow_pickle", "--output_dir", tmp_path / "out", "--prompt_weight", 0.25]
    killed = tmp_path / "out" / "train" / ".encoded.json.partial" / "rows.123.partial"
    killed.mkdir(parents=True)
    code, places, said = run(capsys, *words)
    assert (code, places) == (0, [f"encoded:{tmp_path / 'out' / split}" for split in ("train", "val")])
    assert not killed.exists()
    assert "2 records, 2 documents, 8 tokens; a vocabulary of 12 or more is needed" in said
    store = stored(places[0])
    found = sorted(
        (sample.tokens.tolist(), sample.weights.tolist(), sample.roles.tolist()) for sample in store
    )
    assert found == [
        ([5, 6, 7, 8, 9], [0.25] * 3 + [1.0] * 2, [1, 1, 1, 2, 2]),
        ([5, 10, 11], [0.25, 1.0, 1.0], [1, 2, 2]),
    ]
    assert stored(str(tmp_path / "out" / "val"))[0].tokens.tolist() == [5, 6, 7, 8, 9]


def test_ranked_answers_share_their_prompt_and_keep_their_order(tmp_path, capsys):
    rows = [{"tokens": [[5, 6, 7, 9], [5, 6, 8], [5, 6]]}, {"tokens": [[5, 6, 1], [5, 6, 1, 2]]}]
    put(tmp_path / "train.pkl", rows)
    code, (place,), said = run(capsys, tmp_path, "--allow_pickle", "--output_dir", tmp_path / "out")
    assert code == 0 and "2 records, 5 documents" in said
    groups = Comparisons(stored(place, ranked=True))
    assert groups.sizes.tolist() == [3, 2]
    first = groups.group(0)
    assert [stretch.rank for stretch in first] == [0, 1, 2]
    assert [stretch.weights.tolist() for stretch in first] == [[0, 1, 1, 1], [0, 1, 1], [0, 1]]
    assert [stretch.tokens.tolist() for stretch in groups.group(1)] == [[5, 6, 1], [5, 6, 1, 2]]
    with pytest.raises(UserError, match="holds answers to compare, and this stage learns from documents"):
        stored(place)


def test_tokens_beyond_the_vocabulary_and_damage_are_refused(tmp_path, capsys):
    put(tmp_path / "train.pkl", [{"prompt_tokens": [5], "completion_tokens": [TOKENIZER.size]}])
    _, (place,), _ = run(capsys, tmp_path, "--allow_pickle", "--output_dir", tmp_path / "out")
    with pytest.raises(UserError, match=f"has the token {TOKENIZER.size}, .* made with another tokenizer"):
        stored(place)
    put(tmp_path / "train.pkl", [{"prompt_tokens": [5], "completion_tokens": [6]}])
    words = [tmp_path, "--allow_pickle", "--output_dir", tmp_path / "out", "--overwrite"]
    assert run(capsys, *words)[0] == 0 and len(stored(place)) == 1
    tokens = tmp_path / "out" / "train" / "rows" / "tokens.bin"
    tokens.write_bytes(b"\xff" + tokens.read_bytes()[1:])
    with pytest.raises(UserError, match="train is damaged; run the same `tutelage data import` again"):
        stored(place)
    with pytest.raises(UserError, match="holds tokens and the other paths hold text"):
        encode_paths(
            [place, "x.jsonl"], num_samples=(), template=None, tokenizer=TOKENIZER, log=lambda text: None
        )
    with pytest.raises(UserError, match=r"has no encoded.json; give encoded:.*/train"):
        stored(f"encoded:{tmp_path / 'out'}")


def test_prompts_alone_become_text_by_their_tokenizer(tmp_path, capsys, tokenizer_dir):
    texts = ["How are you?", "Grüße"]
    put(
        tmp_path / "train.pkl",
        [{"prompt_tokens": [TOKENIZER.bos, *TOKENIZER.encode(text)]} for text in texts],
    )
    words = [tmp_path / "train.pkl", "--allow_pickle", "--output_dir", tmp_path / "out"]
    code, _, said = run(capsys, *words)
    assert code == 2 and "give --tokenizer, which made them" in said
    code, (place,), said = run(capsys, *words, "--tokenizer", tokenizer_dir)
    assert code == 0 and "other tokens" not in said
    assert [json.loads(line) for line in Path(place).read_text().splitlines()] == [
        {"prompt": t} for t in texts
    ]


def test_the_storytellers_rows_lose_their_sentinels_and_the_first_shard_is_held_out(tmp_path, capsys):
    prompt, story = [20, 21, 22], [1, 30, 31, 2]
    rows = np.full((3, 350), -100, "<i2")
    labels = rows.copy()
    for row, extra in enumerate(([], [40], [41, 42])):
        whole = [*prompt, *story[:-1], *extra, story[-1]]
        rows[row, : len(whole)] = whole
        labels[row, len(prompt) : len(whole)] = whole[len(prompt) :]
    for number, part in (("00", slice(0, 1)), ("01", slice(1, 3))):
        rows[part].tofile(tmp_path / f"data{number}.bin")
        labels[part].tofile(tmp_path / f"labels{number}.bin")
    code, places, _ = run(capsys, tmp_path, "--output_dir", tmp_path / "out")
    assert (code, places) == (0, [f"encoded:{tmp_path / 'out' / split}" for split in ("val", "train")])
    (val,), train = stored(places[0]), stored(places[1])
    assert val.tokens.tolist() == [*prompt, *story]
    assert val.weights.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert [len(sample.tokens) for sample in train] == [8, 9]
    labels[1, 4] = 99
    labels[1:].tofile(tmp_path / "labels01.bin")
    code, _, said = run(capsys, tmp_path, "--output_dir", tmp_path / "out", "--overwrite")
    assert code == 2 and "data01.bin:1: its labels are not its own tokens after a masked prompt" in said
    (tmp_path / "labels01.bin").write_bytes(b"123")
    assert "no whole rows of 350 int16" in run(capsys, tmp_path, "--output_dir", tmp_path / "o2")[2]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_memmaps_without_a_header_become_shards_that_blend(
    tmp_path, capsys, tokenizer_dir, monkeypatch, dtype
):
    """The reference misread uint32 and drew from one 512th of the tokens; here each is predicted."""
    monkeypatch.setattr("tutelage.data.memmap_import.SHARD_TOKENS", 200)
    eos, rng = TOKENIZER.eos, np.random.default_rng(0)
    documents = [[TOKENIZER.bos, *rng.integers(0, 200, rng.integers(1, 90)).tolist(), eos] for _ in range(40)]
    flat = np.concatenate(documents).astype(dtype)
    flat.tofile(tmp_path / "train.npy")
    meta = {"num_tokens": len(flat), "vocab_size": TOKENIZER.size, "data_type": dtype}
    (tmp_path / "train_meta.json").write_text(json.dumps(meta))
    words = [tmp_path / "train.npy", "--tokenizer", tokenizer_dir, "--output_dir", tmp_path / "out"]
    code, (place,), said = run(capsys, *words)
    assert code == 0 and f"{len(flat):,} tokens of 40 documents" in said
    shards = TokenShards(Path(place.removeprefix("shards:")))
    shards.check(TOKENIZER.fingerprint)
    shards.check_contents()
    found = [piece.tokens.tolist() for piece in shards.pieces(0, shards.positions)]
    assert sum(map(len, found)) >= len(flat) and sum(len(piece) - 1 for piece in found) == shards.positions
    assert np.concatenate([piece[1:] for piece in found]).tolist() == [
        token for document in documents for token in document[1:]
    ]
    order = Streamed(TokenStreams([shards, shards], [3, 1]), length=16, seed=0, shuffle=True)
    assert order.row(0, 0)[0].tokens.max() < TOKENIZER.size
    (tmp_path / "train_meta.json").write_text(json.dumps(meta | {"num_tokens": 7}))
    assert "not those of the 7 tokens" in run(capsys, *words, "--overwrite")[2]
    flat[3] = TOKENIZER.size
    flat.tofile(tmp_path / "train.npy")
    (tmp_path / "train_meta.json").write_text(json.dumps(meta))
    assert "made with another tokenizer" in run(capsys, *words, "--overwrite")[2]
