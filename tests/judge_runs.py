"""A run of a model with a score head, composed as a recipe composes one, in one process or under torchrun.

torchrun --nproc_per_node 2 tests/judge_runs.py MATERIAL OUT SETTINGS.json
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_runs import Material

from tutelage import dist
from tutelage.data.batch import Batch
from tutelage.model.score import with_score_head
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import Loss
from tutelage.recipes.sft import SFTConfig
from tutelage.recipes.stage.adapting import origin, start_of
from tutelage.recipes.stage.fitting import fit
from tutelage.recipes.stage.handing_over import hand_over
from tutelage.recipes.stage.preparing import check_model, check_resume, loaders, plan, text_of
from tutelage.recipes.stage.run_directory import open_run
from tutelage.recipes.stage.watching import Watch


@dataclasses.dataclass(frozen=True)
class Even:
    """A toy of a reward: learned positions of even tokens are to score 1, those of odd ones -1."""

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        hidden = model(batch.tokens, batch.positions, batch.docs, roles=batch.roles)
        wanted = 1.0 - 2.0 * (batch.tokens % 2)
        total = ((model.scores(hidden) - wanted) ** 2 * batch.weights).sum()
        return Loss(total, batch.weights.sum(), {"loss": total.detach()})


def settings_of(made: Material, out: Path, **settings: Any) -> SFTConfig:
    """Those of a run of four steps in float32, and what `settings` change."""
    chosen: dict[str, Any] = {"ckpt_paths": (str(made.model),), "train_steps": 4, "lr": 1e-2} | settings
    return SFTConfig(
        output_dir=out,
        train_data_paths=(made.chats,),
        cache_dir=made.place / "cache",
        **{"precision": "fp32", "max_seq_len": 64, "save_freq": 2, "device": "cpu"} | chosen,
        no_visualize_dataset=True,
    )


def judge(made: Material, out: Path, **settings: Any) -> Path:
    """A whole run, as `sft` composes one, of a model with a score head."""
    config = settings_of(made, out, **settings)
    start = start_of(config, config.ckpt_paths)
    shape = with_score_head(start.shape())
    tokenizer, template = text_of(start.text, "chatml")
    check_model(start.base, shape, tokenizer, writes=False)
    training, _ = loaders(
        config, tokenizer, template, reduction="sequences", too_long="truncate", allow_unmasked=False
    )
    blueprint, device = start.blueprint(config, shape), torch.device("cpu")
    plan(config, blueprint, training, device)
    check_resume(config, blueprint, training, origin(config, start, blueprint))
    directory = open_run(config, "sft")
    model = start.load(config, shape, device)
    fitted = fit(
        config, "sft", model, Even(), training, Watch(), directory, origin=origin(config, start, model)
    )
    hand_over(
        fitted,
        model,
        shape,
        directory,
        config,
        stage="reward",
        start=start,
        tokenizer=tokenizer,
        template=template,
        next_command="score OUT",
    )
    return out


def main(place: str, out: str, settings: str) -> None:
    """The run, in this process and those that torchrun began with it."""
    dist.start()
    judge(Material(Path(place)), Path(out), **json.loads(settings))
    dist.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
