"""What a race came to, as numbers and as a Markdown table."""

import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.race import Contestant, median_ratio

# Of ours against a peer: at least this many times its speed, at most this share of its memory.
BARS = {
    ("pretrain15m", "transformers.Trainer"): (2.8, 0.3),
    ("sft", "TRL SFTTrainer, padded"): (6.0, 1 / 3),
    ("sft", "TRL SFTTrainer, best-fit packed"): (4.0, 1 / 3),
}


@dataclass(slots=True)
class Case:
    """A race that is over. `tokens` (useful ones) and `flops` are those of a round, the same for all."""

    name: str
    rounds: int
    tokens: int
    flops: float
    contestants: list[Contestant]

    def as_dict(self, clock: str) -> dict[str, Any]:
        """Speeds by medians of the rounds; ratios are medians of the rounds' ratios."""
        ours, *others = self.contestants
        times = {c.name: c.cpu_seconds if clock == "cpu" else c.seconds for c in self.contestants}
        against = {}
        for c in others:
            speed, memory = median_ratio(times[ours.name], times[c.name]), ours.peak_mb / c.peak_mb
            against[c.name] = {"speed": speed, "memory": memory}
            if (self.name, c.name) in BARS:
                least, most = BARS[self.name, c.name]
                against[c.name] |= {
                    "bar": f"{least:.1f}x, {most:.2f}",
                    "met": speed >= least and memory <= most,
                }
        return {
            "case": self.name,
            "rounds": self.rounds,
            "tokens_a_round": self.tokens,
            "contestants": {
                c.name: {
                    "tokens_a_second": self.tokens / statistics.median(times[c.name]),
                    "flops": self.flops / statistics.median(times[c.name]),
                    "peak_mb": c.peak_mb,
                    "seconds": times[c.name],
                    **c.facts,
                }
                for c in self.contestants
            },
            "ours_against": against,
        }


def markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    second = "CPU-second" if report["clock"] == "cpu" else "second"
    key = "flops_a_cpu_second" if report["clock"] == "cpu" else "flops"
    rates = {rate["name"]: rate[key] for rate in report["rates"]}
    peak = next(iter(rates.values()), None)  # the large square comes first
    lines = [report["machine"] + ".", ""]
    for case in report["cases"]:
        lines += _race(case, second, peak)
    if rates:
        lines += [f"| bfloat16 matmul | GFLOP/{second} |", "|---|---|"]
        lines += [f"| {name} | {rate / 1e9:.0f} |" for name, rate in rates.items()]
    return "\n".join(lines) + "\n"


def _race(case: dict[str, Any], second: str, peak: float | None) -> list[str]:
    lines = [
        f"**{case['case']}**, medians of {case['rounds']} rounds of {case['tokens_a_round']} useful tokens:",
        "",
        f"| | tokens/{second} | GFLOP/{second} | of the matmul rate | peak MB | ours is faster by | "
        "ours takes of its memory | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, c in case["contestants"].items():
        against = case["ours_against"].get(name)
        cells = [name, f"{c['tokens_a_second']:,.0f}", f"{c['flops'] / 1e9:.0f}"]
        cells += [f"{c['flops'] / peak:.2f}" if peak else "", f"{c['peak_mb']:,.0f}"]
        cells += [f"{against['speed']:.2f}x", f"{against['memory']:.2f}"] if against else ["", ""]
        verdict = ("met: " if against["met"] else "missed: ") if against and "bar" in against else ""
        lines.append("| " + " | ".join([*cells, verdict + against["bar"] if verdict else ""]) + " |")
    for name, c in case["contestants"].items():
        if "shares" in c:
            lines += ["", f"| where a step of {name} goes | share |", "|---|---|"]
            lines += [f"| {part} | {share:.1%} |" for part, share in c["shares"].items()]
    return [*lines, ""]
