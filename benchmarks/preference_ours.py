"""Our contestant: the Trainer with what `tutelage dpo` puts into it.

python -m benchmarks.preference_ours ragged|shared full|lora [--share_prompt] [--precomputed]
    [--recompute SHARE] [--tiny]
"""

import argparse
import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import torch

from benchmarks.pace import Finished, Pace
from benchmarks.preference import CASES, METHODS, SEED, Pair, Settings, pairs, settings
from tutelage.allocation import keep_memory
from tutelage.data.batch import Batch, Sample
from tutelage.data.groups import Comparisons
from tutelage.data.loader import Loader
from tutelage.data.ranked import collate_ranked
from tutelage.data.store import SampleStore
from tutelage.model.adapters import LoRASettings, add_lora_
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer, initialise_
from tutelage.objectives.pair_losses import sigmoid
from tutelage.objectives.preference import DPO
from tutelage.recipes.stage.reference import Judge, Reference, annotated, beside
from tutelage.train import optim, precision, surgery
from tutelage.train.trainer import Trainer

FOREVER = 10**9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--share_prompt", action="store_true")
    parser.add_argument("--precomputed", action="store_true")
    parser.add_argument("--recompute", type=float, default=0.0)
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    keep_memory()  # as the command does
    of, pace = settings(tiny=words.tiny), Pace()
    groups = Comparisons(store_of(pairs(words.case, of)), share_prompt=words.share_prompt)
    trainer = trainer_of(of, groups, lora=words.method == "lora", precomputed=words.precomputed)
    surgery.recompute(trainer.model, words.recompute, "block")
    trainer.hooks = [lambda trainer, metrics: pace.step_done()]
    pace.warm_up(1, steps_a_pass=of.pairs // of.micro)
    with suppress(Finished):
        trainer.fit()
    pace.goodbye({"trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)})


def store_of(rows: list[Pair]) -> SampleStore:
    """The pairs as encoding would leave them: two samples a line, the better one first."""
    samples = []
    for pair in rows:
        for answer in (pair.chosen, pair.rejected):
            weights = [0.0] * len(pair.prompt) + [1.0] * len(answer)
            samples.append(Sample(pair.prompt + answer, weights, [0] * len(weights)))
    store = SampleStore.of(samples, kind="ranked")
    lines = np.repeat(np.arange(1, len(rows) + 1), 2)
    ranks, scores = np.tile(np.array([0, 1], np.uint8), len(rows)), np.full(len(samples), np.nan, np.float32)
    store.shards[0] = replace(store.shards[0], lines=lines, ranks=ranks, scores=scores)
    return store


def trainer_of(of: Settings, groups: Comparisons, *, lora: bool, precomputed: bool) -> Trainer:
    """bf16 over float32 masters, fused AdamW: what `recipes/stage/fitting.py` composes."""
    shape = of.model
    config = ModelConfig(
        vocab_size=shape.vocab_size,
        dim=shape.dim,
        ffn_dim=shape.ffn_dim,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        head_dim=shape.dim // shape.n_heads,
        max_positions=of.longest,
        tied=True,
    )
    model = Transformer(config)
    initialise_(model, seed=SEED)
    if lora:
        add_lora_(model, LoRASettings(rank=of.lora_rank, alpha=float(of.lora_alpha)), seed=SEED)
    weights = precision.masters(model, "bf16")
    optimizer = optim.adamw(weights, lr=1e-6, betas=(0.9, 0.999), eps=1e-8, wd=0.0)
    precision.follow(model, weights, optimizer)
    loader = Loader(
        groups,
        length=of.longest,
        rows=of.micro,
        accumulate=1,
        packed=False,
        seed=SEED,
        shuffle=False,
        lay=collate_ranked,
    )
    source = stepped(loader, judge_of(model, lora=lora, precomputed=precomputed), model)
    constant = optim.schedule("constant", steps=FOREVER, warmup=0)
    return Trainer(model, DPO(sigmoid), source, optimizer, constant, steps=FOREVER, clip=1.0)


def judge_of(model: Transformer, *, lora: bool, precomputed: bool) -> Judge:
    if precomputed:
        return lambda batch: torch.full((len(batch.numbers),), -500.0)
    return beside(model, continued=False) if lora else Reference(copy.deepcopy(model).requires_grad_(False))


def stepped(loader: Loader, judge: Judge, model: Transformer) -> Iterator[list[Batch]]:
    return map(annotated(judge, model, torch.device("cpu")), loader)


if __name__ == "__main__":
    main()
