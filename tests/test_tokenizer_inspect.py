"""What `tokenizer inspect` counts, by hand and against the libraries whose tokenizers they are."""

import json
from pathlib import Path
from random import Random

import pytest
from tiny_sentencepiece import write_model
from tiny_tokenizer_files import write_pair, write_tekken
from transformers import AutoTokenizer

from tutelage.cli import configure, main
from tutelage.data.stories.plots import document
from tutelage.errors import UserError
from tutelage.text.measure import measure
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.train import train_tokenizer
from tutelage.text.train_char import train_char
from tutelage.text.train_sentencepiece import train_sentencepiece


def stories(seed: int, count: int = 200) -> list[str]:
    rng = Random(seed)
    return [document(rng) for _ in range(count)]


def placed(*texts: str) -> list[tuple[str, str]]:
    return [(f"a.txt:{number}", text) for number, text in enumerate(texts, start=1)]


def test_counts_are_those_of_a_count_by_hand():
    """`<unk>` stands for é and 東; a, b, line end and space have a token each, of which b is not used."""
    found = measure(train_char(["ab \n"], 100), placed("a a\n", "", "é東a"))
    assert (found.vocabulary, found.control, found.texts) == (7, 3, 3)
    assert (found.bytes, found.characters, found.tokens) == (4 + 2 + 3 + 1, 7, 7)
    assert (found.used, found.used_share) == (3, 3 / 4)
    assert (found.unknown, found.byte_tokens) == (2, 0)
    assert (found.per_token(found.bytes), found.of_tokens(found.unknown)) == (10 / 7, 2 / 7)
    assert found.longest == ["\n", " ", "a"]
    assert found.scripts == {
        "Latin": (4, 3), "spaces": (1, 1), "control characters": (1, 1), "CJK": (1, 0)
    }  # fmt: skip
    assert found.changed == 1
    assert found.changed_named == ["a.txt:3: 'é東a' came back as '<unk><unk>a'"]


def test_what_is_spelled_in_bytes_is_counted():
    texts = stories(0)
    for tokenizer in (train_sentencepiece(texts, 400), train_tokenizer(texts, 400)):
        found = measure(tokenizer, placed("Lily é 東京."))
        assert found.byte_tokens == 2 + 3 + 3
        assert found.scripts["CJK"] == (2, 0) and found.scripts["Latin"] == (5, 4)
        assert (found.changed, found.unknown) == (0, 0)


def test_a_line_end_is_a_byte_to_sentencepiece():
    found = measure(train_sentencepiece(stories(0), 400), placed("Lily\n\n"))
    assert found.byte_tokens == 2 and found.scripts["control characters"] == (2, 0)


def test_a_tokenizer_that_drops_spaces_is_found_out(tmp_path):
    """As llama2.c trains it: spaces at the ends and in a row are gone, and a space alone has no token."""
    write_model(tmp_path / "tokenizer.model", remove_extra_whitespaces=True)
    found = measure(Tokenizer.load(tmp_path), placed("Lily  ran.", " ", "Lily ran."))
    assert (found.texts, found.changed) == (3, 2)
    assert found.changed_named[0] == "a.txt:1: 'Lily  ran.' came back as 'Lily ran.'"
    assert found.scripts["spaces"] == (4, 0)


def test_tokens_are_those_transformers_counts_however_the_texts_are_cut_into_batches(tmp_path, monkeypatch):
    tokenizer, held_out = train_tokenizer(stories(0), 600), stories(1)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ids = [token for tokens in theirs(held_out, add_special_tokens=False)["input_ids"] for token in tokens]
    found = measure(tokenizer, placed(*held_out))
    assert found.tokens == len(ids) and found.used == len(set(ids))
    longest = sorted({theirs.decode([token]) for token in ids}, key=lambda text: (-len(text), text))
    assert found.longest == longest[:8]
    monkeypatch.setattr("tutelage.text.measure._BATCH", 1000)
    assert measure(tokenizer, iter(placed(*held_out))) == found


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """Two tokenizers, `small` and `large`, and held-out text."""
    here = tmp_path_factory.mktemp("inspect")
    train_tokenizer(stories(0), 300).save(here / "small")
    train_sentencepiece(stories(0), 900).save(here / "large")
    (here / "held_out.txt").write_text("".join(f"{text}\n" for text in stories(1)))
    return here


