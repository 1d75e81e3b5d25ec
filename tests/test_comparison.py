"""Records that compare answers: what they mean, and what is wrong with those that are refused."""

import json
import math

import numpy as np
import pytest
from tiny_pairs import pair, ranked, write_records
from tiny_runs import material, refused, run
from tiny_tokenizer import tiny_tokenizer

from tutelage.data.comparison import UNKNOWN, comparison_fault, read_comparison
from tutelage.data.dataset import prepare
from tutelage.data.groups import Comparisons
from tutelage.errors import UserError
from tutelage.text.template import Template


def _user(text):
    return {"role": "user", "content": text}


def _assistant(text):
    return {"role": "assistant", "content": text}


SHAPES = [
    {"prompt": "hi", "chosen": "good", "rejected": "bad"},
    {"prompt": [_user("hi")], "chosen": [_assistant("good")], "rejected": [_assistant("bad")]},
    {"chosen": [_user("hi"), _assistant("good")], "rejected": [_user("hi"), _assistant("bad")]},
    {
        "prompt": "hi",
        "chosen": [_user("hi"), _assistant("good")],
        "rejected": [_user("hi"), _assistant("bad")],
    },
    {"prompt": "hi", "answers": ["good", "bad"]},
    {"prompt": "hi", "chosen": "good", "rejected": "bad", "label": "helpful"},
]


@pytest.mark.parametrize("record", SHAPES, ids=lambda record: "+".join(record))
def test_every_shape_says_the_same(record):
    assert comparison_fault(record) is None
    found = read_comparison(record)
    assert found.prompt == [_user("hi")]
    assert found.answers == [[_assistant("good")], [_assistant("bad")]]
    assert found.ranks == [0, 1]
    assert all(math.isnan(score) for score in found.scores)


def test_a_common_beginning_of_two_conversations_is_the_prompt_with_its_answers():
    turns = [{"role": "system", "content": "s"}, _user("a"), _assistant("b"), _user("c")]
    found = read_comparison({"chosen": [*turns, _assistant("d")], "rejected": [*turns, _assistant("e")]})
    assert found.prompt == turns and found.answers == [[_assistant("d")], [_assistant("e")]]


def test_margins_and_scores_are_kept_and_equal_scores_are_ties():
    pair = {"prompt": "hi", "chosen": "good", "rejected": "bad", "margin": 0.5}
    assert read_comparison(pair).scores == [0.5, 0.0]
    found = read_comparison({"prompt": "hi", "answers": ["a", "b", "c", "d"], "scores": [5, 3.5, 3.5, -1]})
    assert found.ranks == [0, 1, 1, 2] and found.scores == [5, 3.5, 3.5, -1]


def test_an_answer_alone_is_liked_or_not():
    found = [read_comparison({"prompt": "q", "completion": "a", "label": label}) for label in (True, False)]
    assert [each.ranks for each in found] == [[0], [1]]


FAULTS = [
    ([], "not an object with chosen and rejected, prompt and answers, or prompt, completion and label"),
    (
        {"messages": []},
        "no chosen and rejected, prompt and answers, or prompt, completion and label; "
        "the object has 'messages'",
    ),
    ({"prompt": "q", "chosen": "a"}, "no rejected; the object has 'prompt', 'chosen'"),
    (
        {"prompt": "q", "chosen": "a", "rejected": 3},
        "its rejected is a number, not a text or a list of messages",
    ),
    (
        {"chosen": "a", "rejected": "b"},
        "chosen and rejected are texts, and there is no prompt that they answer",
    ),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, "two answers are the same, so neither is better"),
    ({"prompt": "q", "answers": ["a", "b", "b"]}, "two answers are the same, so neither is better"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "x"}, "its margin has a string, not a number"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": math.inf}, "its margin has inf"),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": -(10**400)},
        "its margin has a number beyond 1e+30",
    ),
    (
        {"prompt": "q", "answers": ["a", "b"], "scores": [1e300, -1e300]},
        "its scores has a number beyond 1e+30",
    ),
    ({"prompt": "q", "answers": ["a"]}, "it has 1 answers; 2 to 255 can be compared"),
    ({"prompt": "q", "answers": "ab"}, "its answers are not a list of texts"),
    (
        {"prompt": "q", "answers": ["a", "b"], "scores": [1]},
        "its scores are not a list of one number for each answer",
    ),
    (
        {"prompt": "q", "answers": ["a", "b"], "scores": [1, 2]},
        "its scores do not fall, and answers go from best to worst",
    ),
    (
        {"prompt": "q", "answers": ["a", "b"], "scores": [1, 1]},
        "all its answers have one score, so none is better",
    ),
    ({"prompt": "q", "answers": ["a", "b"], "scores": [1, None]}, "its scores has null, not a number"),
    ({"prompt": "q", "completion": "a", "label": 1}, "its label is a number, not true or false"),
    ({"prompt": [_assistant("x")], "chosen": "a", "rejected": "b"}, "its prompt does not end with the user"),
    (
        {"chosen": [_user("p"), _assistant("a")], "rejected": [_user("q"), _assistant("b")]},
        "chosen and rejected do not answer the same prompt: they part before the assistant speaks",
    ),
    (
        {"chosen": [_user("p"), _assistant("a"), _user("x")], "rejected": [_user("p"), _assistant("b")]},
        "an answer does not end with the assistant",
    ),
    ({"prompt": "q", "chosen": [{"role": "assistant"}], "rejected": "b"}, "message 2 has no content"),
    (
        {"prompt": "half \ud83d", "chosen": "a", "rejected": "b"},
        "message 1 has a content with half a surrogate pair, which is no character",
    ),
]


