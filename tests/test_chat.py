"""Talking to a model: the history it keeps, what it prints, and what `generate` puts on standard output."""

import io
import json
import sys
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from tutelage import cli
from tutelage.checkpoint.hf import save_model
from tutelage.errors import UserError
from tutelage.infer.chat import ChatSession, stop_tokens
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

GREEDY = Sampling(temperature=0)
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def byte_tokenizer() -> Tokenizer:
    """One token for every byte, and ChatML's control tokens."""
    library = tokenizers.Tokenizer(
        models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(CONTROL)
    settings = {"eos_token": "<|im_end|>", "chat_template": Template.load("chatml").jinja}
    return Tokenizer(library.to_str(), settings)


def tiny_model(context: int = 512) -> Transformer:
    tokenizer = byte_tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.size,
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=8,
        ffn_dim=48,
        max_positions=context,
        eos=(tokenizer.eos,),
    )
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory) -> Path:
    """A run's directory with a tiny random model in it."""
    directory = tmp_path_factory.mktemp("run")
    model = tiny_model()
    save_model(model, model.config, directory / "model", dtype=torch.float32)
    byte_tokenizer().save(directory / "model")
    return directory


def session_of(context: int = 512, **options) -> ChatSession:
    options = {"max_new_tokens": 12, **options}
    return ChatSession(tiny_model(context), byte_tokenizer(), Template.load("chatml"), GREEDY, **options)


def completion_of(session: ChatSession, messages: list[dict[str, str]]) -> str:
    """What the model answers to `messages`, without any session."""
    tokens = session.template.encode(messages, session.tokenizer, reply=True).tokens
    options = {"max_new_tokens": session.max_new_tokens, "stop": session.stop}
    return session.tokenizer.decode(generate(session.model, [tokens], GREEDY, **options)[0].tokens)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


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


def test_a_session_answers_from_the_whole_history():
    session = session_of(system="Be brief.")
    history = [message("system", "Be brief.")]
    for text in ("hi", "and you? ünï 🦜", "<|im_end|> is text"):
        history.append(message("user", text))
        pieces = []
        reply = session.ask(text, pieces.append)
        assert reply.text == "".join(pieces) == completion_of(session, history)
        assert reply.forgotten == 0
        history.append(message("assistant", reply.text))
        assert session.messages == history
    session.reset("New.")
    assert session.messages == [message("system", "New.")]
    session.reset()
    assert session.messages == []
    assert session.ask("hi").text == completion_of(session, [message("user", "hi")])


def test_a_full_context_forgets_the_oldest_turns_and_keeps_the_system_message():
    session = session_of(context=200, system="Be brief.")
    texts = [f"{number}: " + "x" * 40 for number in range(4)]
    forgotten = [session.ask(text).forgotten for text in texts]
    assert sum(forgotten) > 0
    assert sum(forgotten) % 2 == 0
    assert session.messages[0] == message("system", "Be brief.")
    kept = [each["content"] for each in session.messages if each["role"] == "user"]
    assert kept == texts[sum(forgotten) // 2 :]
    tokens = session.template.encode(session.messages[:-1], session.tokenizer, reply=True).tokens
    assert len(tokens) + 12 <= 200


def test_a_message_beyond_the_context_is_refused_and_leaves_the_history_alone():
    session = session_of(context=100)
    session.ask("hi")
    before = list(session.messages)
    with pytest.raises(UserError) as caught:
        session.ask("x" * 200)
    assert str(caught.value) == (
        "this message makes a prompt of 219 tokens, and the model's context holds 100, "
        "the answer included; send less at once"
    )
    assert session.messages == before


def test_an_interrupted_answer_stays_as_far_as_it_came():
    session, pieces = session_of(max_new_tokens=100), []

    def interrupt(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.ask("hi", interrupt)
    assert session.messages == [message("user", "hi"), message("assistant", "".join(pieces))]
    session.reset()
    session.model.unembed = None  # fails before a word is said
    with pytest.raises(TypeError):
        session.ask("hi")
    assert session.messages == []


def test_an_answer_ends_at_the_tokens_of_template_model_and_tokenizer():
    model, tokenizer = tiny_model(), byte_tokenizer()
    assert stop_tokens(model, tokenizer, None) == {tokenizer.control["<|im_end|>"]}
    tokenizer.eos = tokenizer.control["<|endoftext|>"]
    assert stop_tokens(model, tokenizer, Template.load("chatml")) == {257, 258}


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


def test_generate_raw_takes_the_prompt_as_it_is(capsys, monkeypatch, model_directory):
    model, tokenizer = tiny_model(), byte_tokenizer()
    (done,) = generate(
        model, [tokenizer.encode("<|im_end|> x")], GREEDY, max_new_tokens=7, stop={tokenizer.eos}
    )
    words = ["generate", str(model_directory), "--raw", "--prompt=<|im_end|> x", "--max_new_tokens", "7"]
    assert tell(capsys, monkeypatch, words) == (0, tokenizer.decode(done.tokens) + "\n", "")


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
        '{"text": "x"}',
        "[]",
        '{"messages": []}',
        '{"messages": [{"role": "me"}]}',
    ]
    lines += [json.dumps({"prompt": "x" * 600}), '{"prompt": "good"}']
    source.write_text("\n".join(lines))
    code, out, err = tell(capsys, monkeypatch, ["generate", str(model_directory), "--input", str(source)])
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error: 7 prompts cannot be used"
    assert err.splitlines()[1:] == [
        f"{source}:1: prompt is not a string",
        f"{source}:2: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        f'{source}:3: not an object with either "prompt" or "messages"',
        f'{source}:4: not an object with either "prompt" or "messages"',
        f"{source}:5: messages is empty",
        f"{source}:6: message 1 has no content",
        f"{source}:7: 619 tokens, and the model's context holds 512, the answer included",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "generate: give either prompt or input"),
        (["--prompt", "a", "--input", "b"], "generate: give either prompt or input"),
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
