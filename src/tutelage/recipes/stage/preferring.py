"""What the stages share that learn which answers are better: their settings, their data, the run itself."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from tutelage.errors import UserError
from tutelage.recipes.stage.tuning import TuningConfig

if TYPE_CHECKING:
    from tutelage.data.groups import Comparisons
    from tutelage.data.loader import Loader
    from tutelage.model.config import ModelConfig
    from tutelage.objectives.base import Objective
    from tutelage.recipes.stage.reference import HeldTo
    from tutelage.text.template import Template
    from tutelage.text.tokenizer import Tokenizer

SHARED_WORTH_TELLING = 0.15  # of all positions, that sharing prompts would save


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceConfig(TuningConfig):
    unit: ClassVar[str] = "prompts with their answers"

    # Data
    train_data_paths: tuple[str, ...]
    """jsonl:FILE, local:DIR, hub ids with prompt, chosen, rejected; chosen, rejected; or prompt, answers"""
    share_prompt: bool = False  # compute what the answers to a prompt begin with once for all of them

    def __post_init__(self) -> None:
        TuningConfig.__post_init__(self)
        if self.streaming:
            raise UserError("streaming is for sft and pretrain; answers are compared of a whole data set")

    @property
    def has_own_samples(self) -> bool:
        """Held-out prompts are answered where there are any."""
        return bool(self.val_data_paths)


@dataclass(slots=True)
class Data:
    """One data set of comparisons, and how to load it."""

    groups: Comparisons
    config: PreferenceConfig
    alone: bool  # whether answers count one by one

    def loader(self, *, training: bool) -> Loader:
        """Its steps, endless and shuffled for training; else once, in order."""
        from tutelage.data.ranked import collate_ranked, collate_with_strays
        from tutelage.recipes.stage.preparing import loader_of

        length = max(self.config.max_seq_len, int(self.groups.positions.max()))
        lay = partial(collate_with_strays, self.groups) if self.alone else collate_ranked
        return loader_of(self.config, self.groups, length=length, training=training, lay=lay)


def comparisons(
    config: PreferenceConfig,
    tokenizer: Tokenizer,
    template: Template,
    *,
    scored: bool = False,
    alone: bool = False,
    margins: bool = False,
) -> tuple[Data, Data | None]:
    """The training data and, if there is any, the held-out data, counted aloud and one of it shown.

    With `scored` answers are judged by their last token; with `alone` they count one by one, and a record may
    have a single one; with `margins` some record must say by how much an answer is better.
    """
    from tutelage import dist
    from tutelage.data.groups import Comparisons
    from tutelage.recipes.saying import say
    from tutelage.recipes.stage.reading import encoded

    def read(split: str, first: int = 0) -> Data:
        store = encoded(config, tokenizer, template, split, too_long=config.too_long, ranked=True)
        groups = Comparisons(store, share_prompt=config.share_prompt, scored=scored, first=first)
        if not alone and (lonely := groups.sizes == 1).any():
            raise UserError(
                f"{groups.id(int(lonely.argmax()))} has one answer and a label, and nothing to compare it "
                "with; that is for `tutelage dpo --loss kto`"
            )
        if margins and split == "train" and not groups.margins_known:
            paths = ", ".join(config.train_data_paths)
            raise UserError(
                f"use_margins does nothing: no record of {paths} has a margin, or scores of its answers"
            )
        say(f"{split} data: {len(groups):,} prompts, {groups.n_answers:,} answers")
        return Data(groups, config, alone)

    training = dist.rank_zero_first(lambda: read("train"))
    _show_one(config, training.groups, tokenizer)
    if not config.share_prompt and (saved := training.groups.shared) > SHARED_WORTH_TELLING:
        say(f"note: {saved:.0%} of the positions are prompts that answers share: --share_prompt saves them")
    if not config.val_data_paths:
        return training, None
    first = training.groups.n_numbers
    held_out = dist.rank_zero_first(lambda: read("val", first))
    return training, held_out


def _show_one(config: PreferenceConfig, groups: Comparisons, tokenizer: Tokenizer) -> None:
    from tutelage import dist

    if config.no_visualize_dataset or dist.rank():
        return
    from tutelage.report.inspect import preview

    preview(groups.store, tokenizer, chosen=groups.answers_of(config.seed % len(groups)))


def _advise(config: PreferenceConfig, shape: ModelConfig, reference: HeldTo | None, *, scored: bool) -> None:
    """Say what the plan does not: what a second model takes, and which rates preferences want."""
    from tutelage import dist
    from tutelage.recipes.saying import say
    from tutelage.train.precision import compute_dtype

    if reference and reference.stands_beside(config):
        size = shape.n_parameters * compute_dtype(config.precision).itemsize / dist.world_size() / 2**20
        amount = f"{size / 1024:.2f} GiB" if size >= 100 else f"{size:.1f} MiB"
        say(f"reference: a second model takes {amount} more; --precompute_reference reads it once instead")
    if not scored and not config.lora and config.lr == PreferenceConfig.__dataclass_fields__["lr"].default:
        say(
            f"note: preferences usually want a tenth of --lr {config.lr:g} or less; whole models 5e-7 to 5e-6"
        )


def prefer(
    config: PreferenceConfig,
    stage: str,
    objective: Objective,
    *,
    reference: HeldTo | None,
    alone: bool = False,
    scored: bool = False,
    margins: bool = False,
) -> None:
    """Check everything, load, train, export. With a `reference` batches say what it makes of answers.

    With `alone` answers count one by one; with `scored` a model is trained that judges them, with `margins`
    by as much as records say.
    """
    from tutelage.model.score import with_score_head
    from tutelage.recipes.stage.adapting import origin, start_of
    from tutelage.recipes.stage.fitting import building_device, device_of, fit
    from tutelage.recipes.stage.handing_over import hand_over
    from tutelage.recipes.stage.preparing import (
        check_model,
        check_resume,
        plan,
        text_of,
        with_roles,
        with_room,
    )
    from tutelage.recipes.stage.reference import beginning_of, fingerprint_of_reference
    from tutelage.recipes.stage.run_directory import check_place, open_run
    from tutelage.recipes.stage.scoring import answerer_of, scorer_of
    from tutelage.recipes.stage.watching import Watch, sampler_of

    device = device_of(config)
    check_place(config)
    start = start_of(config, config.ckpt_paths)
    model_config = start.shape()
    tokenizer, template = text_of(start.text, config.template_config)
    check_model(start.base, model_config, tokenizer, writes=not scored)
    model_config = with_roles(
        model_config,
        use=config.use_role_embeddings,
        init=config.role_embeddings_init,
        frozen=config.lora,
    )
    model_config = with_score_head(model_config) if scored else model_config
    training, held_out = comparisons(config, tokenizer, template, scored=scored, alone=alone, margins=margins)
    loader = training.loader(training=True)
    model_config = with_room(model_config, loader.deepest, "answer with its prompt")
    shown, context = (held_out or training).groups, model_config.max_positions
    sampler = scorer_of(shown, tokenizer) if scored else sampler_of(config, tokenizer, template, context)
    if sampler is None and held_out is not None:
        sampler = answerer_of(config, shown, tokenizer, template, context)
    blueprint = start.blueprint(config, model_config)
    plan(config, blueprint, loader, device)
    _advise(config, model_config, reference, scored=scored)
    begun = origin(config, start, blueprint) or {}
    if reference:
        begun["reference"] = fingerprint_of_reference(config, reference)
    check_resume(config, blueprint, loader, begun)
    if config.dry_run:
        return
    directory = open_run(config, stage)
    model = start.load(config, model_config, building_device(device))
    watch = Watch(held_out and held_out.loader(training=False), likelihood=False, sampler=sampler)
    known = begun.get("reference", "")
    begin = None if scored else beginning_of(config, training, held_out, device, reference, known)
    fitted = fit(config, stage, model, objective, loader, watch, directory, origin=begun, begin=begin)
    stops = tuple(sorted({*template.stop_ids(tokenizer), *model_config.eos}))
    hand_over(
        fitted,
        model,
        dataclasses.replace(model_config, eos=stops),
        directory,
        config,
        stage=stage,
        start=start,
        tokenizer=tokenizer,
        template=template,
        next_command=f"reward score {directory} --input FILE.jsonl" if scored else None,
    )
