"""The end of a training stage: OUT/model, checked against the model in memory, with a card that says so."""

from pathlib import Path

from tutelage import dist
from tutelage.checkpoint.aside import Beside
from tutelage.checkpoint.note import note_of
from tutelage.checkpoint.tokenizer import beside_model
from tutelage.data.encode import Encoder
from tutelage.model.config import ModelConfig
from tutelage.model.roles import NOTE
from tutelage.model.transformer import Transformer
from tutelage.recipes.saying import say
from tutelage.recipes.stage.adapting import Start, rounding_of
from tutelage.recipes.stage.chain import Chain
from tutelage.recipes.stage.fitting import Fitted
from tutelage.recipes.stage.training import TrainingConfig
from tutelage.recipes.weights.merging import QUESTIONS, merge, ready_to_score
from tutelage.report.page import write_report
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.train.export import export, export_adapter, model_card
from tutelage.train.precision import compute_dtype


def hand_over(
    fitted: Fitted,
    model: Transformer,
    shape: ModelConfig,
    directory: Path,
    config: TrainingConfig,
    *,
    stage: str,
    start: Start | None,
    tokenizer: Tokenizer,
    template: Template | None,
    next_command: str | None = None,
) -> None:
    """Write OUT/model or OUT/adapter and say how exact it is; one that is not what was trained is refused.

    `next_command` is what to go on with, after `tutelage`: by default, to ask the model something.
    """
    if shape.head == "score":
        tokenizer, shape = ready_to_score(tokenizer, template, shape)
    encoder = Encoder(template, tokenizer)
    probes = [encoder.prompt(question) for question in QUESTIONS]
    target = directory / ("adapter" if config.lora else "model")
    chat_template = None if template is None else template.export_jinja(tokenizer)
    beside = beside_model(tokenizer, target, read_from=None, chat_template=chat_template)
    if config.lora:
        assert start is not None
        note = note_of(shape, start.adapters, rounding_of(config))
        gate = export_adapter(
            model,
            fitted.masters,
            target,
            base=start.base_name,
            fingerprint=start.fingerprint,
            rslora=config.lora_rslora,
            probes=probes,
            anew=lambda: start.beside(config, target, shape),
            beside=Beside(lambda folder: (beside.write(folder), note.write(folder)), beside.old),
        )
    else:
        dtype = compute_dtype(config.precision)
        gate = export(model, fitted.masters, shape, target, dtype=dtype, probes=probes, beside=beside)
    if dist.rank():
        return
    base = " + ".join(start.names) if start else "random weights"
    trained = sum(p.numel() for p in fitted.masters.values())
    facts = {"parameters": f"{shape.n_parameters:,}", "trained": f"{trained:,}"}
    facts |= {"optimizer steps": fitted.steps, "precision": config.precision}
    facts |= {name: f"{fitted.last[name]:.4f}" for name in ("loss",) if name in fitted.last}
    facts |= {f"validation {name}": f"{value:.4f}" for name, value in fitted.validation.items()}
    card = model_card(
        title=directory.resolve().name,
        stage=stage,
        base=f"`{base}`",
        facts=facts,
        gate=gate,
        template=template.name if template else "none",
        config=shape,
        adapter_of=start.base_name if config.lora and start else None,
    )
    (target / "README.md").write_text(card, encoding="utf-8")
    shown = {
        "stage": stage,
        "from": base,
        **facts,
        f"{gate.given[:-1]} error of the exported files": f"{gate.logit_error:.3g}",
    }
    say(f"{write_report(directory, title=directory.resolve().name, facts=shown)}: the run in curves")
    asked = f"chat {directory}" if template else f"generate {directory} --raw --prompt ..."
    say(
        f"{target}: read back from disk, {gate.given} differ by {gate.logit_error:.3g}{gate.text}; "
        f"go on with `tutelage {next_command or asked}`"
    )
    if shape.role_embeddings:
        say(f"note: {NOTE}")
    if config.save_merged and start is not None:
        chain, dtype = Chain(start.base, (*start.adapters, target)), compute_dtype(config.precision)
        merge(chain, directory / "model", shape, probes, dtype=dtype, beside=beside, force=config.force)