@pytest.mark.parametrize(("record", "message"), FAULTS, ids=range(len(FAULTS)))
def test_a_bad_record_is_named(record, message):
    assert comparison_fault(record) == message


def _store(tmp_path, records, **options):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    said = []
    settings = {"max_seq_len": 200, "max_cut_percent": 100.0} | options
    store = prepare(
        [f"jsonl:{path}"],
        num_samples=[],
        template=Template.load("chatml"),
        tokenizer=tiny_tokenizer(),
        cache_dir=tmp_path / "cache",
        log=said.append,
        ranked=True,
        **settings,
    )
    return store, said


def test_only_what_comes_after_the_prompt_is_learned(tmp_path):
    """Earlier answers are part of the prompt: they are in both and tell nothing about which is better."""
    turns = [_user("a"), _assistant("earlier answer"), _user("c")]
    record = {"chosen": [*turns, _assistant("yes")], "rejected": [*turns, _assistant("no")]}
    store, _ = _store(tmp_path, [record])
    learned = [
        tiny_tokenizer().decode(np.asarray(s.tokens)[np.asarray(s.weights) > 0].tolist(), skip_control=False)
        for s in (store[0], store[1])
    ]
    assert learned == ["yes<|im_end|>", "no<|im_end|>"]


def test_a_pair_that_loses_an_answer_goes_whole(tmp_path):
    """Rows without a label made torchllms' losses NaN (defect 1.13.10)."""
    records = [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "w " * 80, "chosen": "long prompt", "rejected": "nothing of it fits"},
        {"prompt": "q", "answers": ["one", "two " * 60, "three"]},
        {"prompt": "q", "chosen": "short", "rejected": "long " * 60},
    ]
    store, said = _store(tmp_path, records, max_seq_len=60, too_long="drop")
    assert [store.id(i) for i in range(len(store))] == ["0-1", "0-1", "0-3", "0-3"]
    assert any("dropped, no better or worse answer is left: 1 answer " in line for line in said)
    truncated, _ = _store(tmp_path, records, max_seq_len=60)
    assert [truncated.id(i) for i in range(len(truncated))] == [
        "0-1",
        "0-1",
        "0-3",
        "0-3",
        "0-3",
        "0-4",
        "0-4",
    ]


def test_texts_and_chats_are_no_comparisons(tmp_path):
    (tmp_path / "a.txt").write_text("hello\n")
    with pytest.raises(
        UserError, match=r"text:.*a.txt has no answers to compare; give jsonl: files that have"
    ):
        prepare(
            [f"text:{tmp_path / 'a.txt'}"],
            num_samples=[],
            template=Template.load("chatml"),
            tokenizer=tiny_tokenizer(),
            max_seq_len=10,
            log=print,
            ranked=True,
        )
    with pytest.raises(UserError, match=r"pairs.jsonl:1: no chosen and rejected.*the object has 'messages'"):
        _store(tmp_path, [{"messages": [_user("a"), _assistant("b")]}])


def test_groups_are_the_answers_of_a_line_and_count_their_positions(tmp_path):
    records = [
        {"prompt": "question", "chosen": "good", "rejected": "bad 東京"},
        {"prompt": "question", "answers": ["a", "b", "c"], "scores": [3, 2, 2]},
        {"prompt": "question", "completion": "a", "label": False},
    ]
    store, _ = _store(tmp_path, records)
    apart, shared, scored = (
        Comparisons(store),
        Comparisons(store, share_prompt=True),
        Comparisons(store, scored=True),
    )
    assert apart.sizes.tolist() == [2, 3, 1] and [apart.id(i) for i in range(3)] == ["0-1", "0-2", "0-3"]
    for groups in (apart, shared, scored):
        laid = [sum(stretch.positions for stretch in groups.group(i)) for i in range(3)]
        assert groups.positions.tolist() == laid
    assert (shared.positions < apart.positions).tolist() == [True, True, False]
    assert (scored.positions - apart.positions).tolist() == [2, 3, 1]
    assert [s.rank for s in apart.group(1)] == [0, 1, 1] and [s.score for s in apart.group(1)] == [3, 2, 2]
    assert [s.rank for s in apart.group(2)] == [1] and math.isnan(apart.group(2)[0].score)
    assert math.isnan(UNKNOWN)


def test_data_show_shows_answers_record_by_record(tmp_path):
    made = material(tmp_path)
    rows = write_records(tmp_path, "rows", [pair(0), ranked(1), pair(3)])
    words = ["data", "show", "--train_data_paths", rows, "--ckpt_paths", made.model]
    ended = run(*words, "--cache_dir", tmp_path / "cache", "--num_samples", 9)
    assert ended.code == 0, ended.err
    assert [ended.out.count(f"┌─ 0-{line}: ") for line in (1, 2, 3)] == [2, 3, 2]
    assert "7 answers, " in ended.out
    one = run(*words, "--cache_dir", tmp_path / "cache", "--ids", "0-2")
    assert one.out.count("┌─ 0-2: ") == 3 and "┌─ 0-1: " not in one.out
    split = run(*words, "--too_long", "split")
    assert refused(split) == "too_long is split, and answers that are compared are truncated or dropped"


def test_comparisons_given_to_sft_are_sent_elsewhere(tmp_path):
    made = material(tmp_path)
    rows = write_records(tmp_path, "rows", [pair(0)])
    message = refused(run(*made.sft(tmp_path / "out", train_data_paths=rows)))
    assert (
        "no messages; the object has 'prompt', 'chosen', 'rejected'; answers to compare are for dpo"
        in message
    )
