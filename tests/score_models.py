"""Tiny reward models by transformers, and what both programs score."""

import warnings
from copy import deepcopy

import torch
from tiny_models import CONFIGS, positions_of
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tutelage.model.transformer import Transformer


def scorer(name: str, *, seed: int = 0) -> PreTrainedModel:
    """The model of transformers with a score head, every parameter random."""
    config = deepcopy(CONFIGS[name])
    config.num_labels = 1
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in key else 0.0, 0.3)
    return model


def loaded(directory: object) -> PreTrainedModel:
    """The directory as transformers reads it; every weight must be found there, and used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, info = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def as_judge(base: object) -> PreTrainedModel:
    """A language model's directory as PEFT wants it for a reward model: its head is drawn anew."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)


def scores_of(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """(B, T): at every position."""
    with torch.no_grad():
        return model.eval().scores(model(tokens, positions_of(tokens)))


def their_score(model: PreTrainedModel, rows: list[list[int]], pad: int | None) -> torch.Tensor:
    """(B,): of rows padded on the right to one length, as their tokenizers would."""
    length = max(map(len, rows))
    tokens = torch.tensor([row + [pad or 0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask).logits[:, 0]


def our_score(model: Transformer, rows: list[list[int]]) -> torch.Tensor:
    """(B,): of every row, alone, at its last token."""
    return torch.stack([scores_of(model, torch.tensor([row]))[0, -1] for row in rows])
