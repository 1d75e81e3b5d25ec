"""Penalties for repeating: transformers' own, batched and ragged, whoever leaves before."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_engine import GREEDY, pair, prompts_of
from transformers import MinPLogitsWarper, NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from tutelage.infer.engine import generate
from tutelage.infer.history import History
from tutelage.infer.sampling import Sampling, filter_logits

CPU, V = torch.device("cpu"), 7
histories = st.lists(st.integers(0, V - 1), min_size=1, max_size=12)
penalties = st.sampled_from([0.5, 1.0, 1.2, 3.0])


@given(st.lists(histories, min_size=1, max_size=4), penalties, st.integers(0, 4), st.integers(0, 2**31))
def test_the_penalties_are_those_of_transformers(rows, penalty, size, seed):
    """However much of a row was its prompt, and whatever other rows, longer or shorter, stand beside it."""
    logits = torch.randn(len(rows), V, generator=torch.Generator().manual_seed(seed))
    sampling = Sampling(repetition_penalty=penalty, no_repeat_ngram_size=size)
    together = History(rows, sampling, V, CPU).penalise(logits)
    for place, row in enumerate(rows):
        expected = logits[place : place + 1]
        if penalty != 1:
            expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([row]), expected)
        if size:
            expected = NoRepeatNGramLogitsProcessor(size)(torch.tensor([row]), expected)
        assert torch.equal(together[place : place + 1], expected)
        said = History([row[:1]], sampling, V, CPU)
        for token in row[1:]:
            said.add(torch.tensor([token]))
        assert torch.equal(said.penalise(logits[place : place + 1]), expected)


@given(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30), st.floats(0.01, 1))
def test_min_p_is_that_of_transformers(row, min_p):
    logits = torch.tensor([row])
    assert torch.equal(filter_logits(logits, Sampling(min_p=min_p)), MinPLogitsWarper(min_p)(None, logits))


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_greedy_answers_are_those_of_transformers(family, options):
    theirs, ours = pair(family)
    prompts = prompts_of(5, 1, 17, 9)
    sampling = Sampling(temperature=0, **options)
    completions = generate(ours, prompts, sampling, max_new_tokens=25, stop=set())
    plain = generate(ours, prompts, GREEDY, max_new_tokens=25, stop=set())
    assert [one.tokens for one in completions] != [one.tokens for one in plain]
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=25, do_sample=False, **options)
        assert completion.tokens == expected[0, len(prompt) :].tolist()


def test_penalties_follow_their_rows_when_others_leave():
    """Rows end by stop token, by the caller and by length; each is what it is alone."""
    model = pair("llama")[1]
    prompts = prompts_of(4, 9, 2, 15, 6)
    sampling = Sampling(temperature=1.2, repetition_penalty=1.3, no_repeat_ngram_size=2, seed=4)
    free = generate(model, prompts, sampling, max_new_tokens=20, stop=set())
    stop = {free[0].tokens[3], free[3].tokens[8]}
    options = {"max_new_tokens": 20, "stop": stop}
    together = generate(model, prompts, sampling, **options, on_token=ends_after(6, only=1))
    for index, prompt in enumerate(prompts):
        seeded = Sampling(
            temperature=1.2, repetition_penalty=1.3, no_repeat_ngram_size=2, seed=sampling.seed + index
        )
        on_token = ends_after(6, only=0) if index == 1 else None
        assert generate(model, [prompt], seeded, **options, on_token=on_token) == [together[index]]
    assert len(together[1].tokens) <= 6
    assert len({len(one.tokens) for one in together}) > 2


def ends_after(count: int, *, only: int):
    """An `on_token` that ends one prompt after so many tokens."""
    seen = []

    def on_token(index: int, token: int) -> bool:
        if index == only:
            seen.append(token)
        return index == only and len(seen) == count

    return on_token


def test_the_caller_can_end_an_answer():
    model = pair("llama")[1]
    (free,) = generate(model, prompts_of(4), GREEDY, max_new_tokens=20, stop=set())
    options = {"max_new_tokens": 20, "stop": set(), "on_token": ends_after(5, only=0)}
    (ended,) = generate(model, prompts_of(4), GREEDY, **options)
    assert (ended.tokens, ended.stop_reason, ended.stop_token) == (free.tokens[:5], "stop", None)
