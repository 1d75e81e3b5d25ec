"""OUT/report.html: a run on one page, its curves drawn from metrics.jsonl; no script, nothing fetched."""

import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# title, unit, and the metrics drawn together, with how each is called
_CURVES = (
    ("Loss", "", {"loss": "training", "val_loss": "held out"}),
    ("Accuracy", "pairs in the data's order", {"accuracy": "training", "val_accuracy": "held out"}),
    ("Margin", "better - worse", {"margin": "training", "val_margin": "held out"}),
    ("Divergence from the reference", "nats a token", {"val_kl": "held out"}),
    ("Learning rate", "", {"lr": "learning rate"}),
    ("Gradient norm", "before clipping", {"grad_norm": "gradient norm"}),
    ("Speed", "tokens a second", {"tokens_per_second": "tokens a second"}),
)
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td{padding:.2rem 1rem .2rem 0;border-bottom:1px solid #ddd}"
    "pre{background:#f6f6f6;padding:1rem;overflow-x:auto}svg{max-width:100%;height:auto}"
)


def write_report(directory: Path, *, title: str, facts: Mapping[str, Any]) -> Path:
    """Draw the run in `directory` from its metrics.jsonl and config.yaml; returns the page's path."""
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    known = {key for row in rows for key in row}
    curves = "".join(
        f"<h2>{name}</h2>{draw(rows, name, unit, keys)}"
        for name, unit, keys in _CURVES
        if known & keys.keys()
    )
    table = "".join(f"<tr><td>{_escape(k)}</td><td>{_escape(v)}</td></tr>" for k, v in facts.items())
    config = _escape((directory / "config.yaml").read_text(encoding="utf-8"))
    page = directory / "report.html"
    page.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{_escape(title)}</h1><table>{table}</table>{curves}"
        f"<h2>Settings</h2><pre>{config}</pre></html>\n",
        encoding="utf-8",
    )
    return page


def draw(rows: list[dict[str, float]], title: str, unit: str, keys: Mapping[str, str]) -> str:
    """The metrics named by `keys` over the steps, as an SVG element."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for key, name in keys.items():
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            few = len(points) < 40
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2, marker="." if few else "")
    axes.set_xlabel("step")
    axes.set_ylabel(unit or title.lower())
    axes.grid(alpha=0.3)
    if len(keys) > 1 and axes.lines:
        axes.legend()
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def _escape(value: Any) -> str:
    return html.escape(str(value))
