"""nanoGPT's CPU setting on tiny shakespeare: a plain GPT-2 loop as nanoGPT's beside `tutelage pretrain`.

    python -m benchmarks.shakespeare tiny_shakespeare.txt [--output runs/shakespeare] [--rounds 1]

Character level, 4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, no dropout; the last tenth
of the text is held out and validation reads all of it. Contestants take turns, one thread each, and what
counts is the CPU time of their whole processes, imports, data and compilation included.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

B, T, D, LAYERS, HEADS, STEPS = 12, 64, 128, 4, 4, 2000
LR, FLOOR, WARMUP, BETAS, WD, CLIP = 1e-3, 0.1, 100, (0.9, 0.99), 0.1, 1.0
SHARED = f"--dim {D} --n_layers {LAYERS} --n_heads {HEADS} --max_seq_len {T} --micro_batch_size_per_gpu {B}"
SHARED += f" --lr {LR} --min_lr_ratio {FLOOR} --warmup_steps {WARMUP} --betas {BETAS[0]} {BETAS[1]} --wd {WD}"
SHARED += f" --clip_grad_norm {CLIP} --save_freq 10000 --print_freq 500 --no_visualize_dataset --overwrite"
# Steps of a vocabulary whose tokens are longer see as much text.
VOCABULARIES = {"char": "--algorithm char", "bpe": "--vocab_size 512"}


def main() -> None:
    words = _words()
    if words.plain:
        print(json.dumps(plain(words.output, seed=words.plain)))
        return
    words.output.mkdir(parents=True, exist_ok=True)
    text = words.text.read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    (words.output / "train.txt").write_text(text[:cut], encoding="utf-8")
    (words.output / "val.txt").write_text(text[cut:], encoding="utf-8")
    for name, flags in VOCABULARIES.items():
        data = f"--train_data_paths document:{words.output}/train.txt --overwrite"
        _run(
            "tutelage",
            *f"tokenizer train {data} {flags} --output_dir {words.output}/{name}-tokenizer".split(),
        )
    rows = []
    for number in range(1, words.rounds + 1):
        rows += [
            _plain_row(words, number),
            _our_row(words, "char", f"--train_steps {STEPS} --seed {number}"),
            _our_row(words, "char", f"--train_steps {STEPS} --seed {number} --compile"),
        ]
    rows.append(_our_row(words, "bpe", f"--train_tokens {_tokens(words, 'bpe')} --seed 1"))
    (words.output / "results.json").write_text(json.dumps(rows, indent=1) + "\n")
    draw(words.output)
    print("| | parameters | validation, nats a token | bits per byte | CPU seconds |\n|---|---|---|---|---|")
    for row in rows:
        cells = (f"{row['parameters']:,}", f"{row['loss']:.3f}", f"{row['bits']:.3f}", f"{row['cpu']:.0f}")
        print(f"| {row['name']} | " + " | ".join(cells) + " |")


def draw(directory: Path) -> None:
    """Write curves.svg: held-out bits per byte of both vocabularies over the text that was read."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for kind in VOCABULARIES:
        rows = [json.loads(line) for line in (directory / kind / "metrics.jsonl").read_text().splitlines()]
        held_out = [row for row in rows if "val_bits_per_byte" in row]
        share = [row["step"] / rows[-1]["step"] * STEPS * B * T / 1e6 for row in held_out]
        axes.plot(share, [row["val_bits_per_byte"] for row in held_out], label=kind, marker=".")
    axes.set(xlabel="million characters read", ylabel="held-out bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(directory / "curves.svg", metadata={"Date": None})


def plain(directory: Path, *, seed: int) -> dict[str, float]:
    """GPT-2 of the same size in float32, trained as nanoGPT does on CPU; returns its numbers."""
    torch.manual_seed(seed)
    texts = {name: (directory / f"{name}.txt").read_text(encoding="utf-8") for name in ("train", "val")}
    characters = {c: i for i, c in enumerate(sorted(set("".join(texts.values()))))}
    tokens = {name: np.array([characters[c] for c in text], np.int64) for name, text in texts.items()}
    model = _GPT(len(characters))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": WD}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step)
        reads, targets = _draw(tokens["train"])
        model(reads, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        parts = [(model(reads, targets).item(), len(reads)) for reads, targets in _in_order(tokens["val"])]
    loss = sum(value * rows for value, rows in parts) / sum(rows for _, rows in parts)
    return {"loss": loss, "parameters": sum(p.numel() for p in model.parameters())}


class _GPT(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab_size, D), nn.Embedding(T, D)
        self.blocks = nn.ModuleList(_Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(D, bias=False)
        for name, p in self.named_parameters():
            if p.ndim >= 2:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * LAYERS) if "_out" in name else 0.02)

    def forward(self, reads: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(reads) + self.places(torch.arange(reads.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)
        self.qkv, self.attention_out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down_out = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, _ = x.shape
        q, k, v = (
            part.view(rows, length, HEADS, D // HEADS).transpose(1, 2)
            for part in self.qkv(self.norm_1(x)).split(D, dim=2)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(seen.transpose(1, 2).reshape(rows, length, D))
        return x + self.down_out(F.gelu(self.up(self.norm_2(x))))


def _rate(step: int) -> float:
    if step < WARMUP:
        return LR * step / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return LR * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)


def _draw(tokens: np.ndarray) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(tokens) - T, (B,)).tolist()
    rows = torch.from_numpy(np.stack([tokens[start : start + T + 1] for start in starts]))
    return rows[:, :-1], rows[:, 1:]


def _in_order(tokens: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    count = (len(tokens) - 1) // T
    reads, targets = (torch.from_numpy(tokens[at : at + count * T]).view(count, T) for at in (0, 1))
    return zip(reads.split(64), targets.split(64), strict=True)


def _plain_row(words: argparse.Namespace, seed: int) -> dict[str, float | str]:
    command = ["-m", "benchmarks.shakespeare", str(words.text), "--output", str(words.output)]
    out, seconds = _run(sys.executable, *command, "--plain", str(seed))
    told = json.loads(out.splitlines()[-1])
    return {"name": "as nanoGPT", **told, "bits": told["loss"] / math.log(2), "cpu": seconds}


def _our_row(words: argparse.Namespace, kind: str, flags: str) -> dict[str, float | str]:
    run = words.output / kind
    data = f"--tokenizer {run}-tokenizer --train_data_paths document:{words.output}/train.txt"
    data += f" --val_data_paths document:{words.output}/val.txt --val_freq 250 --output_dir {run}"
    _, seconds = _run("tutelage", *f"pretrain {data} {SHARED} {flags}".split())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    card = (run / "model" / "README.md").read_text()
    parameters = next(line.split("|")[2] for line in card.splitlines() if line.startswith("| parameters"))
    name = f"tutelage, {kind}" + (", --compile" if "--compile" in flags else "")
    last = rows[-1]
    numbers = {"loss": last["val_loss"], "bits": last["val_bits_per_byte"], "cpu": seconds}
    return {"name": name, "parameters": int(parameters.replace(",", "")), **numbers}


def _tokens(words: argparse.Namespace, kind: str) -> int:
    """As many tokens as hold the text that the characters' steps see."""
    from tutelage.text.tokenizer import Tokenizer

    text = (words.output / "train.txt").read_text(encoding="utf-8")
    return round(
        len(Tokenizer.load(words.output / f"{kind}-tokenizer").encode(text)) / len(text) * STEPS * B * T
    )


def _run(program: str, *words: str) -> tuple[str, float]:
    """What a command prints, and the CPU seconds of its process."""
    command = [sys.executable, "-m", "tutelage"] if program == "tutelage" else [program]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([*command, *words], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds:.0f} CPU seconds, {time.perf_counter() - started:.0f} in all", file=sys.stderr)
    return done.stdout, seconds


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shakespeare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", type=Path, help="tiny_shakespeare.txt")
    parser.add_argument("--output", type=Path, default=Path("runs/shakespeare"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--plain", type=int, help=argparse.SUPPRESS
    )  # the seed of the plain loop, in a process
    return parser.parse_args()


if __name__ == "__main__":
    main()
