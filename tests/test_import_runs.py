"""Stages that train on imported tokens do what they do on the text that the tokens were made of."""

import json
import pickle

import numpy as np
import pytest
from tiny_pairs import prefer, ranked, write_records
from tiny_runs import conversation, material, metrics, refused, run

from tutelage.data.dataset import encode_paths
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def tokenizer(made):
    return Tokenizer.load(made.model)


def encoded(made, tokenizer, path, *, ranked=False):
    return encode_paths(
        [path],
        num_samples=(),
        template=Template.load("chatml"),
        tokenizer=tokenizer,
        cache_dir=made.place / "cache",
        log=lambda text: None,
        ranked=ranked,
    )[0]


def learned_part(sample):
    """The tokens up to the last that is learned: a template's line break at the very end is not."""
    return sample.tokens[: int(np.flatnonzero(sample.weights)[-1]) + 1].tolist()


def imported(place, records, *words):
    place.mkdir()
    (place / "train.pkl").write_bytes(pickle.dumps(records))
    ended = run("data", "import", place, "--allow_pickle", "--output_dir", place / "out", *words)
    assert ended.code == 0, ended.err
    return ended.out.strip()


def done(words):
    ended = run(*words)
    assert ended.code == 0, ended.err
    return ended


def test_sft_on_tokens_is_sft_on_their_text(made, tokenizer, tmp_path):
    rows = [{"messages": conversation(number, "chats")} for number in range(20) if number % 9]
    text = write_records(made.place, "single", rows)
    records = []
    for sample in encoded(made, tokenizer, text):
        start = int(np.argmax(sample.weights > 0))
        whole = learned_part(sample)
        records.append({"prompt_tokens": whole[:start], "completion_tokens": whole[start:]})
    settings = {"train_steps": 3}
    done(made.sft(tmp_path / "text", train_data_paths=text, **settings))
    tokens = imported(tmp_path / "in", records)
    done(made.sft(tmp_path / "tokens", train_data_paths=tokens, **settings))
    ours, theirs = metrics(tmp_path / "tokens"), metrics(tmp_path / "text")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)


@pytest.mark.parametrize("stage", [pytest.param("reward", marks=pytest.mark.slow), "dpo"])
def test_ranked_tokens_train_as_their_text_does(made, tokenizer, tmp_path, stage):
    text = write_records(made.place, "ranked", [{**ranked(number), "scores": None} for number in range(12)])
    store, groups = encoded(made, tokenizer, text, ranked=True), {}
    lines = store.shards[0].lines
    for index in range(len(store)):
        whole = store[index].tokens.tolist()  # whose last token a reward model judges, learned or not
        tokens = whole if stage == "reward" else learned_part(store[index])
        groups.setdefault(int(lines[index]), []).append(tokens)
    tokens = imported(tmp_path / "in", [{"tokens": answers} for answers in groups.values()])
    for name, path in (("text", text), ("tokens", tokens)):
        done(prefer(made, tmp_path / name, stage, train_data_paths=path, train_steps=3))
    ours, theirs = metrics(tmp_path / "tokens"), metrics(tmp_path / "text")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-5)


def test_imported_memmaps_are_mixed_in_pretraining(made, tokenizer, tmp_path):
    places = []
    for name, count in (("a", 400), ("b", 90)):
        document = [tokenizer.bos, *tokenizer.encode(f"{name} said so"), tokenizer.eos]
        np.array(document * count, "<u2").tofile(tmp_path / f"{name}.npy")
        words = ["--tokenizer", made.model, "--output_dir", tmp_path / name]
        places.append(done(["data", "import", tmp_path / f"{name}.npy", *words]).out.strip())
    words = made.pretrain(tmp_path / "out", "--train_data_weights", 1, 3, train_steps=3)
    at = words.index("--train_data_paths")
    words[at + 1 : at + 2] = places
    ended = done(words)
    assert "75.0% of the rows" in ended.err and len(metrics(tmp_path / "out")) == 3


