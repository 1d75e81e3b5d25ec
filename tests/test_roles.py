"""Role embeddings: what they add, what they must not depend on, and that a model learns by them.

The oracle is transformers, handed the sum of a token's embedding and its role's as `inputs_embeds`.
"""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from conversations import say
from test_objectives import ragged, tiny
from tiny_data import TEMPLATE, TOKENIZER
from tiny_models import CONFIGS, oracle, ours, positions_of, random_tokens
from torch.nn import functional as F

from tutelage.data.batch import Sample
from tutelage.data.loader import Loader
from tutelage.data.pack import collate
from tutelage.data.store import SampleStore
from tutelage.errors import UserError
from tutelage.infer import engine
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.config import N_ROLES, ModelConfig, role_embeddings_std
from tutelage.model.roles import RoleEmbeddings
from tutelage.model.transformer import Transformer, add_role_embeddings_, initialise_
from tutelage.objectives.base import token_logps
from tutelage.objectives.language import NextToken
from tutelage.text.roles import ROLE_IDS, ROLES
from tutelage.train import optim, precision, surgery
from tutelage.train.evaluate import evaluate
from tutelage.train.trainer import Trainer

FAMILIES = ("llama tied", "llama 3.1", "qwen2 window", "mistral window")
STEPS = 160  # of learning whom to obey
GREEDY = Sampling(temperature=0)
OTHER, SYSTEM, USER, ASSISTANT = (ROLE_IDS[name] for name in ("other", "system", "user", "assistant"))


def pair(name: str):
    """A model of transformers, ours with its weights and a random table of roles."""
    theirs = oracle(name)
    model = ours(theirs)
    add_role_embeddings_(model, "gaussian:0.5", seed=7)
    return theirs, model


def table_of(model: Transformer) -> torch.Tensor:
    assert model.model.role_embeddings is not None
    return model.model.role_embeddings.weight


def random_roles(tokens: torch.Tensor, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, N_ROLES, tokens.shape, generator=torch.Generator().manual_seed(seed))


def summed(theirs, table, tokens, roles):
    """What transformers makes of embeddings with `table` looked up and added."""
    return theirs(inputs_embeds=theirs.get_input_embeddings()(tokens) + F.embedding(roles, table)).logits


