"""`tutelage chat` through a pipe, and what `tutelage generate` puts on standard output."""

import io
import json
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tiny_chat import GREEDY, byte_tokenizer, completion_of, message, session_of, tiny_model

from tutelage import cli
from tutelage.checkpoint.hf import save_model
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.recipes.inference import sampling_of


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory) -> Path:
    """A run's directory with a tiny random model in it."""
    directory = tmp_path_factory.mktemp("run")
    model = tiny_model()
    save_model(model, model.config, directory / "model", dtype=torch.float32)
    byte_tokenizer().save(directory / "model")
    return directory


def tell(capsys, monkeypatch, words: list[str], typed: str | bytes = "") -> tuple[int, str, str]:
    """The exit code, standard output and standard error of a command that reads `typed` from a pipe."""
    data = typed.encode() if isinstance(typed, str) else typed
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape"))
    code = 0
    try:
        cli.main(words)
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_chat_through_a_pipe_prints_the_answers_only(capsys, monkeypatch, model_directory):
    words = ["chat", str(model_directory), "--temperature", "0", "--max_new_tokens", "12"]
    lines = ["Be brief.", "hi", "", "again", "!!reset", "", "hi"]
    code, out, err = tell(capsys, monkeypatch, words, "\n".join(lines))
    session = session_of(system="Be brief.")
    expected = [session.ask("hi").text, session.ask("again").text]
    session.reset()
    expected.append(session.ask("hi").text)
    assert (code, out) == (0, "".join(text + "\n" for text in expected))
    assert "Traceback" not in err


def test_chat_with_a_system_message_asks_for_none_until_reset(capsys, monkeypatch, model_directory):
    words = ["chat", str(model_directory / "model"), "--system", "S", "--temperature=0", "--max_new_tokens=9"]
    code, out, _ = tell(capsys, monkeypatch, words, b"hi\n  !!reset \nT\r\nhi \xff\n")
    first, second = (session_of(system=system, max_new_tokens=9) for system in ("S", "T"))
    assert (code, out) == (0, first.ask("hi").text + "\n" + second.ask("hi ?").text + "\n")


def test_chat_survives_a_message_that_is_too_long(capsys, monkeypatch, model_directory):
    words = ["chat", str(model_directory), "--system=", "--temperature=0", "--max_new_tokens=9"]
    code, out, err = tell(capsys, monkeypatch, words, "x" * 600 + "\nhi\n")
    assert (code, out) == (0, session_of(max_new_tokens=9).ask("hi").text + "\n")
    assert "error: this message makes a prompt of 619 tokens" in err


def test_generate_prints_completions_and_nothing_else(capsys, monkeypatch, model_directory):
    prompts = ["hi", "a longer question", "ünï 🦜"]
    expected = [completion_of(session_of(), [message("user", text)]) for text in prompts]
    for extra in ([], ["--batch_size", "1"], ["--batch-size=2"]):
        words = ["generate", str(model_directory), "--max_new_tokens", "12", *extra, "--prompt", *prompts]
        assert tell(capsys, monkeypatch, words) == (0, "".join(text + "\n" for text in expected), "")


@pytest.mark.parametrize("bos", [False, True])
def test_generate_raw_takes_the_prompt_as_it_is(capsys, monkeypatch, model_directory, tmp_path, bos):
    """After BOS, where the tokenizer's own files put it before every text, as in pretraining."""
    directory = tmp_path / "model"
    shutil.copytree(model_directory / "model", directory)
    model, tokenizer = tiny_model(), byte_tokenizer()
    if bos:
        tokenizer.settings |= {"bos_token": "<|endoftext|>", "add_bos_token": True}
        tokenizer.save(directory)
    prompt = [tokenizer.control["<|endoftext|>"]] * bos + tokenizer.encode("<|im_end|> x")
    (done,) = generate(model, [prompt], GREEDY, max_new_tokens=7, stop={tokenizer.eos})
    words = ["generate", str(directory), "--raw", "--prompt=<|im_end|> x", "--max_new_tokens", "7"]
    assert tell(capsys, monkeypatch, words) == (0, tokenizer.decode(done.tokens) + "\n", "")