def test_what_does_not_fit_is_refused_before_anything_is_trained(made, tmp_path):
    tokens = imported(tmp_path / "in", [{"prompt_tokens": [1, 2], "completion_tokens": [60000]}] * 4)
    words = made.sft(tmp_path / "out", train_data_paths=tokens)
    assert "has the token 60,000, and the model's vocabulary ends at" in refused(run(*words))
    assert "chooses rows of files" in refused(run(*words, "--train_num_samples", 2))
    record = {"prompt_tokens": [1, 2], "completion_tokens": [3]}
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "train.pkl").write_bytes(
        pickle.dumps([record, {**record, "completion_tokens": [-1]}])
    )
    ended = run(
        "data", "import", tmp_path / "odd", "--allow_pickle", "--output_dir", tmp_path / "odd" / "out"
    )
    assert "train.pkl:2: -1 is no token id" in refused(ended)
    assert not list((tmp_path / "odd").rglob("encoded.json"))


def test_the_record_of_an_import_says_where_it_came_from(made, tmp_path):
    tokens = imported(tmp_path / "in", [{"prompt_tokens": [1, 2], "completion_tokens": [3]}])
    facts = json.loads((tmp_path / "in" / "out" / "train" / "encoded.json").read_text())
    assert tokens == f"encoded:{tmp_path / 'in' / 'out' / 'train'}"
    assert facts.pop("fingerprint") and facts == {
        "format": 1,
        "kind": "jsonl",
        "source": str(tmp_path / "in" / "train.pkl"),
        "documents": 1,
        "tokens": 3,
        "least_vocabulary": 4,
    }


def test_prompts_with_a_weight_of_their_own_are_learned_from(made, tmp_path):
    """As InstructLLaMA trained; conversations in which every token is learned are refused as a mistake."""
    records = [{"prompt_tokens": [1, 2, 3], "completion_tokens": [4, 5]}] * 8
    tokens = imported(tmp_path / "in", records, "--prompt_weight", 0.01)
    done(made.sft(tmp_path / "out", train_data_paths=tokens, train_steps=2))
    tokens = imported(tmp_path / "bare", records)
    done(made.sft(tmp_path / "other", train_data_paths=tokens, train_steps=2))
    ours, theirs = (metrics(tmp_path / name)[0]["loss"] for name in ("out", "other"))
    assert ours != theirs


def test_universal_llm_trainers_conversations_are_trained_on(made, tmp_path):
    record = {"input": ["Be kind"], "instruction": ["hi", "more"], "output": ["yes", "no"]}
    path = tmp_path / "alpaca.pkl"
    path.write_bytes(pickle.dumps({"alpaca": {"train": [record] * 8, "val": [record]}}))
    ended = done(["data", "import", path, "--allow_pickle", "--output_dir", tmp_path / "out"])
    train, val = ended.out.split()
    words = made.sft(tmp_path / "run", "--val_data_paths", val, train_data_paths=train, train_steps=2)
    words[words.index("--max_seq_len") + 1] = 128
    done(words)


def test_imported_tokens_are_shown_and_what_is_for_text_alone_refuses_them(made, tmp_path):
    tokens = imported(tmp_path / "in", [{"prompt_tokens": [1, 2, 3], "completion_tokens": [4, 5]}] * 8)
    words = made.sft(tmp_path / "out", "--dry_run", train_data_paths=tokens)
    for flag, value in (("splits", "train"), ("shapes", "alpaca")):
        told = refused(run(*words, f"--train_data_{flag}", value))
        assert f"--train_data_{flag} is for records, and {tokens[8:]} holds tokens" in told
    assert "--data_fields is for records" in refused(run(*words, "--data_fields", "a=b"))
    shown = done(["data", "show", "--train_data_paths", tokens, "--ckpt_paths", made.model])
    assert "8 rows, 40 tokens" in shown.out and "0-1" in shown.out
    ranked = imported(tmp_path / "ranked", [{"tokens": [[1, 2, 3], [1, 2, 4]]}] * 2)
    done(["data", "show", "--train_data_paths", ranked, "--ckpt_paths", made.model])
    for path in (tokens, tokens[8:], "shards:anywhere"):
        told = refused(run("data", "stats", "--train_data_paths", path))
        assert told.startswith(f"{path} holds tokens, and text or records are read here")
    told = refused(run("data", "build", "dolly", "--input", tokens, "--output_dir", tmp_path / "out"))
    assert "holds tokens" in told
