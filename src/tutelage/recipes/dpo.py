"""Learn which answers are better, held to a reference model: DPO and its relatives.

    tutelage dpo --ckpt_paths MODEL --train_data_paths jsonl:pairs.jsonl --dpo_beta 0.1 --output_dir OUT

Each line of pairs.jsonl holds {"prompt": "...", "chosen": "...", "rejected": "..."}, two conversations
{"chosen": [messages], "rejected": [messages]}, or {"prompt", "answers"} from best to worst; for --loss kto
also {"prompt", "completion", "label"}, the label true or false. The reference is the model as it begins: a
frozen copy; with --lora the model without its adapters; with --precompute_reference read once, so that
training holds one model. OUT/model, or OUT/adapter, as from sft. Every --sample_freq steps the first held-out
prompts are answered, or --sample_prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tutelage.errors import UserError
from tutelage.objectives.loss_names import REFERENCE_FREE, SELF_NORMALISED, SMOOTHED, LossName
from tutelage.recipes.stage.preferring import PreferenceConfig

if TYPE_CHECKING:
    from tutelage.objectives.base import Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class DPOConfig(PreferenceConfig):
    # Loss
    loss: LossName = "sigmoid"
    """sigmoid is DPO, hinge RSO's; orpo and cpo have no reference; kto takes answers with a label too"""
    dpo_beta: float = 0.1  # how closely the policy is held to the reference
    dpo_label_smoothing: float = 0.0  # chance that a label is wrong: of sigmoid, robust, exo and cpo
    by_length: bool = False  # divide every log-probability by the tokens of its answer
    rpo_alpha: float | None = (
        None  # weight of the chosen answers' own loss; default: 1 for orpo and cpo, else 0
    )
    desirable_weight: float = 1.0  # of liked answers, for kto
    undesirable_weight: float = 1.0  # of the others, for kto

    # Reference
    ref_ckpt_paths: tuple[str, ...] = ()  # the model to be held to; default: the one training starts from
    precompute_reference: bool = False  # read it once over all data, kept in cache_dir: one model in memory

    def __post_init__(self) -> None:
        PreferenceConfig.__post_init__(self)
        problems = [
            f"{name} is {value}, must be {words}"
            for name, value, right, words in (
                ("dpo_beta", self.dpo_beta, self.dpo_beta > 0, "above 0"),
                (
                    "dpo_label_smoothing",
                    self.dpo_label_smoothing,
                    *_smoothing_of(self.loss, self.dpo_label_smoothing),
                ),
                ("rpo_alpha", self.rpo_alpha, (self.rpo_alpha or 0) >= 0, "0 or more"),
                ("desirable_weight", self.desirable_weight, self.desirable_weight >= 0, "0 or more"),
                ("undesirable_weight", self.undesirable_weight, self.undesirable_weight >= 0, "0 or more"),
            )
            if not right
        ]
        if self.loss in REFERENCE_FREE and (self.ref_ckpt_paths or self.precompute_reference):
            problems.append(
                f"loss {self.loss} has no reference; leave out ref_ckpt_paths, precompute_reference"
            )
        if self.by_length and self.loss in {*SELF_NORMALISED, "kto"}:
            problems.append(f"by_length does nothing for loss {self.loss}; leave it out")
        if self.loss == "kto" and self.rpo_alpha:
            problems.append("rpo_alpha is for pairs, and kto takes answers one by one; leave it out")
        if self.loss != "kto" and (self.desirable_weight, self.undesirable_weight) != (1.0, 1.0):
            problems.append("desirable_weight and undesirable_weight are for loss kto; leave them out")
        if problems:
            raise UserError("\n  ".join(problems))


def _smoothing_of(loss: str, value: float) -> tuple[bool, str]:
    """Whether a loss may have this label smoothing, and what it wants."""
    if loss == "exo":
        return 0 < value < 0.5, "between 0 and 0.5 for exo, say 0.001"
    if loss in SMOOTHED:
        return 0 <= value < 0.5, "from 0 up to, not with, 0.5"
    return value == 0, f"0: loss {loss} has none"


def run(config: DPOConfig) -> None:
    """Choose the loss and train."""
    from tutelage.recipes.stage.preferring import prefer
    from tutelage.recipes.stage.reference import HeldTo

    reference = HeldTo(config.ref_ckpt_paths, config.precompute_reference)
    held_to = None if config.loss in REFERENCE_FREE else reference
    prefer(config, "dpo", objective_of(config), reference=held_to, alone=config.loss == "kto")


def objective_of(config: DPOConfig) -> Objective:
    """The loss that the settings name."""
    from tutelage.objectives.pair_losses import LOSSES
    from tutelage.objectives.preference import DPO, KTO

    if config.loss == "kto":
        return KTO(config.dpo_beta, config.desirable_weight, config.undesirable_weight)
    alpha = config.rpo_alpha
    return DPO(
        LOSSES[config.loss],
        beta=config.dpo_beta,
        smoothing=config.dpo_label_smoothing,
        by_length=config.by_length or config.loss == "orpo",  # whose rewards are by the token too
        nll=float(config.loss in REFERENCE_FREE) if alpha is None else alpha,
    )
