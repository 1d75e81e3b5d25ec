"""What a model makes of held-out prompts, in words, while it trains: it answers them, or scores answers."""

from collections.abc import Iterator

import numpy as np
import torch

from tutelage.data.groups import Comparisons, prompt_length
from tutelage.data.ranked import collate_ranked
from tutelage.model.transformer import Transformer
from tutelage.objectives.reward import answer_scores
from tutelage.recipes.stage.training import TrainingConfig
from tutelage.recipes.stage.watching import Sampler, answering
from tutelage.text.pieces import Encoded
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

SHOWN = 2  # prompts


def answerer_of(
    config: TrainingConfig, groups: Comparisons, tokenizer: Tokenizer, template: Template, context: int
) -> Sampler:
    """Answers the first few prompts that leave room for an answer."""
    prompts: list[Encoded] = []
    for index in range(len(groups)):
        sample = groups.store[groups.answers_of(index)[0]]
        end = prompt_length(sample)
        if len(prompts) == SHOWN:
            break
        if 0 < end < context:
            tokens, roles = (np.asarray(values[:end]).tolist() for values in (sample.tokens, sample.roles))
            prompts.append(Encoded(tokens, [0.0] * end, roles))
    shown = [tokenizer.decode(prompt.tokens) for prompt in prompts]
    return answering(config, tokenizer, template, shown, prompts)


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
        tokens, end = np.asarray(sample.tokens), prompt_length(sample)
        yield tokenizer.decode(tokens[:end].tolist()), tokenizer.decode(tokens[end:].tolist())
