"""Tiny models of llama2.c's shape, and a vocabulary as its tinystories.py trains it."""

import io
import json
from functools import cache
from random import Random

import numpy as np
import sentencepiece
import torch

from tutelage.data.stories.plots import story
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer
from tutelage.text.sentencepiece_file import tokenizer_json
from tutelage.text.tokenizer import Tokenizer


def tiny(vocab_size: int = 61, **changes) -> Transformer:
    shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 8, "ffn_dim": 40}
    config = ModelConfig(
        **{"vocab_size": vocab_size, "max_positions": 64, "bos": 1, "eos": (2, 1), **shape, **changes}
    )
    torch.manual_seed(1)
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.3)
    return model.eval()


def logits(model: Transformer, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        hidden = model(torch.tensor([tokens]), torch.arange(len(tokens))[None])
        return model.unembed(hidden)[0].numpy()


@cache
def pieces() -> sentencepiece.SentencePieceProcessor:
    """A vocabulary as llama2.c's tinystories.py trains it, on generated stories."""
    rng, made = Random(0), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([story(rng).text for _ in range(300)]),
        model_writer=made,
        model_type="bpe",
        vocab_size=500,
        character_coverage=1.0,
        split_digits=True,
        byte_fallback=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,  # as in Llama 2's vocabulary; run.c has no such step
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())


@cache
def piece_tokenizer() -> Tokenizer:
    """Ours, of the same pieces."""
    made, settings = tokenizer_json(pieces().serialized_model_proto())
    return Tokenizer(json.dumps(made), settings)
