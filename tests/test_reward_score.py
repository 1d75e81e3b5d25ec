"""`tutelage reward score`: what it scores, what it adds to a line, what it says, and what it refuses."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from score_models import our_score
from tiny_data import TEMPLATE, TOKENIZER
from tiny_pairs import labelled, pair, prefer, ranked, write_records
from tiny_runs import base_model, material, refused, run

from tutelage.checkpoint.hf import load_model, save_model
from tutelage.data.comparison import read_comparison
from tutelage.model.transformer import add_role_embeddings_, give_score_head_
from tutelage.text.roles import ROLES


def messages(number, *, turns=1):
    said = [{"role": "user", "content": f"q {number}"}, {"role": "assistant", "content": "yes " * number}]
    return {"messages": said * turns, "id": number}


MIXED = [messages(3), pair(0), ranked(1), labelled(2), pair(1), messages(0, turns=3), ranked(2), pair(5)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Beside the language model, one whose scores differ widely."""
    made = material(tmp_path_factory.mktemp("material"))
    judge(made.model, made.place / "judge")
    return made


def judge(base, place, *, roles=False):
    model = load_model(base)
    give_score_head_(model, seed=2)
    if roles:
        add_role_embeddings_(model, "gaussian:1.0", seed=0)
    with torch.no_grad():
        model.head_weight.mul_(30)
    base_model()[0].save(place, chat_template=TEMPLATE.jinja)
    save_model(model, model.config, place, dtype=torch.float32)


def lines_file(place, records):
    return write_records(place, "in", records).removeprefix("jsonl:")


def score(made, rows, *words, model="judge"):
    return run("reward", "score", made.place / model, "--input", rows, "--device", "cpu", *words)


def scores_of(line):
    return [line["score"]] if "score" in line else line["scores"]


def expected_of(model, record):
    """The scores of its conversations, each alone through the model."""
    if "messages" in record:
        whole = [record["messages"]]
    else:
        comparison = read_comparison(record)
        whole = [[*comparison.prompt, *answer] for answer in comparison.answers]
    return our_score(model, [each.tokens for each in TEMPLATE.encode_batch(whole, TOKENIZER)]).tolist()


@pytest.mark.parametrize("at_once", [1, 100, 8192])
def test_lines_of_every_kind_keep_their_order_and_get_their_scores(made, tmp_path, at_once):
    rows, out = lines_file(tmp_path, MIXED), tmp_path / "out.jsonl"
    ended = score(made, rows, "--output", out, "--tokens_at_once", at_once)
    assert ended.code == 0 and ended.out == "", ended.err
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(lines) == len(MIXED)
    model = load_model(made.place / "judge")
    for line, record in zip(lines, MIXED, strict=True):
        assert scores_of(line) == pytest.approx(expected_of(model, record), abs=1e-5)
        for key in record.keys() - {"scores"}:
            assert line[key] == record[key]
        assert ("score" in line) == ("messages" in record or "label" in record)
        assert line.get("given_scores") == record.get("scores")
    assert score(made, rows, "--tokens_at_once", at_once).out == out.read_text("utf-8")


def test_how_often_the_order_is_the_datas_is_told(made, tmp_path):
    rows = lines_file(tmp_path, MIXED)
    ended = score(made, rows)
    lines = [json.loads(line) for line in ended.out.splitlines()]
    numbers = [one for line in lines for one in scores_of(line)]
    gaps = []
    for line in lines:
        own = line.get("scores", [])  # best first: no ties among these records
        gaps += [own[i] - own[j] for i in range(len(own)) for j in range(i + 1, len(own))]
    assert f"{len(numbers)} texts scored: mean {np.mean(numbers):.4f}, standard " in ended.err
    assert f"deviation {np.std(numbers, ddof=1):.4f}\n" in ended.err
    share = np.mean(np.array(gaps) > 0)
    assert f"\n{len(gaps)} pairs: {share:.1%} in the data's order, mean gap {np.mean(gaps):.4f}" in ended.err
    assert "pairs" not in score(made, lines_file(tmp_path, [messages(1), messages(2)])).err


def test_the_normalizer_gives_scores_mean_0_and_deviation_1(made, tmp_path):
    rows, out = lines_file(tmp_path, MIXED), tmp_path / "normalizer.json"
    ended = score(made, rows, "--normalizer", out)
    numbers = np.array([one for line in ended.out.splitlines() for one in scores_of(json.loads(line))])
    found = json.loads(out.read_text())
    normal = found["gain"] * numbers + found["bias"]
    assert normal.mean() == pytest.approx(0, abs=1e-6) and normal.std(ddof=1) == pytest.approx(1, abs=1e-6)
    assert found["samples"] == len(numbers)
    assert f"{out}: gain {found['gain']:.6f}, bias {found['bias']:.6f}" in ended.err


