"""Train a reward model: it scores answers so that better ones score higher.

    tutelage reward --ckpt_paths MODEL --train_data_paths jsonl:pairs.jsonl --output_dir OUT

Data are those of `tutelage dpo`: pairs, or up to 255 ranked answers to a prompt, of which all ordered pairs
count. MODEL loses its language-model head and gets one that gives a score; or it has one and goes on.
OUT/model is what transformers calls ...ForSequenceClassification, with one label; `tutelage reward score OUT`
scores a file with it. Every --sample_freq steps answers to the first held-out prompts are scored.
"""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.errors import UserError
from tutelage.recipes.stage.preferring import PreferenceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardConfig(PreferenceConfig):
    # Loss
    use_margins: bool = False  # the better score must be higher by the record's margin, or scores' difference
    center_rewards_coefficient: float = 0.0  # weight of (better + worse)^2, which holds scores around 0

    def __post_init__(self) -> None:
        PreferenceConfig.__post_init__(self)
        if self.center_rewards_coefficient < 0:
            raise UserError(
                f"center_rewards_coefficient is {self.center_rewards_coefficient}, must be 0 or more"
            )
        if self.sample_prompts:
            raise UserError("sample_prompts are for models that write; held-out answers are scored instead")

    @property
    def has_own_samples(self) -> bool:
        """Answers of the data are scored."""
        return True


def run(config: RewardConfig) -> None:
    """Train by the ranking loss, on a model with a score head."""
    from tutelage.objectives.reward import Ranking
    from tutelage.recipes.stage.preferring import prefer

    objective = Ranking(config.use_margins, config.center_rewards_coefficient)
    prefer(config, "reward", objective, reference=None, scored=True, margins=config.use_margins)