def test_every_flag_of_sampling_reaches_the_sampler():
    values = {"temperature": 0.5, "top_k": 7, "top_p": 0.9, "min_p": 0.1, "seed": 3}
    values |= {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4}
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    for command in (["generate", "--prompt", "x"], ["chat"]):
        _, config = cli.configure([*command, "--ckpt_paths", "m", *words])
        assert sampling_of(config) == Sampling(**values)
    assert {field.name for field in fields(Sampling)} == set(values)


def test_stop_texts_end_answers_in_any_batch_and_stream_the_same(capsys, monkeypatch, model_directory):
    """Stops are pieces of the answers themselves, so that rows end at different places, or not at all."""
    prompts = ["hi", "a longer question", "ünï 🦜", "x"]
    words = ["generate", str(model_directory), "--max_new_tokens", "30", "--prompt"]
    whole = [tell(capsys, monkeypatch, [*words, prompt])[1].removesuffix("\n") for prompt in prompts]
    stops = [whole[0][3:6], whole[2][8:10]]
    for included in (False, True):
        flags = ["--stop", *stops, *["--include_stop"] * included]
        expected = []
        for text in whole:
            ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
            end, start = min(ends, default=(len(text), len(text)))
            expected.append(text[: end if included else start])
        assert len({len(text) for text in expected}) > 2
        assert expected[0] != whole[0]
        for size in ("1", "3"):
            given = [*words, *prompts, *flags, "--batch_size", size]
            assert tell(capsys, monkeypatch, given) == (0, "".join(t + "\n" for t in expected), "")
        streamed = [tell(capsys, monkeypatch, [*words, p, *flags, "--stream"]) for p in prompts]
        assert streamed == [(0, text + "\n", "") for text in expected]


def test_an_answer_is_streamed_while_it_is_written(capsys, monkeypatch, model_directory):
    pieces = []
    monkeypatch.setattr("builtins.print", lambda text="", **_: pieces.append(text))
    words = ["generate", str(model_directory), "--max_new_tokens", "30", "--stream", "--prompt", "hi"]
    tell(capsys, monkeypatch, words)
    assert len([piece for piece in pieces if piece]) > 5


def test_a_sampled_answer_does_not_depend_on_the_batch_size(capsys, monkeypatch, model_directory):
    words = ["generate", str(model_directory), "--temperature", "1", "--seed", "3", "--max_new_tokens", "9"]
    words += ["--prompt", *["hi"] * 5]
    outputs = [tell(capsys, monkeypatch, [*words, "--batch_size", size])[1] for size in ("1", "2", "5")]
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(set(outputs[0].splitlines())) > 1


def test_generate_reads_and_writes_json_lines(capsys, monkeypatch, model_directory, tmp_path):
    messages = [message("system", "S"), message("user", "hi")]
    records = [{"prompt": "hi", "id": 7}, {"messages": messages, "id": 8}]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n\n".join(map(json.dumps, records)) + "\n")
    words = ["generate", str(model_directory), "--input", str(source), "--max_new_tokens", "12"]
    answers = [completion_of(session_of(), each) for each in ([message("user", "hi")], messages)]
    assert tell(capsys, monkeypatch, words) == (0, "".join(text + "\n" for text in answers), "")
    code, out, _ = tell(capsys, monkeypatch, [*words, "--output", str(target)])
    assert (code, out) == (0, "")
    assert [json.loads(line) for line in target.read_text().splitlines()] == [
        {"prompt": "hi", "id": 7, "completion": answers[0]},
        {"messages": [*messages, message("assistant", answers[1])], "id": 8},
    ]


def test_a_system_message_may_be_given_once(capsys, monkeypatch, model_directory, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"messages": [message("system", "S"), message("user", "hi")]}))
    words = ["generate", str(model_directory), "--input", str(source), "--system", "T"]
    fault = f"{source}:1: messages begin with a system message, and --system is given too"
    assert tell(capsys, monkeypatch, words) == (2, "", f"error: 1 prompts cannot be used\n{fault}\n")
    expected = completion_of(session_of(), [message("system", "T"), message("user", "hi")])
    words = ["generate", str(model_directory), "--prompt", "hi", "--system", "T", "--max_new_tokens", "12"]
    assert tell(capsys, monkeypatch, words) == (0, expected + "\n", "")


