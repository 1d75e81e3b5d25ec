"""`tutelage data stats`: every number worked by hand, on data small enough to count."""

import json
import re
from pathlib import Path

import pytest
from tiny_data import TEMPLATE, TOKENIZER, chat, chats

from tutelage import cli
from tutelage.data.dataset import encode_paths
from tutelage.data.stats import spread
from tutelage.report.stats_table import shortened


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def run(capsys, *words: object) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["data", "stats", *map(str, words)])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def numbers(capsys, tmp_path: Path, *words: object) -> tuple[dict, str]:
    """stats.json, and what was printed."""
    out = tmp_path / "out"
    code, printed, err = run(capsys, *words, "--output_dir", out, "--cache_dir", tmp_path / "cache")
    assert code == 0, err
    assert (out / "lengths.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((out / "stats.json").read_text()), printed


SYSTEM = {"role": "system", "content": "Be kind please"}
TRAIN = [
    chat("one two", "three"),  # 3 words, 12 characters
    [SYSTEM, *chat("one", "two three four"), *chat("five", "six")],  # 9 words
    chat(" one two ", "three"),  # the first again, but for spaces around
    chat("one two", "four five"),  # its prompt again
]


def test_rows_words_and_roles_are_counted(tmp_path, capsys):
    found, printed = numbers(capsys, tmp_path, "--train_data_paths", chats(tmp_path / "a.jsonl", TRAIN))
    train = found["train"]
    assert (train["rows"], train["bad_rows"], train["messages"]) == (4, 0, 11)
    assert train["words"] == {
        "total": 19, "mean": 4.75, "median": 3, "p90": 4, "p95": 4, "p99": 4, "longest": 9
    }  # fmt: skip
    # 7 + 5, 14 + 3 + 14 + 4 + 3, 9 + 5 and 7 + 9 characters
    assert (train["characters"]["total"], train["characters"]["longest"]) == (12 + 38 + 14 + 16, 38)
    assert train["roles"] == {
        "system": {"messages": 1, "words": 3},
        "user": {"messages": 5, "words": 8},
        "assistant": {"messages": 5, "words": 8},
    }
    assert re.search(r"train │ +4 │ +0 │ +19 │ +80 │ +2\.8 │ +1 \(25\.0 %\) │ +2 \(50\.0 %\)", printed)
    assert re.search(r"train │ user +│ +5 │ +8 │ +1\.6 │", printed)
    assert "words in a document, and how many documents have so many" in printed
    assert f"{tmp_path / 'a.jsonl'}:1:\n  user       one two\n  assistant  three\n" in printed


def test_percentiles_are_lengths_that_occur():
    assert spread(range(1, 101)) == {
        "total": 5050, "mean": 50.5, "median": 50, "p90": 90, "p95": 95, "p99": 99, "longest": 100
    }  # fmt: skip
    assert spread([]) == {}


def test_rows_and_prompts_that_come_twice_are_named(tmp_path, capsys):
    path = chats(tmp_path / "a.jsonl", TRAIN)
    more = chats(tmp_path / "b.jsonl", [chat("one two", "three"), chat("new", "three")])
    found, printed = numbers(capsys, tmp_path, "--train_data_paths", path, more)
    assert found["train"]["same_rows"] == {
        "count": 2,
        "first": [[f"{path}:3", f"{path}:1"], [f"{more}:1", f"{path}:1"]],
    }
    assert found["train"]["same_prompts"]["count"] == 3
    assert f"2 rows of train were there before:\n  {path}:3 is {path}:1\n  {more}:1 is {path}:1\n" in printed
    many = chats(tmp_path / "c.jsonl", [chat()] * 20)
    found, printed = numbers(capsys, tmp_path, "--train_data_paths", many)
    assert found["train"]["same_rows"]["count"] == 19 and len(found["train"]["same_rows"]["first"]) == 5
    assert "  and 14 more" in printed


def test_rows_are_the_same_only_if_the_same_people_say_it(tmp_path, capsys):
    system, user, assistant = ({"role": role} for role in ("system", "user", "assistant"))
    rows = [
        [{**user, "content": "a"}, {**assistant, "content": "b"}, {**user, "content": "c"}],
        [{**system, "content": "a"}, {**user, "content": "b"}, {**assistant, "content": "c"}],
    ]
    found, _ = numbers(capsys, tmp_path, "--train_data_paths", chats(tmp_path / "a.jsonl", rows))
    assert found["train"]["same_rows"]["count"] == 0


def test_a_prompt_is_all_before_the_last_answer(tmp_path, capsys):
    rows = [[*chat("a", "b"), *chat(question, "c")] for question in ("d", "e", "d")]
    rows[2][-1] = {"role": "assistant", "content": "f"}
    found, _ = numbers(capsys, tmp_path, "--train_data_paths", path := chats(tmp_path / "a.jsonl", rows))
    assert found["train"]["same_prompts"] == {"count": 1, "first": [[f"{path}:3", f"{path}:1"]]}
    assert found["train"]["same_rows"]["count"] == 0


def test_held_out_rows_that_are_trained_on_are_found(tmp_path, capsys):
    train = chats(tmp_path / "a.jsonl", TRAIN)
    # Trained on; only its prompt is; neither: the same words by others.
    val = [chat("one two", "three"), chat("one two", "nine"), chat("three", "one two")]
    held_out = chats(tmp_path / "b.jsonl", val)
    words = ["--train_data_paths", train, "--val_data_paths"]
    found, printed = numbers(capsys, tmp_path, *words, held_out)
    assert found["leaked"] == {
        "rows": {"count": 1, "first": [[f"{held_out}:1", f"{train}:1"]]},
        "prompts": {"count": 1, "first": [[f"{held_out}:1", f"{train}:1"]]},
    }
    assert f"1 different rows of val are in train:\n  {held_out}:1 is {train}:1" in printed
    apart = chats(tmp_path / "c.jsonl", val[2:])
    found, printed = numbers(capsys, tmp_path, *words, apart)
    assert found["leaked"]["rows"]["count"] == 0 and "no row and no prompt of val is in train" in printed


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(directory)
    return directory


def test_tokens_are_those_that_training_sees(tmp_path, capsys, tokenizer):
    path = chats(tmp_path / "a.jsonl", TRAIN)
    words = ["--train_data_paths", path, "--tokenizer", tokenizer, "--template_config", "chatml"]
    found, printed = numbers(capsys, tmp_path, *words)
    store, _ = encode_paths(
        [path],
        num_samples=[],
        template=TEMPLATE,
        tokenizer=TOKENIZER,
        cache_dir=tmp_path / "own",
        log=lambda _: None,
    )
    samples = [store[index] for index in range(4)]
    lengths = [len(sample) for sample in samples]
    assert (found["train"]["tokens"]["total"], found["train"]["tokens"]["longest"]) == (
        sum(lengths),
        max(lengths),
    )
    learned = sum(int((sample.weights[1:] > 0).sum()) for sample in samples)
    assert found["train"]["learned_share"] == learned / (sum(lengths) - 4)
    by_role = [sum(int((sample.roles == role).sum()) for sample in samples) for role in range(5)]
    assert list(found["train"]["role_tokens"].values()) == by_role
    assert f"train: {learned} of {sum(lengths) - 4} predicted tokens are learned" in printed
    assert "tokens in a document" in printed
    longest, others = max(lengths), sorted(lengths)[:-1]
    assert longest > max(others) + 1
    found, printed = numbers(capsys, tmp_path, *words, "--max_seq_len", longest - 2)
    assert found["train"]["cut"] == {
        "max_seq_len": longest - 2,
        "cuts": [{"reason": f"truncated to {longest - 2} positions", "rows": 1, "tokens": 1}],
    }
    assert f"truncated to {longest - 2} positions: 1 row (25.0 %), 1 tokens" in printed
    assert f"← {longest - 1} fit" in printed
    found, _ = numbers(capsys, tmp_path, *words, "--max_seq_len", longest - 2, "--too_long", "drop")
    assert found["train"]["cut"]["cuts"][0]["tokens"] == longest
    found, _ = numbers(capsys, tmp_path, *words, "--max_seq_len", longest - 1)
    assert found["train"]["cut"]["cuts"] == []


def test_texts_and_comparisons_are_counted_too(tmp_path, capsys, tokenizer):
    text = tmp_path / "a.txt"
    text.write_text("one two\nthree\none two\n")
    found, printed = numbers(capsys, tmp_path, "--train_data_paths", text, "--tokenizer", tokenizer)
    train = found["train"]
    assert (train["rows"], train["messages"], train["same_rows"]["count"]) == (3, 0, 1)
    assert train["same_prompts"]["count"] == 0 and train["learned_share"] == 1.0
    assert train["roles"] == {"text": {"messages": 3, "words": 5}}
    assert re.search(rf"text +│ +3 │ +5 │ +1\.7 │ +{train['tokens']['total']} ", printed)
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "one", "chosen": good, "rejected": "bad one"} for good in ("good", "better")]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = numbers(capsys, tmp_path, "--train_data_paths", pairs)
    train = found["train"]
    assert (train["rows"], train["messages"], train["words"]["total"]) == (2, 6, 8)
    assert (train["same_rows"]["count"], train["same_prompts"]["count"]) == (0, 1)


