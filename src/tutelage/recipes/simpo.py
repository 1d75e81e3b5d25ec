"""Learn which answers are better without a reference: SimPO, by the mean log-probability of a token.

    tutelage simpo --ckpt_paths MODEL --train_data_paths jsonl:pairs.jsonl --simpo_beta 2 --output_dir OUT

Data and results are those of `tutelage dpo`. An answer's length is the number of its learned tokens.
"""

from dataclasses import dataclass

from tutelage.errors import UserError
from tutelage.recipes.stage.preferring import PreferenceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SimPOConfig(PreferenceConfig):
    # Loss
    simpo_beta: float = 1.0  # how steeply the margin counts
    simpo_gamma: float = 1.0  # the margin wanted, in nats a token: the paper's gamma divided by its beta
    rpo_alpha: float = 0.0  # weight of the chosen answers' own loss, by the token, beside the preference

    def __post_init__(self) -> None:
        PreferenceConfig.__post_init__(self)
        problems = [] if self.simpo_beta > 0 else [f"simpo_beta is {self.simpo_beta}, must be above 0"]
        if self.rpo_alpha < 0:
            problems.append(f"rpo_alpha is {self.rpo_alpha}, must be 0 or more")
        if problems:
            raise UserError("\n  ".join(problems))


def run(config: SimPOConfig) -> None:
    """Train by SimPO's loss."""
    from tutelage.objectives.preference import SimPO
    from tutelage.recipes.stage.preferring import prefer

    objective = SimPO(config.simpo_beta, config.simpo_gamma, config.rpo_alpha)
    prefer(config, "simpo", objective, reference=None)
