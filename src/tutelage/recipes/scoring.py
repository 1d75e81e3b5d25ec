"""What a reward model makes of held-out answers, in words, while it trains."""

from collections.abc import Iterator

import numpy as np
import torch

from tutelage.data.groups import Comparisons
from tutelage.data.ranked import collate_ranked
from tutelage.model.transformer import Transformer
from tutelage.objectives.reward import answer_scores
from tutelage.recipes.watching import Sampler
from tutelage.text.tokenizer import Tokenizer

SHOWN = 2  # prompts whose answers are scored


def scorer_of(groups: Comparisons, tokenizer: Tokenizer) -> Sampler:
    """Scores the answers to the first few prompts, best first as the data has them."""

    @torch.no_grad()
    def sample(model: Transformer) -> list[tuple[str, str]]:
        model.eval()
        rows = []
        for index in range(min(SHOWN, len(groups))):
            stretches = groups.group(index)
            batch = collate_ranked([stretches], sum(stretch.positions for stretch in stretches))
            scores = answer_scores(model, batch.to(next(model.parameters()).device)).tolist()
            texts = list(_texts(groups, index, tokenizer))
            rows += [
                (prompt, f"{score:+.3f} {text}") for score, (prompt, text) in zip(scores, texts, strict=True)
            ]
        return rows

    return sample


def _texts(groups: Comparisons, index: int, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """The prompt and the answer of each answer of a group."""
    for number in groups.answers_of(index):
        sample = groups.store[number]
        tokens, first = np.asarray(sample.tokens), int(np.argmax(np.asarray(sample.weights) > 0))
        yield tokenizer.decode(tokens[:first].tolist()), tokenizer.decode(tokens[first:].tolist())
