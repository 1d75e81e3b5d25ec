"""Learning from pairs of answers: pairs a second and peak memory of DPO, for a model of SmolLM2-135M's shape.

    python -m benchmarks.preference [--only ragged shared] [--methods full lora] [--precomputed]
        [--recompute SHARE] [--rounds 1] [--threads 2] [--clock wall|cpu] [--peers PYTHON]
        [--minutes 4] [--tiny]

A round is a pass over the pairs. PYTHON is an interpreter that has what benchmarks/requirements.txt names.
The weights are random: learned ones take as long. On a machine that does other things, one thread and CPU
time (--threads 1 --clock cpu) still mean something; wall time does not. With --recompute
activations are formed again in the backward pass: ours of this share of the blocks, TRL's of all, which is
its default.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.race import Contestant, median_ratio, race

SEED = 0
CASES = {
    "ragged": "rows of 64 to 512 tokens, the first third of the shorter answer's a prompt",
    "shared": "rows of 512 tokens, of which both answers share the first 384",
}
METHODS = ("full", "lora")


@dataclass(frozen=True, slots=True)
class Model:
    """A Llama with tied embeddings; the default is SmolLM2-135M: 134,515,008 parameters."""

    dim: int = 576
    n_layers: int = 30
    n_heads: int = 9
    n_kv_heads: int = 3
    ffn_dim: int = 1536
    vocab_size: int = 49152


@dataclass(frozen=True, slots=True)
class Settings:
    """A run small enough for a smoke test, or the one that is reported."""

    model: Model = Model()
    longest: int = 512
    shortest: int = 64
    pairs: int = 4  # a pass, and always in this order: any two steps after each other are one
    micro: int = 2  # pairs a step
    lora_rank: int = 16  # on every linear layer of the blocks
    lora_alpha: int = 32


REPORTED = Settings()
TINY = Settings(Model(32, 2, 4, 2, 48, 61), longest=24, shortest=8, pairs=4, lora_rank=2)


@dataclass(frozen=True, slots=True)
class Pair:
    """Random tokens: what both rows begin with, and the two ends."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def settings(*, tiny: bool) -> Settings:
    return TINY if tiny else REPORTED


def pairs(case: str, of: Settings) -> list[Pair]:
    """The same for every contestant."""
    draw = np.random.default_rng(SEED)
    made = []
    for _ in range(of.pairs):
        if case == "shared":
            chosen = rejected = of.longest
            prompt = of.longest * 3 // 4
        else:
            chosen, rejected = draw.integers(of.shortest, of.longest + 1, 2)
            prompt = min(chosen, rejected) // 3
        lengths = (prompt, chosen - prompt, rejected - prompt)
        made.append(Pair(*(draw.integers(3, of.model.vocab_size, n).tolist() for n in lengths)))
    return made


def contestants(
    case: str, method: str, peers: str, *, precomputed: bool, recompute: float, tiny: bool
) -> list[Contestant]:
    """Each keeps the pace of benchmarks/pace.py and takes a case and a method."""
    words = [case, method, *(["--tiny"] if tiny else [])]
    trl = [peers, "-m", "benchmarks.preference_peer", *words, *(["--recompute"] if recompute else [])]
    ours = [sys.executable, "-m", "benchmarks.preference_ours", *words, "--recompute", str(recompute)]
    field = [
        Contestant("tutelage", ours),
        Contestant("tutelage --share_prompt", [*ours, "--share_prompt"]),
        Contestant("TRL DPOTrainer", trl),
    ]
    if precomputed:
        field.insert(2, Contestant("tutelage, reference known before", [*ours, "--precomputed"]))
        field.append(Contestant("TRL DPOTrainer, reference known before", [*trl, "--precomputed"]))
    return field


def row(contestant: Contestant, n_pairs: int, clock: str) -> str:
    """A line of the table; `n_pairs` are those of a round."""
    seconds = statistics.median(contestant.times(clock))
    return f"| {contestant.name} | {n_pairs / seconds:.3f} | {contestant.peak_mb:,.0f} |"


def verdict(contestant: Contestant, peer: Contestant, clock: str) -> str:
    """How many times as fast as the peer, round by round, and with what share of its memory."""
    ratio = median_ratio(contestant.times(clock), peer.times(clock))
    return (
        f"{contestant.name}: {ratio:.2f} x {peer.name}, {contestant.peak_mb / peer.peak_mb:.2f} of its memory"
    )


def main() -> None:
    words = _words()
    of, deadline = settings(tiny=words.tiny), time.monotonic() + 60 * words.minutes
    heats = [(case, method) for case in words.only for method in words.methods]
    for number, (case, method) in enumerate(heats):
        field = contestants(
            case,
            method,
            words.peers,
            precomputed=words.precomputed,
            recompute=words.recompute,
            tiny=words.tiny,
        )
        print(f"{case}, {method}: {CASES[case]}", flush=True)
        # Each heat may use as much of the time as leaves those after it theirs.
        end = time.monotonic() + (deadline - time.monotonic()) / (len(heats) - number)
        race(field, rounds=words.rounds, steps=None, threads=words.threads, deadline=end)
        print(f"\n| {case}, {method} | pairs a second ({words.clock}) | peak MB |\n|---|---|---|")
        print("\n".join(row(each, of.pairs, words.clock) for each in field), flush=True)
        peer = next(each for each in field if each.name.startswith("TRL"))
        ours = [each for each in field if each.name.startswith("tutelage")]
        print("\n".join(["", *(verdict(each, peer, words.clock) for each in ours), ""]), flush=True)


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--precomputed", action="store_true", help="also with the reference known before")
    parser.add_argument("--recompute", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--tiny", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
