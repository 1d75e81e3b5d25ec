"""Fine-tune a model on conversations: it learns what the assistant says, given all before it.

    tutelage sft --ckpt_paths MODEL --train_data_paths jsonl:chats.jsonl --output_dir OUT

MODEL is a Hugging Face directory, a hub id or a GGUF file; each line of chats.jsonl holds
{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}. The result
lies in OUT/model as a Hugging Face directory: `tutelage chat OUT` talks to it, transformers and vLLM load it.
Killed, the same command with --resume goes on exactly where the newest checkpoint was.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tutelage.recipes.stage.tuning import TuningConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SFTConfig(TuningConfig):
    # Loss
    loss_reduction: Literal["tokens", "sequences"] = (
        "sequences"  # what weighs the same: every token or sample
    )
    allow_unmasked: bool = False  # accept data of which every token, or none, is learned


def run(config: SFTConfig) -> None:
    """Check everything, load, train, export."""
    from tutelage.objectives.language import NextToken
    from tutelage.recipes.stage.adapting import origin, start_of
    from tutelage.recipes.stage.fitting import building_device, device_of, fit
    from tutelage.recipes.stage.handing_over import hand_over
    from tutelage.recipes.stage.preparing import (
        check_model,
        check_resume,
        loaders,
        plan,
        text_of,
        with_roles,
        with_room,
    )
    from tutelage.recipes.stage.run_directory import check_place, open_run
    from tutelage.recipes.stage.watching import Watch, sampler_of

    device = device_of(config)
    check_place(config)
    start = start_of(config, config.ckpt_paths)
    model_config = start.shape()
    tokenizer, template = text_of(start.text, config.template_config)
    check_model(start.base, model_config, tokenizer)
    model_config = with_roles(
        model_config,
        use=config.use_role_embeddings,
        init=config.role_embeddings_init,
        frozen=config.lora,
    )
    training, validation = loaders(
        config,
        tokenizer,
        template,
        reduction=config.loss_reduction,
        too_long=config.too_long,
        allow_unmasked=config.allow_unmasked,
    )
    model_config = with_room(model_config, training.deepest, "sample")
    sampler = sampler_of(config, tokenizer, template, model_config.max_positions)
    blueprint = start.blueprint(config, model_config)
    plan(config, blueprint, training, device)
    check_resume(config, blueprint, training, origin(config, start, blueprint))
    if config.dry_run:
        return
    directory = open_run(config, "sft")
    model = start.load(config, model_config, building_device(device))
    objective = NextToken(fp32_logits=config.fp32_logits, compiled=config.compile)
    watch = Watch(validation, sampler=sampler)
    fitted = fit(
        config, "sft", model, objective, training, watch, directory, origin=origin(config, start, model)
    )
    stops = tuple(sorted({*template.stop_ids(tokenizer), *model_config.eos}))
    hand_over(
        fitted,
        model,
        dataclasses.replace(model_config, eos=stops),
        directory,
        config,
        stage="sft",
        start=start,
        tokenizer=tokenizer,
        template=template,
    )