def test_a_normalizer_by_hand(tmp_path):
    """Scores 1 2 3 6: mean 3, deviation sqrt(14 / 3); gain .462910 and bias -1.388730."""
    from tutelage.recipes.reward_score import normalizer_of

    found = normalizer_of(np.array([1.0, 2.0, 3.0, 6.0]))
    assert found == pytest.approx({"gain": 0.462910, "bias": -1.388730, "samples": 4}, abs=1e-6)


def test_tokens_are_scored_in_the_roles_that_they_were_learned_in(made, tmp_path):
    """With a table of roles the score depends on them; it was read with all tokens as of another role."""
    judge(made.model, tmp_path / "roles", roles=True)
    model = load_model(tmp_path / "roles")
    (line,) = score(made, lines_file(tmp_path, [messages(2)]), model=tmp_path / "roles").out.splitlines()
    encoded = TEMPLATE.encode(messages(2)["messages"], TOKENIZER)
    tokens, roles = torch.tensor([encoded.tokens]), torch.tensor([encoded.roles])
    assert {ROLES[role] for role in encoded.roles} >= {"user", "assistant"}
    with torch.no_grad():
        hidden = model(tokens, torch.arange(len(encoded.tokens))[None], roles=roles)
        assert json.loads(line)["score"] == pytest.approx(model.scores(hidden)[0, -1].item(), abs=1e-5)


def test_scores_that_a_line_came_with_are_kept(made, tmp_path):
    rows = lines_file(tmp_path, [messages(1) | {"score": "mine"}])
    line = json.loads(score(made, rows).out)
    assert line["given_score"] == "mine" and isinstance(line["score"], float)


def test_half_a_character_beside_the_texts_is_written_as_it_was_spelled(made, tmp_path):
    rows, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps(messages(1) | {"note": "\ud800"}) + "\n")
    assert score(made, rows, "--output", out).code == 0
    assert json.loads(out.read_text("utf-8"))["note"] == "\ud800"


def test_ten_thousand_rows_take_seconds(made, tmp_path):
    draw = np.random.default_rng(0)
    records = [messages(int(draw.integers(0, 6))) for _ in range(10_000)]
    rows, started = lines_file(tmp_path, records), time.process_time()
    ended = score(made, rows, "--output", tmp_path / "out.jsonl")
    assert ended.code == 0 and "10,000 texts scored" in ended.err
    assert time.process_time() - started < 30
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [line["messages"] for line in lines] == [record["messages"] for record in records]
    alike = {}
    for line in lines:
        alike.setdefault(len(line["messages"][1]["content"]), []).append(line["score"])
    assert all(np.ptp(scores) < 1e-4 for scores in alike.values() if len(scores) > 1)