def test_prompts_that_cannot_be_used_are_told_with_their_line(capsys, monkeypatch, model_directory, tmp_path):
    source = tmp_path / "in.jsonl"
    lines = [
        '{"prompt": 3}',
        "{",
        '{"prompt": "hi", "tools": [{"name": "weather"}]}',
        '{"text": "x"}',
        "[]",
        '{"messages": []}',
        '{"messages": [{"role": "me"}]}',
    ]
    lines += [json.dumps({"prompt": "x" * 600}), '{"prompt": "good"}']
    source.write_text("\n".join(lines))
    code, out, err = tell(capsys, monkeypatch, ["generate", str(model_directory), "--input", str(source)])
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error: 8 prompts cannot be used"
    assert err.splitlines()[1:] == [
        f"{source}:1: prompt is not a string",
        f"{source}:2: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        f"{source}:3: the conversation lists tools, for which template chatml has no form",
        f'{source}:4: not an object with either "prompt" or "messages"',
        f'{source}:5: not an object with either "prompt" or "messages"',
        f"{source}:6: messages is empty",
        f"{source}:7: message 1 has no content",
        f"{source}:8: 619 tokens, and the model's context holds 512, the answer included",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "generate: give one of prompt, input and words"),
        (["--prompt", "a", "--input", "b"], "generate: give one of prompt, input and words"),
        (["--prompt", "a", "--words", "a", "b", "c"], "generate: give one of prompt, input and words"),
        (["--prompt", "a", "--features", "Twist"], "generate: features are those of a story, so give its"),
        (["--words", "a", "b", "c", "--raw"], "generate: words make a prompt for the chat template, and raw"),
        (["--words", "a", "b"], "words: three are wanted, a verb, a noun and an adjective; given were 'a'"),
        (["--prompt", "a", "--stop", ""], "generate: stop holds an empty text, which is everywhere"),
        (["--prompt", "a", "b", "--stream"], "generate: stream prints the answer to a single prompt"),
        (["--prompt", "a", "--stream", "--output", "x"], "generate: stream prints the answer to a single"),
        (["--prompt", "a", "--min_p", "2"], "generate: min_p is 2.0, must be from 0 (no limit) to 1"),
        (
            ["--prompt", "a", "--repetition_penalty", "0"],
            "generate: repetition_penalty is 0.0, must be above",
        ),
        (
            ["--prompt", "a", "--no_repeat_ngram_size", "-1"],
            "generate: no_repeat_ngram_size is -1, must be 0",
        ),
        (
            ["--prompt", "a", "--raw", "--system", "b", "--top_p", "0", "--batch_size", "0"],
            "generate: top_p is 0.0, must be above 0 and at most 1 (no limit)",
        ),
        (["--raw", "--prompt", ""], "1 prompts cannot be used\nprompt 1: the prompt is empty; a model needs"),
        (["--prompt", "a", "--device", "tpu9"], "device tpu9 is no device: cuda, cuda:1, cpu or auto"),
        (["--input", "none.jsonl"], "input: cannot read none.jsonl: no such file or directory"),
        (["--prompt", "a", "--output", "no/x.jsonl"], "output: cannot write no/x.jsonl: no such file"),
        (["--prompt", "a", "--template_config", "llama3_instruct"], "template llama3_instruct writes"),
    ],
)
def test_mistakes_are_named(capsys, monkeypatch, model_directory, words, message):
    code, out, err = tell(capsys, monkeypatch, ["generate", str(model_directory), *words])
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")


def test_a_run_without_a_result_is_refused(capsys, monkeypatch, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    words = ["generate", str(tmp_path), "--prompt", "a"]
    message = f"error: {tmp_path} is a run without a result; end it with the same command and --resume\n"
    assert tell(capsys, monkeypatch, words) == (2, "", message)


@pytest.mark.parametrize(
    ("names", "refused"), [({"pad_token": "<pad>"}, False), ({"bos_token": "<new>"}, True)], ids=str
)
def test_control_tokens_that_are_not_embedded_matter_where_a_prompt_has_them(
    capsys, monkeypatch, model_directory, tmp_path, names, refused
):
    """A padding token that somebody added is never in a prompt; a BOS is."""
    shutil.copytree(model_directory / "model", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    words = ["generate", str(tmp_path / "model"), "--raw", "--prompt", "hi", "--max_new_tokens", "2"]
    code, _, err = tell(capsys, monkeypatch, words)
    assert code == (2 if refused else 0)
    assert ("control tokens that it never had: take <new> out of them" in err) == refused
