"""Generation with a KV cache: many prompts of any lengths side by side, rows leaving as they finish.

Prompts are padded on the right. What padding writes into the cache lies after its row's end, where nothing
sees it before the row's own tokens replace it; so there is no mask, and a row's tokens are those it gets
alone.

B rows   T positions   D model dim   V vocabulary
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tutelage.errors import UserError
from tutelage.infer.history import History
from tutelage.infer.sampling import Sampling, sample
from tutelage.model.cache import KVCache
from tutelage.model.transformer import Transformer
from tutelage.text.roles import ROLE_IDS

PREFILL = 512  # positions of a prompt read at a time: bounds the memory for masks and activations
ASSISTANT = ROLE_IDS["assistant"]  # the role of every token that is generated
ROWS = 32  # prompts side by side, unless asked otherwise


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model wrote after a prompt, and why it stopped: a stop token or the caller, max_new_tokens or
    a full context."""

    tokens: list[int]  # without the stop token
    stop_reason: Literal["stop", "length", "context"]
    stop_token: int | None = None


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    stop: set[int],
    roles: Sequence[Sequence[int]] | None = None,
    on_token: Callable[[int, int], bool | None] | None = None,
    rows: int = ROWS,
) -> list[Completion]:
    """A completion for each prompt, in order. `on_token(prompt, token)` is called as tokens come; where it
    returns True, this token is the completion's last. `roles` are those of the prompts' tokens, for models
    with role embeddings; None adds none, to answers neither.

    At most `rows` prompts are in memory at once, those of like lengths together; neither changes any
    answer."""
    _check(model, prompts, max_new_tokens)
    assert roles is None or list(map(len, roles)) == list(map(len, prompts)), "a role for every token"
    completions: dict[int, Completion] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), rows):
            chunk = order[start : start + rows]
            completions |= _decode(model, prompts, roles, chunk, sampling, max_new_tokens, stop, on_token)
    finally:
        model.train(training)
    return [completions[index] for index in range(len(prompts))]


def _check(model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens: was {max_new_tokens}, wanted at least 1")
    context = model.config.max_positions
    for number, prompt in enumerate(prompts, start=1):
        name = "the prompt" if len(prompts) == 1 else f"prompt {number}"
        if not prompt:
            raise UserError(f"{name} is empty; a model needs at least one token to go on from")
        if len(prompt) >= context:
            raise UserError(
                f"{name} has {len(prompt)} tokens, and the model's context holds {context}, "
                "the answer included; shorten it"
            )


@torch.inference_mode()
def _decode(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    roles: Sequence[Sequence[int]] | None,
    chunk: list[int],
    sampling: Sampling,
    max_new_tokens: int,
    stop: set[int],
    on_token: Callable[[int, int], bool | None] | None,
) -> dict[int, Completion]:
    """The completions of the prompts of one chunk, by their places among all."""
    parameter = model.head_weight
    lengths = [len(prompts[index]) for index in chunk]
    context = model.config.max_positions
    budgets = {index: min(max_new_tokens, context - len(prompts[index])) for index in chunk}
    longest = max(len(prompts[index]) + budgets[index] for index in chunk)
    kv = KVCache(model.config, len(chunk), longest, dtype=parameter.dtype, device=parameter.device)
    whose = None if roles is None else [roles[index] for index in chunk]
    hidden = _prefill(model, [prompts[index] for index in chunk], whose, kv)  # (B, D)
    generators = sampling.generators(chunk, parameter.device)
    history = History(
        [prompts[index] for index in chunk], sampling, model.config.vocab_size, parameter.device
    )
    positions = torch.tensor(lengths, device=parameter.device)  # (B,): where the next token goes
    written: dict[int, list[int]] = {index: [] for index in chunk}
    completions: dict[int, Completion] = {}
    live = chunk
    while live:
        tokens = sample(history.penalise(model.unembed(hidden)), sampling, generators)  # (B,)
        history.add(tokens)
        kept = []
        for row, (index, token) in enumerate(zip(live, tokens.tolist(), strict=True)):
            if token in stop:
                completions[index] = Completion(written[index], "stop", token)
                continue
            written[index].append(token)
            if on_token is not None and on_token(index, token):
                completions[index] = Completion(written[index], "stop")
            elif len(written[index]) < budgets[index]:
                kept.append(row)
            else:
                reason = "length" if budgets[index] == max_new_tokens else "context"
                completions[index] = Completion(written[index], reason)
        if len(kept) < len(live):
            live, generators = [live[row] for row in kept], [generators[row] for row in kept]
            rows = torch.tensor(kept, dtype=torch.int64, device=parameter.device)
            tokens, positions = tokens[rows], positions[rows]
            kv.keep(rows)
            history.keep(rows)
        if live:
            own = None if roles is None else torch.full_like(tokens[:, None], ASSISTANT)
            hidden = model(tokens[:, None], positions[:, None], roles=own, kv=kv)[:, 0]  # (B, D)
            outgrown = model.config.original_context  # by the token just read
            if outgrown is not None and (positions == outgrown).any():
                (places,) = (positions == outgrown).nonzero(as_tuple=True)
                grown = [live[row] for row in places.tolist()]
                texts = [[*prompts[index], *written[index]] for index in grown]
                whose = None
                if roles is not None:
                    whose = [[*roles[index], *[ASSISTANT] * len(written[index])] for index in grown]
                hidden[places] = _reread(model, texts, whose, kv, places)
            positions = positions + 1
    return completions


def _reread(
    model: Transformer,
    texts: list[list[int]],
    roles: list[list[int]] | None,
    kv: KVCache,
    places: Tensor,
) -> Tensor:
    """(n, D): the hidden state at the end of these rows' texts, read anew into their places in the cache.

    Past longrope's original context all keys turn otherwise, and so every hidden state is another.
    """
    fresh = KVCache(model.config, len(texts), kv.length, dtype=kv.keys.dtype, device=kv.keys.device)
    hidden = _prefill(model, texts, roles, fresh)
    kv.replace(places, fresh)
    return hidden


def _prefill(
    model: Transformer, prompts: Sequence[Sequence[int]], roles: Sequence[Sequence[int]] | None, kv: KVCache
) -> Tensor:
    """(B, D): the hidden state at the last token of each prompt, with everything before it in the cache."""
    device = kv.keys.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = max(map(len, prompts))
    if model.config.original_context is not None:
        kv.long = lengths > model.config.original_context
    tokens = _padded(prompts, device)  # (B, T)
    whose = None if roles is None else _padded(roles, device)
    last: list[Tensor] = []
    where: list[Tensor] = []
    for start in range(0, width, PREFILL):
        part = slice(start, start + PREFILL)
        positions = torch.arange(start, min(start + PREFILL, width), device=device).expand(len(prompts), -1)
        own = None if whose is None else whose[:, part]
        hidden = model(tokens[:, part], positions, roles=own, kv=kv)  # (B, <= PREFILL, D)
        (ending,) = torch.where((lengths > start) & (lengths <= start + PREFILL))
        last.append(hidden[ending, lengths[ending] - 1 - start])
        where.append(ending)
    return torch.cat(last)[torch.cat(where).argsort()]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(B, T): rows of differing lengths, with zeros after them."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
