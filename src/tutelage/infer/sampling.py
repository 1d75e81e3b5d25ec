"""Choosing the next token: penalties for repeating, filters on logits, then one draw.

B rows   V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. Penalties and filters apply in the order of the fields, as in transformers."""

    repetition_penalty: float = 1.0  # above 1 makes tokens of the prompt and the answer less likely; 1 none
    no_repeat_ngram_size: int = 0  # no run of so many tokens occurs twice, prompt included; 0: no limit
    temperature: float = 1.0  # 0 takes the likeliest token, and the rest has no effect
    top_k: int = 0  # only the k likeliest tokens; 0 all
    top_p: float = 1.0  # only the likeliest tokens that together reach this probability
    min_p: float = 0.0  # only tokens at least this share as likely as the likeliest; 0 all
    seed: int = 1234

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.repetition_penalty < float("inf"):
            faults.append(
                f"repetition_penalty: was {self.repetition_penalty}, wanted more than 0; 1 changes nothing"
            )
        if self.no_repeat_ngram_size < 0:
            faults.append(
                f"no_repeat_ngram_size: was {self.no_repeat_ngram_size}, wanted 0 (no limit) or more"
            )
        if not 0 <= self.temperature < float("inf"):
            faults.append(f"temperature: was {self.temperature}, wanted 0 (greedy) or more")
        if self.top_k < 0:
            faults.append(f"top_k: was {self.top_k}, wanted 0 (no limit) or more")
        if not 0 < self.top_p <= 1:
            faults.append(f"top_p: was {self.top_p}, wanted more than 0 and at most 1 (no limit)")
        if not 0 <= self.min_p <= 1:
            faults.append(f"min_p: was {self.min_p}, wanted from 0 (no limit) to 1")
        if faults:
            raise UserError("\n".join(faults))

    def generators(self, rows: Sequence[int], device: torch.device) -> list[torch.Generator]:
        """A source of chance for each row: what a row draws does not depend on which others are beside it."""
        return [torch.Generator(device).manual_seed((self.seed + row) % 2**63) for row in rows]


def filter_logits(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) -> (B, V), float32: scaled by the temperature, and -inf for every token that may not be
    drawn."""
    assert sampling.temperature > 0
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        ascending, order = logits.sort()
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        dropped[:, -1] = False  # the likeliest stays, however little is asked for
        logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    if sampling.min_p > 0:
        probabilities = logits.softmax(-1)
        least = sampling.min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < least, -torch.inf)
    return logits


def sample(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """(B, V) -> (B,): a token for each row, drawn with that row's generator."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    # The largest of log p + Gumbel noise is a draw from p; where p is 0 the sum is -inf, never the largest.
    noise = torch.empty_like(logits, dtype=torch.float32)
    for row, generator in zip(noise, generators, strict=True):
        row.exponential_(generator=generator)
    noise.clamp_(min=torch.finfo(torch.float32).tiny)
    return (filter_logits(logits, sampling) - noise.log()).argmax(-1)