def test_bad_rows_are_refused_or_counted_and_samples_taken(tmp_path, capsys):
    path = Path(chats(tmp_path / "a.jsonl", TRAIN))
    path.write_text(path.read_text() + '{"messages": []}\n')
    code, _, err = run(capsys, "--train_data_paths", path)
    assert code == 2 and "a.jsonl:5: messages is empty" in err
    found, _ = numbers(capsys, tmp_path, "--train_data_paths", path, "--skip_bad_rows")
    assert (found["train"]["rows"], found["train"]["bad_rows"]) == (4, 1)
    words = ["--train_data_paths", path, "--skip_bad_rows", "--train_num_samples"]
    assert numbers(capsys, tmp_path, *words, 2)[0]["train"]["rows"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_seq_len", 5], "max_seq_len counts tokens, which takes a tokenizer"),
        (["--tokenizer", "a", "--ckpt_paths", "b"], "tokens are counted for one model"),
        (["--num_samples", -1], "num_samples is -1, must be at least 0"),
        (["--val_data_paths", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--train_num_samples", 1, 1], "--train_num_samples has 2 values for 1 paths"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, words, message):
    code, _, err = run(capsys, "--train_data_paths", chats(tmp_path / "a.jsonl", TRAIN), *words)
    assert (code, message in err) == (2, True), err


def test_a_long_example_is_shortened_to_a_line():
    assert shortened("a\n b", 10) == "a b"
    assert shortened("a" * 12, 10) == "aaaaaaaaaa [… 2 more characters]"
