"""Say what a model is, whether its files are whole, how it will be talked to, and what may go wrong with it.

    tutelage doctor MODEL
    tutelage doctor MODEL --deep --json
    tutelage doctor outputs/sft

MODEL is whatever `generate` takes: a directory, a run's --output_dir, a .gguf or another model file, a hub
id; adapters may follow. Where transformers is installed and the model fits into memory twice over, its
tokens and logits are compared with those of transformers; --no_compare leaves that out. --deep reads every
weight. The exit code is 0 where nothing has to be mended, else 2; notes mend nothing but may surprise.
"""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorConfig:
    ckpt_paths: tuple[str, ...]  # a model of any kind that is read; then adapters
    tokenizer: str | None = None  # directory or tokenizer.bin of the tokenizer; default: the model's own
    template_config: str | None = None  # chat template: a built-in name or a file; default: the model's own
    deep: bool = False  # read every weight: find what is no number, and a tied head that is not the embedding
    compare: bool = True  # compare with transformers where it is installed and the model is small enough
    json: bool = False  # print one JSON object instead of a table

    def __post_init__(self) -> None:
        if not self.ckpt_paths:
            raise UserError("ckpt_paths names no model")


def run(config: DoctorConfig) -> None:
    """Examine, print, and exit with 2 where something has to be mended."""
    import json

    from rich.console import Console

    from tutelage.recipes.weights.comparing import compare
    from tutelage.recipes.weights.examining import adapters, model, run_directory, whole_chain
    from tutelage.recipes.weights.examining_text import text
    from tutelage.report.health import Health, show

    health = Health(" ".join(config.ckpt_paths))
    run_directory(health, config.ckpt_paths[0])
    chain = whole_chain(health, config.ckpt_paths)
    if chain is not None:
        shape, source = model(health, chain, deep=config.deep)
        adapters(health, chain, shape)
        tokenizer, template = text(health, chain, shape, config.tokenizer, config.template_config)
        if config.compare and shape is not None and source is not None:
            compare(health, chain, shape, tokenizer, template)
    if config.json:
        print(json.dumps(health.record(), ensure_ascii=False))
    else:
        show(health, Console())
    if health.problems:
        several = "s have" if health.problems > 1 else " has"
        raise UserError(f"{health.problems} problem{several} to be mended; the remedies are named above")
