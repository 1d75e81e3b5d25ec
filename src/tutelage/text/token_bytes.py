"""How many bytes of text each token stands for: what turns nats a token into bits per byte."""

import json

import numpy as np

from tutelage.text.special_tokens import model_ids
from tutelage.text.tokenizer import Tokenizer


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """(vocabulary,) int64: bytes in UTF-8; 0 for control tokens, which are no text, and unused numbers."""
    vocabulary = json.loads(tokenizer.source)
    byte_level = "ByteLevel" in json.dumps(vocabulary.get("decoder"))  # each character spells one byte
    sizes = np.zeros(tokenizer.size, np.int64)
    for text, token in model_ids(vocabulary).items():
        sizes[token] = len(text) if byte_level else len(text.replace("▁", " ").encode())
    for added in vocabulary["added_tokens"]:
        sizes[added["id"]] = len(added["content"].encode())
    sizes[sorted(tokenizer.byte_tokens)] = 1
    sizes[sorted(tokenizer.control.values())] = 0
    return sizes
