"""The bfloat16 matmul rate of this machine, at a large square and at the shapes of the pretraining steps.

python -m benchmarks.rates [--tiny]
"""

import argparse
import json
import statistics
import time

import torch

from benchmarks.cases import settings


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    square = 64 if tiny else 4096
    shapes = {"square": (square, square, square)}
    for case in ("pretrain15m", "pretrain110m"):
        of = settings(case, tiny=tiny)
        shape, positions = of.shape, of.rows * of.length
        shapes |= {
            f"{case}: attention projection": (positions, shape.dim, shape.dim),
            f"{case}: feed-forward, in": (positions, shape.dim, shape.ffn_dim),
            f"{case}: feed-forward, out": (positions, shape.ffn_dim, shape.dim),
            f"{case}: head, 512 positions": (512, shape.dim, shape.vocab_size),
            f"{case}: head's gradient, 512 positions": (shape.vocab_size, 512, shape.dim),
        }
    for name, (n, k, m) in shapes.items():
        rates = [rate(n, k, m, clock) for clock in (time.perf_counter, time.process_time)]
        words = {"name": f"{name} ({n} x {k} x {m})", "flops": rates[0], "flops_a_cpu_second": rates[1]}
        print(json.dumps(words), flush=True)


def rate(n: int, k: int, m: int, clock, *, tries: int = 5) -> float:
    """Median floating-point operations a second of an (n, k) by (k, m) product into a tensor that exists."""
    a, b = torch.randn(n, k).bfloat16(), torch.randn(k, m).bfloat16()
    out = torch.empty(n, m, dtype=torch.bfloat16)
    again = min(max(1, int(1e10 / (2 * n * k * m))), 1000)  # long enough for the clock
    seconds = []
    for _ in range(1 + tries):  # the first one warms up
        started = clock()
        for _ in range(again):
            torch.mm(a, b, out=out)
        seconds.append(clock() - started)
    return 2 * n * k * m * again / statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
