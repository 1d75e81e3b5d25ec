"""Our contestant: the Trainer with what `tutelage pretrain` and `tutelage sft` put into it.

python -m benchmarks.ours pretrain15m|pretrain110m|sft [--compile] [--profile] [--tiny]
"""

import argparse
from contextlib import suppress
from typing import Any

import numpy as np

from benchmarks.cases import CASES, ROW, WARM_UP, Settings, chats, documents, settings
from benchmarks.pace import Finished, Pace, peak_mb
from benchmarks.shares import shares_of
from tutelage.allocation import keep_memory
from tutelage.data.batch import Sample
from tutelage.data.loader import Loader
from tutelage.data.store import SampleStore
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer, initialise_
from tutelage.objectives.language import NextToken
from tutelage.train import optim, precision, surgery
from tutelage.train.trainer import Trainer

FOREVER = 10**9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="say where the time of a last step goes")
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    keep_memory()  # as the command does
    of = settings(words.case, tiny=words.tiny)
    pace = Pace()
    loader = chat_data(of) if words.case == "sft" else pretraining_data(of)
    trainer = trainer_of(of, loader, compiled=words.compile)
    trainer.hooks = [lambda trainer, metrics: pace.step_done()]
    pace.warm_up(len(loader) if words.case == "sft" else WARM_UP, steps_a_pass=len(loader))
    facts: dict[str, Any] = {"parameters": sum(p.numel() for p in trainer.model.parameters())}
    with suppress(Finished):
        trainer.fit()
    if words.profile:
        facts |= {"peak_mb": peak_mb(), "shares": shares_of(lambda: trainer.train_step(next(loader)))}
    pace.goodbye(facts)


def pretraining_data(of: Settings) -> Loader:
    """Full rows, so nothing is left to pack well."""
    samples = [Sample(tokens, np.ones(len(tokens)), np.zeros(len(tokens))) for tokens in documents(of)]
    return loader_of(SampleStore.of(samples), length=of.length, rows=of.rows, packed=True)


def chat_data(of: Settings) -> Loader:
    """Chats end to end in one row, without padding between them."""
    samples = [Sample(tokens, learned, np.zeros(len(tokens))) for tokens, learned in chats(of)]
    return loader_of(SampleStore.of(samples), length=ROW, rows=of.micro, packed=False)


def loader_of(store: SampleStore, *, length: int, rows: int, packed: bool) -> Loader:
    return Loader(store, length=length, rows=rows, accumulate=1, packed=packed, seed=0, workers=1)


def trainer_of(of: Settings, loader: Loader, *, compiled: bool) -> Trainer:
    """bf16 over float32 masters, fused AdamW and loss: what `recipes/stage/fitting.py` composes."""
    shape = of.shape
    config = ModelConfig(
        vocab_size=shape.vocab_size,
        dim=shape.dim,
        ffn_dim=shape.ffn_dim,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_heads,
        head_dim=shape.dim // shape.n_heads,
        max_positions=ROW,
        tied=True,
    )
    model = Transformer(config)
    initialise_(model, seed=0)
    weights = precision.masters(model, "bf16")
    if compiled:
        surgery.compile_blocks(model)
    optimizer = optim.adamw(weights, lr=of.lr, betas=of.betas, eps=1e-8, wd=of.wd)
    precision.follow(model, weights, optimizer)
    constant = optim.schedule("constant", steps=FOREVER, warmup=0)
    objective = NextToken(compiled=compiled)
    return Trainer(model, objective, loader, optimizer, constant, steps=FOREVER, clip=of.clip)


if __name__ == "__main__":
    main()
