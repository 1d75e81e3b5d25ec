"""The end of a training stage: OUT/model, checked against the model in memory, with a card that says so."""

from pathlib import Path

from tutelage import dist
from tutelage.data.encode import Encoder
from tutelage.model.config import ModelConfig
from tutelage.model.roles import NOTE
from tutelage.model.transformer import Transformer
from tutelage.recipes.fitting import Fitted
from tutelage.recipes.preparing import say
from tutelage.report.page import write_report
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.train.export import export, model_card
from tutelage.train.precision import Precision, stored_dtype

_QUESTIONS = ("What is the capital of France?", "Write a short story about a rabbit.", "Grüße! 你好 👋")


def hand_over(
    fitted: Fitted,
    model: Transformer,
    config: ModelConfig,
    directory: Path,
    *,
    stage: str,
    base: str,
    tokenizer: Tokenizer,
    template: Template | None,
    precision: Precision,
) -> None:
    """Write OUT/model and say how exact it is; a model that is not the trained one is refused."""
    target, encoder = directory / "model", Encoder(template, tokenizer)
    gate = export(
        model,
        fitted.masters,
        config,
        target,
        dtype=stored_dtype(precision),
        probes=[encoder.prompt(question) for question in _QUESTIONS],
    )
    if dist.rank():
        return
    tokenizer.save(target, chat_template=None if template is None else template.export_jinja(tokenizer))
    facts = {
        "parameters": f"{config.n_parameters:,}",
        "optimizer steps": fitted.steps,
        "precision": precision,
    }
    facts |= {name: f"{fitted.last[name]:.4f}" for name in ("loss",) if name in fitted.last}
    facts |= {f"validation {name}": f"{value:.4f}" for name, value in fitted.validation.items()}
    card = model_card(
        title=directory.resolve().name,
        stage=stage,
        base=f"`{base}`",
        facts=facts,
        gate=gate,
        template=template.name if template else "none",
        config=config,
    )
    (target / "README.md").write_text(card, encoding="utf-8")
    shown = {
        "stage": stage,
        "from": base,
        **facts,
        "logit error of the exported files": f"{gate.logit_error:.3g}",
    }
    say(f"{write_report(directory, title=directory.resolve().name, facts=shown)}: the run in curves")
    next_command = f"chat {directory}" if template else f"generate {directory} --raw --prompt ..."
    say(
        f"{target}: read back from disk, logits differ by {gate.logit_error:.3g}, greedy text is equal; "
        f"go on with `tutelage {next_command}`"
    )
    if config.role_embeddings:
        say(f"note: {NOTE}")