QUESTION = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yo"}
BAD_LINES = {
    "json": ('{"messages": [}', ":1: not JSON: Expecting value"),
    "bytes": ("\udcff", ":1: not JSON: "),
    "shape": ("[1, 2]", ":1: not an object with chosen and rejected, prompt and answers, or prompt, "),
    "keys": ('{"text": "x"}', ":1: no chosen and rejected, prompt and answers, or prompt, completion and "),
    "messages": ('{"messages": 3}', ":1: messages is a number, not a list"),
    "prompt": ('{"messages": [{"role": "user", "content": "hi"}]}', ":1: has no assistant message"),
    "unanswered": (
        json.dumps({"messages": [QUESTION, ANSWER, QUESTION]}),
        ":1: the messages end with the user, and the assistant's words are judged",
    ),
    "long": (
        json.dumps({"messages": [QUESTION, {"role": "assistant", "content": "abc " * 200}]}),
        " tokens, and the model's context holds 256",
    ),
    "tools": (json.dumps(messages(1) | {"tools": [{}]}), ":1: the conversation lists tools, for which "),
    "tools of a pair": (json.dumps(pair(0) | {"tools": [{}]}), ":1: the conversation lists tools, for wh"),
    "deep": ("[" * 100_000, ":1: not JSON: "),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_cannot_be_scored_is_named_and_none_is(made, tmp_path, name):
    line, message = BAD_LINES[name]
    rows, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows.write_bytes(line.encode(errors="surrogateescape") + b"\n\n" + json.dumps(messages(1)).encode())
    told = refused(score(made, rows, "--output", out))
    assert told.startswith("1 records cannot be scored\n") and message in told and not out.exists()


def test_ten_faults_are_told_in_the_order_of_the_lines(made, tmp_path):
    long = {"messages": [QUESTION, {"role": "assistant", "content": "abc " * 200}]}
    records = [long if number % 2 else {"text": "x"} for number in range(13)]
    told = refused(score(made, lines_file(tmp_path, records))).splitlines()
    assert told[0] == "13 records cannot be scored" and told[-1] == "and 3 more"
    assert [int(line.split(":")[1]) for line in told[1:-1]] == list(range(1, 11))


def test_what_is_not_there_or_in_the_way_is_named_before_anything_is_scored(made, tmp_path):
    rows = lines_file(tmp_path, [messages(1)])
    there, empty = tmp_path / "there.jsonl", tmp_path / "empty.jsonl"
    there.write_text("old")
    empty.write_text("\n \n")
    for words, message in (
        ((rows, "--output", there), f"{there} exists; give --overwrite to replace it, or another --output"),
        ((rows, "--normalizer", there), f"{there} exists; give --overwrite to replace it, or another --norm"),
        ((rows, "--output", rows, "--overwrite"), "output would overwrite input"),
        ((rows, "--output", f"{tmp_path}/./in.jsonl", "--overwrite"), "output would overwrite input"),
        (
            (rows, "--output", tmp_path / "new", "--normalizer", tmp_path / "new"),
            "normalizer would overwrite output",
        ),
        (
            (rows, "--output", tmp_path / "no" / "out"),
            f"output: there is no directory {tmp_path / 'no'} to write out in",
        ),
        (
            (rows, "--normalizer", tmp_path / "no" / "it"),
            f"normalizer: there is no directory {tmp_path / 'no'} to write it in",
        ),
        ((rows, "--output", tmp_path), f"output: {tmp_path} is a directory; name a file in it"),
        ((rows, "--output", there / "out"), f"output: there is no directory {there} to write out in"),
        ((rows, "--tokens_at_once", 0), "tokens_at_once is 0, must be at least 1"),
        ((rows, "--no_quant_double"), "quant_double is about the scales of nf4 and fp4, and quant is none"),
        ((tmp_path / "nowhere",), f"input: cannot read {tmp_path / 'nowhere'}: no such file or directory"),
        ((tmp_path,), f"input: cannot read {tmp_path}: is a directory"),
        ((empty,), f"input: {empty} holds nothing to score"),
    ):
        ended = score(made, *words)
        assert message in refused(ended) and ended.out == "", words
    assert there.read_text() == "old"
    assert score(made, rows, "--output", there, "--overwrite").code == 0 and "score" in there.read_text()


def test_an_output_that_cannot_be_opened_is_told_before_weights_are_read(made, tmp_path):
    """The model's weights are gone, which nobody notices; nothing can be created in /proc."""
    shutil.copytree(made.place / "judge", tmp_path / "torn")
    (tmp_path / "torn" / "model.safetensors").unlink()
    rows = lines_file(tmp_path, [messages(1)])
    told = refused(score(made, rows, "--output", "/proc/scored.jsonl", model=tmp_path / "torn"))
    assert told == "output: cannot write /proc/scored.jsonl: no such file or directory"
    assert "model.safetensors" in refused(score(made, rows, model=tmp_path / "torn"))


def test_scores_without_a_spread_have_no_normalizer(made, tmp_path):
    """What was scored is kept, and the old file of the normalizer too."""
    ended = score(made, lines_file(tmp_path, [messages(1)]), "--normalizer", tmp_path / "normalizer")
    assert "normalizer: all scores are the same, and nothing gives them a deviation of 1" in refused(ended)
    assert json.loads(ended.out)["score"] and not (tmp_path / "normalizer").exists()


def test_scores_that_are_no_numbers_are_refused(made, tmp_path):
    model = load_model(made.place / "judge")
    with torch.no_grad():
        model.head_weight.fill_(3e38)  # a number, but twice of it is none
    base_model()[0].save(tmp_path / "nan", chat_template=TEMPLATE.jinja)
    save_model(model, model.config, tmp_path / "nan", dtype=torch.float32)
    ended = score(made, lines_file(tmp_path, [messages(1)]), model=tmp_path / "nan")
    assert "gives scores that are no numbers" in refused(ended) and ended.out == ""


def test_a_language_model_is_refused(made, tmp_path):
    told = refused(score(made, lines_file(tmp_path, [messages(1)]), model="base"))
    words = "has no score head: it is a language model; `tutelage reward` makes a reward model of one"
    assert told == f"{made.model} {words}"


def test_a_typo_of_the_command_is_told():
    choices = "choose from: tutelage reward, tutelage reward score"
    for words in (
        ["reward", "scor"],
        ["reward", "scor", "x", "--input", "y"],
        ["reward", "scores", "--lr", 1],
    ):
        assert refused(run(*words)) == f"there is no `tutelage reward {words[1]}`; {choices}"
    assert "reward: " in refused(run("reward", "--lr", "1"))


def test_a_run_says_how_to_go_on_and_that_works(made, tmp_path):
    ended = run(*prefer(made, tmp_path / "out", "reward", train_steps=1))
    command = ended.err.split("go on with `tutelage ")[1].split("`")[0]
    rows = lines_file(tmp_path, [pair(0)])
    assert run(*command.replace("FILE.jsonl", rows).split()).code == 0
