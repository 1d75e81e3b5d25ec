"""What a race came to, as numbers and as a Markdown table."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks.race import Contestant, median_ratio

# Of ours against a peer: at least this many times its speed, at most this share of its memory.
ANY = math.inf
BARS = {
    ("pretrain15m", "transformers.Trainer"): (2.8, 0.3),
    ("pretrain110m", "transformers.Trainer"): (1.4, ANY),
    ("pretrain110m", "transformers.Trainer, memory kept"): (1.4, ANY),
    ("sft", "TRL SFTTrainer, padded"): (6.0, 1 / 3),
    ("sft", "TRL SFTTrainer, best-fit packed"): (4.0, 1 / 3),
}
# The same against whichever peer of a case turns out the fastest.
FASTEST = {"pretrain15m": (1.2, 1.0), "pretrain110m": (1.0, ANY)}


@dataclass(slots=True)
class Case:
    """A race that is over, in heats. `tokens` (useful ones) and `flops` are those of anyone's round."""

    name: str
    tokens: int
    flops: float
    heats: list[list[Contestant]]  # ours first in each

    def as_dict(self, clock: str) -> dict[str, Any]:
        """Speeds by medians of the rounds; ratios are medians of the rounds' ratios, within a heat."""
        against, everyone = {}, {}
        for ours, *others in self.heats:
            for c in others:
                speed = median_ratio(ours.times(clock), c.times(clock))
                memory = ours.peak_mb / c.peak_mb
                against[c.name] = {"speed": speed, "memory": memory}
                if (self.name, c.name) in BARS:
                    against[c.name] |= _judged(speed, memory, BARS[self.name, c.name])
            for c in (ours, *others):
                everyone.setdefault(c.name, []).append(c)
        report = {
            "case": self.name,
            "rounds": min(len(heat[0].seconds) for heat in self.heats),
            "tokens_a_round": self.tokens,
            "contestants": {name: self._speeds(runs, clock) for name, runs in everyone.items()},
            "ours_against": against,
        }
        if self.name in FASTEST:
            name, least = min(against.items(), key=lambda named: named[1]["speed"])
            verdict = _judged(least["speed"], least["memory"], FASTEST[self.name])
            report["fastest"] = {"name": name, "speed": least["speed"], "memory": least["memory"], **verdict}
        return report

    def _speeds(self, runs: list[Contestant], clock: str) -> dict[str, Any]:
        """Over all heats that one contestant ran in."""
        seconds = [time for run in runs for time in run.times(clock)]
        return {
            "tokens_a_second": self.tokens / statistics.median(seconds),
            "flops": self.flops / statistics.median(seconds),
            "peak_mb": max(run.peak_mb for run in runs),
            "seconds": seconds,
            **runs[0].facts,
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
    if "fastest" in case:
        of = case["fastest"]
        lines += [
            "",
            f"Of the peers the fastest is {of['name']}: ours is {of['speed']:.2f} times as fast and takes ",
        ]
        lines[-1] += f"{of['memory']:.2f} of its memory ({'met' if of['met'] else 'missed'}: {of['bar']})."
    for name, c in case["contestants"].items():
        if "shares" in c:
            lines += ["", f"| where a step of {name} goes | share |", "|---|---|"]
            lines += [f"| {part} | {share:.1%} |" for part, share in c["shares"].items()]
    return [*lines, ""]


def _judged(speed: float, memory: float, bar: tuple[float, float]) -> dict[str, Any]:
    least, most = bar
    words = f"{least:.1f}x" if most == ANY else f"{least:.1f}x, {most:.2f}"
    return {"bar": words, "met": speed >= least and memory <= most}