def test_there_is_a_row_for_every_role():
    assert (N_ROLES, ROLES) == (5, ("system", "user", "assistant", "tool", "other"))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_gradients_are_those_of_summed_embeddings(name):
    theirs, model = pair(name)
    tokens = random_tokens(3, 20)
    roles, table = random_roles(tokens), table_of(model).detach().clone().requires_grad_()
    expected = summed(theirs, table, tokens, roles)
    logits = model.unembed(model.train()(tokens, positions_of(tokens), roles=roles))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    for each in (logits, expected):
        F.cross_entropy(each[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    assert table.grad is not None and table.grad.abs().max() > 1e-3
    torch.testing.assert_close(table_of(model).grad, table.grad, atol=1e-5, rtol=1e-4)


def test_the_gradient_of_a_row_is_the_sum_over_its_positions_by_hand():
    """Roles 0 1 1 0 3, upstream gradients 1 2 4 8 16: rows get 9, 6, 0, 16, 0."""
    table = RoleEmbeddings(1)
    upstream = torch.tensor([[[1.0], [2.0], [4.0], [8.0], [16.0]]])
    (table(torch.tensor([[0, 1, 1, 0, 3]])) * upstream).sum().backward()
    assert table.weight.grad is not None and table.weight.grad.flatten().tolist() == [9, 6, 0, 16, 0]


def test_a_row_is_looked_up_exactly_and_its_gradient_rounds_once_in_bfloat16():
    """A plain lookup adds 8,192 times 1 in bfloat16 and stops at 256."""
    table, roles = RoleEmbeddings(16).bfloat16(), torch.full((8, 1024), ASSISTANT)
    assert torch.equal(table(roles), F.embedding(roles, table.weight))
    table(roles).sum().backward()
    assert table.weight.grad is not None
    assert table.weight.grad[ASSISTANT].tolist() == [8192.0] * 16


def test_no_roles_add_nothing_as_for_other_programs_but_training_asserts_them():
    theirs, model = pair("llama tied")
    tokens, plain = random_tokens(2, 9), ours(theirs)
    without = plain(tokens, positions_of(tokens), roles=random_roles(tokens))
    assert torch.equal(model(tokens, positions_of(tokens)), without)
    said = generate(model, tokens.tolist(), GREEDY, max_new_tokens=8, stop=set())
    assert said == generate(plain, tokens.tolist(), GREEDY, max_new_tokens=8, stop=set())
    with pytest.raises(AssertionError, match="trains without roles"):
        model.train()(tokens, positions_of(tokens))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prefill", [3, 512])
def test_answers_are_those_without_a_cache_and_alone_and_the_assistants(monkeypatch, name, prefill):
    """Every token that is generated has the role assistant; ragged prompts, padded with role system."""
    monkeypatch.setattr(engine, "PREFILL", prefill)
    theirs, model = pair(name)
    prompts = [random_tokens(1, n, seed=n)[0].tolist() for n in (3, 12, 1, 6, 7, 12)]
    roles = [random_roles(torch.tensor(prompt), seed=n).tolist() for n, prompt in enumerate(prompts)]
    options = {"max_new_tokens": 10, "stop": set()}
    together = generate(model, prompts, GREEDY, roles=roles, **options)
    alone = [
        generate(model, [p], GREEDY, roles=[r], **options)[0] for p, r in zip(prompts, roles, strict=True)
    ]
    assert together == alone == generate(model, prompts, GREEDY, roles=roles, rows=2, **options)
    for prompt, own, completion in zip(prompts, roles, together, strict=True):
        said = list(prompt)
        with torch.no_grad():
            for _ in range(10):
                whose = torch.tensor([own + [ASSISTANT] * (len(said) - len(own))])
                said.append(int(summed(theirs, table_of(model), torch.tensor([said]), whose)[0, -1].argmax()))
        assert completion.tokens == said[len(prompt) :]
    assert together != generate(model, prompts, GREEDY, **options)


def test_roles_that_do_not_fit_their_prompts_are_an_assertion():
    with pytest.raises(AssertionError, match="a role for every token"):
        generate(pair("llama")[1], [[3, 4]], GREEDY, roles=[[1]], max_new_tokens=1, stop=set())


def test_roles_of_a_batch_are_those_of_the_tokens_read_and_not_of_the_targets():
    """Those of the targets would tell the model who speaks next. The last line break is only a target."""
    encoded = TEMPLATE.encode(say("system: a", "user: b", "assistant: c"), TOKENIZER)
    batch = collate([[Sample(encoded.tokens, encoded.weights, encoded.roles)]], 64)
    real = int((batch.docs >= 0).sum())
    read = zip(batch.tokens[0, :real].tolist(), batch.roles[0, :real].tolist(), strict=True)
    spans = [
        (ROLES[role], [token for token, _ in each]) for role, each in groupby(read, lambda pair: pair[1])
    ]
    assert [(role, TOKENIZER.decode(tokens, skip_control=False)) for role, tokens in spans] == [
        ("other", "<|im_start|>system\n"),
        ("system", "a<|im_end|>"),
        ("other", "\n<|im_start|>user\n"),
        ("user", "b<|im_end|>"),
        ("other", "\n<|im_start|>assistant\n"),
        ("assistant", "c<|im_end|>"),
    ]
    assert batch.roles[0, real:].unique().tolist() == [OTHER]


def test_log_probabilities_hear_roles_as_those_of_a_reference_must():
    """One trainer's DPO asked its reference without roles, and so compared with another model."""
    theirs, model = pair("llama tied")
    sample = Sample(
        random_tokens(1, 12)[0].tolist(), [1.0] * 12, random_roles(random_tokens(1, 12))[0].tolist()
    )
    batch = collate([[sample]], 11)
    with torch.no_grad():
        chances = summed(theirs, table_of(model), batch.tokens, batch.roles).log_softmax(-1)
        expected = chances.gather(2, batch.targets[..., None])[..., 0]
        torch.testing.assert_close(token_logps(model.eval(), batch), expected, atol=1e-4, rtol=1e-4)


def test_packing_and_padding_change_no_prediction():
    model, samples = tiny(roles=True), ragged([9, 4, 2, 30, 3])
    packed, spread = collate([samples], 64), collate([[sample] for sample in samples], 64)
    losses = [NextToken()(model, batch) for batch in (packed, spread)]
    grads = [torch.autograd.grad(loss.total, [*model.parameters()]) for loss in losses]
    torch.testing.assert_close(losses[0].total, losses[1].total)
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("init", ["zero", "zeros:1", "gaussian", "gaussian:", "gaussian:x", "gaussian:-1"])
def test_other_ways_to_begin_are_refused_by_name(init):
    with pytest.raises(UserError) as error:
        role_embeddings_std(init)
    wanted = f"role_embeddings_init is {init!r}, must be zeros or gaussian:STD, say gaussian:0.02"
    assert str(error.value) == wanted


def test_a_fresh_table_is_zero_or_drawn_by_the_seed_and_leaves_the_rest_alone():
    base, config = tiny(), tiny().config
    first, again, other, zeros = (tiny() for _ in range(4))
    for model, seed in ((first, 3), (again, 3), (other, 4)):
        add_role_embeddings_(model, "gaussian:0.02", seed=seed)
    add_role_embeddings_(zeros, "zeros", seed=3)
    assert not table_of(zeros).any()
    assert torch.equal(table_of(first), table_of(again)) and not torch.equal(table_of(first), table_of(other))
    assert 0.015 < table_of(first).std() < 0.025
    built = Transformer(replace(config, role_embeddings=True, role_embeddings_init="gaussian:0.02"))
    initialise_(built, seed=0, std=0.2)
    assert list(built.state_dict()) == list(first.state_dict()), "in one order"
    for name, parameter in base.named_parameters():
        assert torch.equal(built.get_parameter(name), parameter), name
    assert built.config.n_parameters == sum(p.numel() for p in built.parameters())
    assert built.config.n_parameters == config.n_parameters + 5 * 32


def test_the_table_is_decayed_and_left_to_adamw_as_embeddings_are():
    model = tiny(roles=True)
    weights = dict(model.named_parameters())
    settings = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "wd": 0.5}
    for optimizer in (optim.adamw(weights, **settings), optim.MuonAdamW(weights, muon_lr=None, **settings)):
        of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        own, tokens = (of[id(w)] for w in (table_of(model), model.model.embed_tokens.weight))
        assert own is tokens and own["weight_decay"] == 0.5


# What follows learns: of two words the one that the system says is to be repeated, wherever it stands.


def obedient(number: int, *, seed: int) -> list[Sample]:
    """BOS, two words in either order, a question mark, and the system's word, which alone is learned."""
    draw, samples = np.random.default_rng(seed), []
    for _ in range(number):
        words, first = draw.choice(np.arange(3, 13), 2, replace=False).tolist(), int(draw.integers(2))
        whose = [SYSTEM, USER] if first == 0 else [USER, SYSTEM]
        tokens = [1, *words, 2, words[first]]
        samples.append(Sample(tokens, [0.0] * 4 + [1.0], [OTHER, *whose, OTHER, ASSISTANT]))
    return samples


def trained(how: str, *, roles: bool) -> Transformer:
    model = tiny(roles=roles)
    if how == "compiled":
        surgery.compile_blocks(model)
    weights = precision.masters(model, "bf16" if how == "bf16" else "fp32")
    optimizer = optim.adamw(weights, lr=3e-3, betas=(0.9, 0.99), eps=1e-8, wd=0.0)
    precision.follow(model, weights, optimizer)
    data = Loader(
        SampleStore.of(obedient(2000, seed=1)),
        length=32,
        rows=8,
        accumulate=1,
        packed=True,
        seed=1,
        rank=0,
        world=1,
        reduction="tokens",
    )
    schedule = optim.schedule("cosine", steps=STEPS, warmup=10)
    Trainer(model, NextToken(), data, optimizer, schedule, steps=STEPS, clip=1.0).fit()
    return model


@pytest.mark.parametrize("how", ["fp32", "bf16", pytest.param("compiled", marks=pytest.mark.slow)])
def test_the_same_words_are_obeyed_by_who_says_them(how):
    """All of 200 new prompts with role embeddings, half of them without: nothing tells the two apart."""
    held_out = obedient(200, seed=2)

    def share(model: Transformer) -> float:
        done = generate(
            model,
            [sample.tokens[:-1] for sample in held_out],
            GREEDY,
            max_new_tokens=1,
            stop=set(),
            roles=[sample.roles[:-1] for sample in held_out],
        )
        right = [each.tokens == [sample.tokens[-1]] for each, sample in zip(done, held_out, strict=True)]
        return sum(right) / len(right)

    model = trained(how, roles=True)
    assert share(model) >= 0.99
    batch = collate([held_out], 4 * 200)
    assert evaluate(model, NextToken(), [[batch]])["loss"] < 0.1, "validation hears roles too"
    if how == "fp32":
        assert 0.3 < share(trained(how, roles=False)) < 0.7


def test_a_config_tells_of_roles_in_the_words_of_params_json():
    """torchllms writes use_role_embeddings and role_embeddings_init; without a table neither is written."""
    plain = ModelConfig.from_hf(CONFIGS["llama"].to_dict())
    assert not {"use_role_embeddings", "role_embeddings_init"} & plain.to_hf().keys()
    with_roles = replace(plain, role_embeddings=True, role_embeddings_init="gaussian:0.02")
    values = with_roles.to_hf()
    assert (values["use_role_embeddings"], values["role_embeddings_init"]) == (True, "gaussian:0.02")
    assert ModelConfig.from_hf(values) == with_roles
