"""What rows have said so far, and the penalties for saying it again.

B rows   V vocabulary
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.infer.sampling import Sampling


class History:
    """The tokens of each row, prompt included, kept only as far as the penalties of `sampling` ask.

    A step costs B tokens of bookkeeping and one pass over (B, V), however long the rows have become."""

    def __init__(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, vocabulary: int, device: torch.device
    ) -> None:
        self.penalty, self.size = sampling.repetition_penalty, sampling.no_repeat_ngram_size
        self.seen: Tensor | None = None
        if self.penalty != 1:
            self.seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=device)  # (B, V)
            for row, prompt in enumerate(prompts):
                self.seen[row, torch.tensor(prompt, device=device)] = True
        self.rows = [_NGrams(self.size, prompt) for prompt in prompts] if self.size else []

    def penalise(self, logits: Tensor) -> Tensor:
        """(B, V) -> (B, V): less of what was said (CTRL, https://arxiv.org/abs/1909.05858), no n-gram again.

        A logit is divided by the penalty where it is positive and multiplied where it is negative."""
        if self.seen is not None:
            changed = torch.where(logits < 0, logits * self.penalty, logits / self.penalty)
            logits = torch.where(self.seen, changed, logits)
        banned = [(row, token) for row, ngrams in enumerate(self.rows) for token in ngrams.banned()]
        if banned:
            row, token = torch.tensor(banned, device=logits.device).T
            logits = logits.index_put((row, token), logits.new_tensor(-torch.inf))
        return logits

    def add(self, tokens: Tensor) -> None:
        """(B,): the token that each row says now."""
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        for ngrams, token in zip(self.rows, tokens.tolist() if self.rows else (), strict=True):
            ngrams.add(token)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        if self.seen is not None:
            self.seen = self.seen[rows]
        if self.rows:
            self.rows = [self.rows[row] for row in rows.tolist()]


class _NGrams:
    """Which tokens have followed every run of n − 1 tokens in one row."""

    def __init__(self, size: int, tokens: Sequence[int]) -> None:
        self.size = size
        self.last: tuple[int, ...] = ()  # the n - 1 newest tokens
        self.after: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        if len(self.last) == self.size - 1:
            self.after[self.last].add(token)
        self.last = (*self.last, token)[-(self.size - 1) :] if self.size > 1 else ()

    def banned(self) -> set[int]:
        return self.after.get(self.last, set()) if len(self.last) == self.size - 1 else set()
