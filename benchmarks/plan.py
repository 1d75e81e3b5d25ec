"""How far plans are from what runs take: estimates beside measured peaks on this CPU, and published ones.

    python -m benchmarks.plan [--only NAME ...]      estimated and measured peak memory, a process for each
    python -m benchmarks.plan --published            the table of the documents, beside plans of the same runs

A measured peak is the most resident memory of a process that builds the trainer and takes two steps, less
what it held before it built the model, when it had taken two of a tiny one: Python, and all of the
libraries that a step loads. Every tensor has pages of its own there. The command itself keeps what is freed,
which is faster (`allocation.py`), and malloc loses much between tensors of many sizes: the third column.
"""

import argparse
import gc
import json
import re
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.race import ROOT, environment
from tutelage.allocation import keep_memory
from tutelage.config import load
from tutelage.model.config import ModelConfig
from tutelage.model.presets import PRESETS
from tutelage.model.transformer import initialise_
from tutelage.objectives.language import NextToken
from tutelage.recipes.estimating import batch_of, built, plan_of, shape_of
from tutelage.recipes.plan import PlanPretrainConfig
from tutelage.train.devices import device_named

_SMALL = "--model smollm2-135m --max_seq_len"
CASES = {
    "15M bf16": "--model stories15M",
    "15M fp32": "--model stories15M --precision fp32",
    "15M bf16, documents of 100": "--model stories15M --document_tokens 100 --gradient_accum_steps 2",
    "42M bf16, EMA": "--model stories42M --ema_decay 0.999 --micro_batch_size_per_gpu 16",
    "42M bf16, Muon": "--model stories42M --optimizer muon --micro_batch_size_per_gpu 16",
    "42M bf16, moments in 8 bits": "--model stories42M --optimizer_state 8bit --micro_batch_size_per_gpu 8",
    "135M bf16": f"{_SMALL} 512 --micro_batch_size_per_gpu 2",
    "135M bf16, LoRA": "--ckpt_paths smollm2-135m --lora --max_seq_len 512 --micro_batch_size_per_gpu 2",
    "135M bf16, QLoRA": "--ckpt_paths smollm2-135m --lora --quant nf4 --max_seq_len 512 "
    "--micro_batch_size_per_gpu 2",
    "135M bf16, released": f"{_SMALL} 512 --micro_batch_size_per_gpu 1 --selective_ac_ratio 1 "
    "--gradient_release --clip_grad_norm 0",
    "135M fp32, recomputed": f"{_SMALL} 512 --micro_batch_size_per_gpu 2 --precision fp32 "
    "--selective_ac_ratio 1",
    "135M bf16_pure, recomputed": f"{_SMALL} 1024 --micro_batch_size_per_gpu 2 --precision bf16_pure "
    "--selective_ac_ratio 1",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", help="cases of which the name contains one of these")
    parser.add_argument("--kept", action="store_true", help="also as the command runs")
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        if words.kept:
            keep_memory()
        print(json.dumps(measure(words.measure.split())))
        return
    if words.published:
        from benchmarks.published import compare

        compare()
        return
    print(
        "| | estimated MB | measured MB | estimate / measured | as the command runs |\n|---|---|---|---|---|"
    )
    for name, flags in CASES.items():
        if not words.only or any(word in name for word in words.only):
            estimated, measured = estimate(flags.split()), in_own_process(flags, kept=False)
            row = f"| {name} | {estimated:,.0f} | {measured:,.0f} | {estimated / measured:.2f} |"
            print(row + (f" {in_own_process(flags, kept=True):,.0f} |" if words.kept else ""), flush=True)


def estimate(flags: list[str]) -> float:
    """MB that a plan says."""
    config = _config(flags)
    return plan_of(config, shape_of(config), device_named("cpu", None)).estimate.peak / 1e6


def in_own_process(flags: str, *, kept: bool) -> float:
    """MB that a run takes, tensors in pages of their own or, as the command does, freed memory kept."""
    command = [sys.executable, "-m", "benchmarks.plan", f"--measure={flags}", *(["--kept"] if kept else [])]
    own = environment(1) | ({} if kept else {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)})
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)["mb"]


def measure(flags: list[str]) -> dict[str, Any]:
    """Train as the flags say, after a tiny model, and tell the most memory it took above that."""
    config = _config(flags)
    small = replace(config, max_seq_len=64, micro_batch_size_per_gpu=2, document_tokens=None)
    _train(small, PRESETS["stories260K"])
    gc.collect()
    before = _resident()
    _train(config, shape_of(config))
    return {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 * 1.024 - before}


def _train(config: PlanPretrainConfig, shape: ModelConfig) -> None:
    """Two steps on random tokens."""
    assembled = built(config, shape, NextToken(fp32_logits=config.fp32_logits), iter(()))
    initialise_(assembled.trainer.model, seed=0)
    for buffer in assembled.trainer.model.buffers():
        buffer.zero_()  # codes of nothing, and scales that are numbers
    assembled.follow()
    batch, _ = batch_of(config)
    batch.tokens.random_(shape.vocab_size)
    batch.targets.random_(shape.vocab_size)
    for _ in range(2):
        assembled.trainer.train_step([batch] * config.gradient_accum_steps)


def _config(flags: list[str]) -> PlanPretrainConfig:
    return load("plan pretrain", PlanPretrainConfig, flags)


def _resident() -> float:
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1.024e-3


if __name__ == "__main__":
    main()
