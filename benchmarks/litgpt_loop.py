"""litgpt's model in the loop of `litgpt pretrain`: compiled, Fabric's bf16-mixed, its chunked cross-entropy.

    python -m benchmarks.litgpt_loop pretrain15m|pretrain110m [--tiny]

Embeddings are tied, as `--train.tie_embeddings true` does. AdamW is fused, where litgpt asks for that on CUDA
only; its logging and its validation are left out.
"""

import argparse
from contextlib import suppress

import lightning
import torch
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.utils import chunked_cross_entropy

from benchmarks.cases import CASES, WARM_UP, Settings, documents, settings
from benchmarks.pace import Finished, Pace


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=[case for case in CASES if case != "sft"])
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    of, pace = settings(words.case, tiny=words.tiny), Pace()
    model = model_of(of)
    with suppress(Finished):
        train(model, of, pace)
    pace.goodbye({"parameters": sum(p.numel() for p in model.parameters())})


def model_of(of: Settings) -> GPT:
    """A Llama, as litgpt's configurations of Llama models describe one."""
    shape = of.shape
    config = Config(
        block_size=of.length,
        n_layer=shape.n_layers,
        n_embd=shape.dim,
        n_head=shape.n_heads,
        intermediate_size=shape.ffn_dim,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    model.apply(model._init_weights)
    model.transformer.wte.weight = model.lm_head.weight
    return model


def train(model: GPT, of: Settings, pace: Pace) -> None:
    """litgpt/pretrain.py, from `torch.compile` on."""
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    wrapped = fabric.setup(torch.compile(model))
    optimizer = torch.optim.AdamW(
        wrapped.parameters(), lr=of.lr, betas=of.betas, weight_decay=of.wd, fused=True
    )
    optimizer = fabric.setup_optimizers(optimizer)
    batches = torch.from_numpy(documents(of)).split(of.rows)
    pace.warm_up(WARM_UP, steps_a_pass=len(batches))
    while True:
        for rows in batches:
            logits = wrapped(rows[:, :-1].contiguous())
            loss = chunked_cross_entropy(logits, rows[:, 1:].contiguous())
            fabric.backward(loss)
            fabric.clip_gradients(wrapped, optimizer, max_norm=of.clip)
            optimizer.step()
            optimizer.zero_grad()
            pace.step_done()


if __name__ == "__main__":
    main()
