"""Conversations, documents and stores of them, small enough to follow by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_tokenizer import tiny_tokenizer

from tutelage.data.batch import Sample
from tutelage.data.loader import Loader
from tutelage.data.store import SampleStore
from tutelage.errors import UserError
from tutelage.text.template import Template

TOKENIZER = tiny_tokenizer()
TEMPLATE = Template.load("chatml")
SIZES = np.random.default_rng(5).integers(2, 30, 37).tolist()
OPTIONS = {"length": 32, "rows": 2, "accumulate": 2, "packed": True, "seed": 3}  # of a loader


def chat(question: str = "hi", answer: str = "hello") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def chats(path: Path, conversations) -> str:
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in conversations))
    return str(path)


def refusal(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    return str(error.value)


def store_of(sizes, seed: int = 0) -> SampleStore:
    """Documents of these numbers of tokens, each of its own tokens, about half of them learned."""
    rng = np.random.default_rng(seed)
    samples = []
    for number, n in enumerate(sizes):
        weights = rng.integers(0, 2, n).astype(np.float32)
        weights[-1] = 1
        samples.append(Sample(np.full(n, number + 1), weights, rng.integers(0, 5, n)))
    return SampleStore.of(samples)


def take(loader: Loader, steps: int) -> list[tuple[list[str], list]]:
    return [(loader.last_ids, batches) for batches in (next(loader) for _ in range(steps))]
