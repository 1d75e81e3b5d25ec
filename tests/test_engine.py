"""Generation: every prompt gets what it would get alone, without a cache, and from transformers."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tutelage.errors import UserError
from tutelage.infer import engine
from tutelage.infer.engine import Completion, generate
from tutelage.infer.sampling import Sampling
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer

V, CONTEXT = 61, 64
GREEDY = Sampling(temperature=0)
SHAPE = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.4,  # far from uniform, so that argmax has no near ties
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=7)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
}


def pair(family: str) -> tuple[torch.nn.Module, Transformer]:
    """The same random weights as a transformers model and as ours."""
    torch.manual_seed(3)
    kind, config = FAMILIES[family]
    theirs = kind(config).eval()
    ours = Transformer(ModelConfig.from_hf(config.to_dict()))
    ours.load_state_dict(theirs.state_dict(), strict=False)
    return theirs, ours


@pytest.fixture(scope="module")
def model() -> Transformer:
    return pair("llama")[1]


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, V, (length,), generator=generator).tolist() for length in lengths]


def greedily_without_cache(model: Transformer, prompt: list[int], steps: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            hidden = model(torch.tensor([tokens]), torch.arange(len(tokens))[None])
            tokens.append(int(model.unembed(hidden[:, -1]).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family):
    theirs, ours = pair(family)
    prompts = prompts_of(5, 1, 17, 9, 30)
    completions = generate(ours, prompts, GREEDY, max_new_tokens=20, stop=set())
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)
        assert completion == Completion(expected[0, len(prompt) :].tolist(), "length")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefill", [3, 512])
def test_batched_generation_is_one_at_a_time_and_no_cache(monkeypatch, family, prefill):
    monkeypatch.setattr(engine, "PREFILL", prefill)
    _, model = pair(family)
    prompts = prompts_of(3, 12, 1, 6, 7, 12, 11)
    together = generate(model, prompts, GREEDY, max_new_tokens=15, stop=set())
    chunked = generate(model, prompts, GREEDY, max_new_tokens=15, stop=set(), rows=2)
    alone = [generate(model, [prompt], GREEDY, max_new_tokens=15, stop=set())[0] for prompt in prompts]
    plain = [greedily_without_cache(model, prompt, 15) for prompt in prompts]
    assert together == chunked == alone
    assert [completion.tokens for completion in together] == plain


def test_rows_leave_at_their_own_stop_and_change_no_other(model):
    """Stop tokens are chosen from the unstopped answers, so that rows end at different steps."""
    prompts = prompts_of(4, 9, 2, 15, 6, 6, 3)
    unstopped = generate(model, prompts, GREEDY, max_new_tokens=25, stop=set())
    stop = {unstopped[0].tokens[3], unstopped[3].tokens[11], unstopped[5].tokens[0]}
    seen: dict[int, list[int]] = {index: [] for index in range(len(prompts))}
    completions = generate(
        model,
        prompts,
        GREEDY,
        max_new_tokens=25,
        stop=stop,
        on_token=lambda row, token: seen[row].append(token),
    )
    for index, (before, after) in enumerate(zip(unstopped, completions, strict=True)):
        end = next((place for place, token in enumerate(before.tokens) if token in stop), None)
        expected = (
            Completion(before.tokens, "length")
            if end is None
            else Completion(before.tokens[:end], "stop", before.tokens[end])
        )
        assert after == expected
        assert seen[index] == expected.tokens
    assert len({len(completion.tokens) for completion in completions}) > 2


def test_a_context_that_fills_up_ends_the_row(model):
    prompts = prompts_of(CONTEXT - 5, CONTEXT - 1, 3)
    completions = generate(model, prompts, GREEDY, max_new_tokens=10, stop=set())
    assert [len(completion.tokens) for completion in completions] == [5, 1, 10]
    assert [completion.stop_reason for completion in completions] == ["context", "context", "length"]
    assert completions[0].tokens == greedily_without_cache(model, prompts[0], 5)


def test_a_seed_gives_the_same_answer_in_any_batch(model):
    prompts = [prompts_of(5)[0]] * 6
    sampling = Sampling(temperature=1.5, seed=11)
    options = {"max_new_tokens": 12, "stop": set()}
    together = generate(model, prompts, sampling, **options)
    assert together == generate(model, prompts, sampling, **options, rows=4)
    assert together[2] == generate(model, prompts[:1], Sampling(temperature=1.5, seed=13), **options)[0]
    assert len({tuple(completion.tokens) for completion in together}) == 6


def test_a_sampled_row_draws_the_same_whoever_leaves_before_it(model):
    prompts, stop = prompts_of(3, 8, 5, 5, 2), set(range(0, V, 9))
    options = {"max_new_tokens": 30, "stop": stop}
    together = generate(model, prompts, Sampling(temperature=2.0, seed=20), **options)
    for index, prompt in enumerate(prompts):
        alone = generate(model, [prompt], Sampling(temperature=2.0, seed=20 + index), **options)
        assert alone == [together[index]]
    assert len({len(completion.tokens) for completion in together}) == 5


def test_only_last_positions_meet_the_head(model, monkeypatch):
    shapes = []
    unembed = model.unembed
    monkeypatch.setattr(
        model, "unembed", lambda hidden: (shapes.append(tuple(hidden.shape)), unembed(hidden))[1]
    )
    generate(model, prompts_of(4, 9), GREEDY, max_new_tokens=3, stop=set())
    assert shapes == [(2, 32)] * 3


def test_the_model_can_train_afterwards(model):
    model.train()
    generate(model, prompts_of(4), GREEDY, max_new_tokens=3, stop=set())
    assert model.training
    model(torch.tensor([[1, 2]]), torch.arange(2)[None]).sum().backward()
    assert model.head_weight.grad is not None


def test_no_prompts_give_no_completions(model):
    assert generate(model, [], GREEDY, max_new_tokens=3, stop=set()) == []


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([[]], 3, "the prompt is empty; a model needs at least one token to go on from"),
        ([[1], []], 3, "prompt 2 is empty; a model needs at least one token to go on from"),
        ([[1]], 0, "max_new_tokens: was 0, wanted at least 1"),
        (
            [[1] * CONTEXT],
            3,
            "the prompt has 64 tokens, and the model's context holds 64, the answer included; shorten it",
        ),
    ],
)
def test_mistakes_are_named(model, prompts, new, message):
    with pytest.raises(UserError) as caught:
        generate(model, prompts, GREEDY, max_new_tokens=new, stop=set())
    assert str(caught.value) == message