def test_two_tokenizers_stand_side_by_side_with_their_ratio(directory, capsys):
    main(["tokenizer", "inspect", str(directory / "small"), "--other", str(directory / "large")]
         + ["--data_paths", str(directory / "held_out.txt")])  # fmt: skip
    rows = {line.split("│")[1].strip(): line.split("│")[2:5] for line in said(capsys) if "│" in line}
    small, large, ratio = (float(cell.replace(",", "")) for cell in rows["tokens"])
    assert ratio == pytest.approx(small / large, abs=1e-3) and ratio > 1
    assert [cell.strip() for cell in rows["vocabulary"]] == ["300", "900", "0.333"]
    assert [cell.strip() for cell in rows["texts that come back"]] == ["100.00 %", "100.00 %", ""]


def test_json_has_all_of_it_and_standard_output_nothing_else(directory, capsys):
    main(["tokenizer", "inspect", "--tokenizer", str(directory / "small"), "--json"]
         + ["--data_paths", str(directory / "held_out.txt"), "--num_samples", "50"])  # fmt: skip
    (found,) = json.loads("\n".join(said(capsys)))["tokenizers"]
    assert (found["vocabulary"], found["texts"], found["changed"]) == (300, 50, 0)
    assert found["bytes_per_token"] == found["bytes"] / found["tokens"] > 1.4
    assert found["scripts"]["Latin"]["whole"] == found["scripts"]["Latin"]["characters"]


def test_texts_that_do_not_come_back_are_named_by_file_and_line(directory, tmp_path, capsys):
    train_char(["abc [bold]"], 50).save(tmp_path / "t[x]")
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n\n{"text": "a\\n[bold]b"}\n')
    main(["tokenizer", "inspect", str(tmp_path / "t[x]"), "--data_paths", str(tmp_path / "a.jsonl")])
    lines = said(capsys)
    assert any("t[x]" in line for line in lines[:4])
    assert f"  {tmp_path / 'a.jsonl'}:3: 'a\\n[bold]b' came back as 'a<unk>[bold]b'" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TOK"], "--data_paths: missing, accepted: a list, each text"),
        (["TOK", "--data_paths"], "tokenizer inspect: data_paths names no path"),
        (["TOK", "--data_paths", "a", "--num_samples", "1", "2"], "num_samples has 2 numbers for 1 paths"),
        (["--data_paths", "a"], "--tokenizer or a word without a flag: missing"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(UserError) as refused:
        configure(["tokenizer", "inspect", *words])
    assert message in str(refused.value)


def test_samples_and_splits_are_refused_by_the_names_of_their_flags(directory):
    from tutelage.recipes.tokenizer_inspect import run

    held_out = str(directory / "held_out.txt")
    for words, start in [
        (["--num_samples", "500"], "--num_samples asks for 500 rows of"),
        (["--data_splits", "train"], "--data_splits: "),
    ]:
        words = ["tokenizer", "inspect", str(directory / "small"), "--data_paths", held_out, *words]
        with pytest.raises(UserError) as refused:
            run(configure(words)[1])
        assert str(refused.value).startswith(start)


def said(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("kind", ["pair", "tekken", "unigram", "unigram without bytes", "bpe"])
def test_every_kind_of_file_is_inspected(kind, tmp_path, capsys):
    if kind == "pair":
        write_pair(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    elif kind == "tekken":
        write_tekken(tmp_path, b"he", b"ll")
    else:
        options = {"model_type": kind.split()[0], "byte_fallback": "without" not in kind}
        write_model(tmp_path / "tokenizer.model", vocab_size=400, **options)
    (tmp_path / "text.txt").write_text("Lily said hello\né 東\n")
    main(["tokenizer", "inspect", str(tmp_path), "--data_paths", f"text:{tmp_path}/text.txt", "--json"])
    found = json.loads(capsys.readouterr().out)["tokenizers"][0]
    assert found["bytes"] == 15 + 6 and found["tokens"] > 5
    assert (found["unknown"], found["changed"]) == ((2, 1) if "without" in kind else (0, 0))
