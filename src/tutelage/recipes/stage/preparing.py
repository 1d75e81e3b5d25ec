"""What a training stage can check before weights load: the model's files, the text, the data, the plan."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from tutelage import dist
from tutelage.checkpoint.hf import check_files
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.data.loader import Lay, Loader
from tutelage.data.order import Groups
from tutelage.data.pack import collate
from tutelage.data.store import SampleStore
from tutelage.data.streaming import Streaming
from tutelage.data.streams import TokenStreams
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.score import refuse_score_head
from tutelage.model.transformer import Transformer
from tutelage.recipes.saying import say
from tutelage.recipes.stage.fitting import loader_words
from tutelage.recipes.stage.pretokenized import ShardSettings, open_shards, shard_directories
from tutelage.recipes.stage.quantizing import quantization_of
from tutelage.recipes.stage.reading import encoded, stream
from tutelage.recipes.stage.training import TrainingConfig
from tutelage.recipes.stage.vocabulary import check_vocabulary
from tutelage.recipes.stage.watching import total_steps
from tutelage.report.trained_table import trained_table
from tutelage.text.jinja_template import template_of
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.train.plan import standing
from tutelage.train.precision import load_dtype
from tutelage.train.saver import check_fits, complete, read_state

_PREVIEWED = 64  # rows of shards that the preview is drawn from


def text_of(model: Path, template_config: str | None) -> tuple[Tokenizer, Template]:
    """The model's tokenizer, and the template that was named or that the model's own is."""
    tokenizer = load_tokenizer(model)
    template = template_of(tokenizer, template_config)
    say(f"chat template: {template.name}" + ("" if template_config else " (recognised as the model's own)"))
    return tokenizer, template


def check_model(model: Path, config: ModelConfig, tokenizer: Tokenizer, *, writes: bool = True) -> None:
    """Refuse weights that do not fit their config, a tokenizer that does not fit the model, and a score head
    where the stage is for a model that `writes`.
    """
    if writes:
        refuse_score_head(config, model)
    check_files(model)
    check_vocabulary(model, config.vocab_size, tokenizer)


def with_roles(base: ModelConfig, *, use: bool, init: str, frozen: bool = False) -> ModelConfig:
    """The shape that is trained: with role embeddings if they are asked for, or if the base has them."""
    if base.role_embeddings:
        unused = f"; --role_embeddings_init {init} has no use" if init != "zeros" else ""
        how = (
            "stay as they are: --use_role_embeddings trains them too"
            if frozen and not use
            else "are trained further"
        )
        say(f"role embeddings: the model has them already, and they {how}{unused}")
        return base
    if use:
        say(f"role embeddings: a fresh table, {init}")
        return replace(base, role_embeddings=True, role_embeddings_init=init)
    return base


def loaders(
    config: TrainingConfig,
    tokenizer: Tokenizer,
    template: Template | None,
    *,
    reduction: Literal["tokens", "sequences"],
    too_long: Literal["truncate", "drop", "split"],
    allow_unmasked: bool,
    shards: ShardSettings | None = None,
) -> tuple[Loader, Loader | None]:
    """The training data and, if there is any, the held-out data, encoded, cut, counted aloud and batched."""

    def read(split: str) -> SampleStore | TokenStreams | Streaming:
        if split == "train" and config.streaming:
            return stream(config, tokenizer, template, too_long=too_long, allow_unmasked=allow_unmasked)
        paths = config.train_data_paths if split == "train" else config.val_data_paths
        if directories := shard_directories(paths):
            return open_shards(config, shards or ShardSettings(), directories, tokenizer, split)
        if split == "train" and shards is not None and shards.packing != "auto":
            raise UserError(
                "shard_packing says how rows are made of shards, and these paths are none: run "
                "`tutelage data build pretrain` on each of them, or leave the flag out"
            )
        return encoded(config, tokenizer, template, split, too_long=too_long, allow_unmasked=allow_unmasked)

    def batched(store: SampleStore | TokenStreams | Streaming, *, training: bool) -> Loader:
        return loader_of(config, store, length=config.max_seq_len, training=training, reduction=reduction)

    store = dist.rank_zero_first(lambda: read("train"))
    _preview(config, store, tokenizer)
    training = batched(store, training=True)
    if not config.val_data_paths:
        return training, None
    held_out = dist.rank_zero_first(lambda: read("val"))
    return training, batched(held_out, training=False)


def loader_of(
    config: TrainingConfig,
    store: Groups | TokenStreams | Streaming,
    *,
    length: int,
    training: bool,
    reduction: Literal["tokens", "sequences"] = "tokens",
    lay: Lay = collate,
) -> Loader:
    """This process's steps of a data set: endless and shuffled for training, else once and in order."""
    loader = Loader(
        store,
        length=length,
        rows=config.micro_batch_size_per_gpu,
        accumulate=config.gradient_accum_steps if training else 1,
        packed=config.pack_samples,
        seed=config.seed,
        rank=dist.rank(),
        world=dist.world_size(),
        reduction=reduction,
        shuffle=training,
        workers=config.num_loader_workers if training else 0,
        epochs=None if training else 1,
        weights=config.train_data_weights if training else (),
        lay=lay,
    )
    unit = "rows" if config.pack_samples else config.unit
    for path, (share, passes) in zip(config.train_data_paths, loader.passes, strict=False):
        say(f"train data: {path}: {share:.1%} of the {unit}, {passes:.1f} passes an epoch")
    return loader


def with_room(shape: ModelConfig, deepest: int, what: str) -> ModelConfig:
    """The shape with room for documents of so many positions; says so where it had less."""
    if deepest <= shape.max_positions:
        return shape
    say(
        f"the longest {what} has {deepest:,} positions and the model was made for "
        f"{shape.max_positions:,}: its config will say {deepest:,}"
    )
    return replace(shape, max_positions=deepest)


def plan(config: TrainingConfig, blueprint: Transformer, loader: Loader, device: torch.device) -> None:
    """Say what the run will be before it starts."""
    steps, model = total_steps(config, loader), blueprint.config
    trained = sum(p.numel() for p in blueprint.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in blueprint.parameters()) - trained
    each = f" on each of {dist.world_size()} processes" if dist.world_size() > 1 else ""
    parts = standing(
        blueprint,
        config.precision,
        muon=config.optimizer == "muon",
        averaged=bool(config.ema_decay),
        state=config.optimizer_state,
        released=config.gradient_release,
        quantization=quantization_of(config.quant, config.quant_double),
    )
    memory = sum(parts.values()) / 2**30 / dist.world_size()
    size = f"{memory:.2f} GiB" if memory >= 0.1 else f"{memory * 1024:.1f} MiB"
    say(
        f"model: {model.family}, {model.n_parameters:,} parameters, {config.precision} on {device}: weights, "
        f"gradients and optimizer take {size}{each}, activations come on top"
    )
    if frozen:
        say(trained_table(blueprint))
    if config.lora_init == "pissa" and config.precision != "fp32":
        say(
            "note: in 16 bits pissa rounds the largest part of each layer's output; --precision fp32 is exact"
        )
    if config.lora and config.lr == TrainingConfig.__dataclass_fields__["lr"].default:
        say(f"note: --lr {config.lr:g} suits whole models; adapters usually take about ten times as much")
    if config.lr_scheduler != "constant" and config.warmup(steps) >= steps:
        say(f"the rate only rises: the warm-up is {config.warmup(steps):,} steps, and the run {steps:,}")
    made_of = loader_words(config, loader)
    epoch = "read while training" if loader.endless else f"{loader.steps_per_epoch(0):,} an epoch"
    say(f"plan: {steps:,} optimizer steps of {made_of}, {epoch}")


_ORIGINS = {  # what a checkpoint does not hold
    "base": "from another model than ckpt_paths, or seed, give now",
    "quant": "on weights quantized in another way",
    "adapters": "with other scales of its adapters (lora_alpha, lora_rslora)",
    "reference": "against another reference than ckpt_paths, or ref_ckpt_paths, give now",
}


def check_resume(
    config: TrainingConfig, blueprint: Transformer, loader: Loader, begun: dict[str, str] | None
) -> None:
    """Say what --resume goes on from; refuse a checkpoint of another model, of other data or past the end.

    `begun` is what this run has that checkpoints do not hold: an `origin`.
    """
    if not config.resume:
        return
    directory = config.output_dir / "checkpoints"
    whole = complete(directory)
    torn = sorted(path.name for path in directory.glob("step-*") if path not in whole)
    if torn:
        say(f"{directory}: {', '.join(torn)} is not whole and is passed over")
    if not whole:
        say(f"{directory} holds no whole checkpoint: nothing to resume, the run starts at step 1")
        return
    tensors = {
        f"model.{name}": torch.empty(p.shape, dtype=load_dtype(config.precision), device="meta")
        for name, p in blueprint.named_parameters()
        if p.requires_grad
    }
    check_fits(whole[-1], tensors, kinds=("model.",))
    state, steps = read_state(whole[-1]), total_steps(config, loader)
    was, now = state.get("origin") or {}, begun or {}
    for name, words in _ORIGINS.items():
        if was.get(name) != now.get(name):
            raise UserError(
                f"{whole[-1]} was trained {words}; resume with the settings in the run's config.yaml, "
                "or start anew with --overwrite"
            )
    loader.restore(state["data"])
    if state["step"] > steps:
        raise UserError(
            f"{whole[-1]} is past the end of this run, which has {steps} steps; give --train_steps or "
            "--train_epochs as before or higher, or start anew with --overwrite"
        )
    say(f"resuming from {whole[-1]}")


def _preview(
    config: TrainingConfig, store: SampleStore | TokenStreams | Streaming, tokenizer: Tokenizer
) -> None:
    if config.no_visualize_dataset or dist.rank():
        return
    from tutelage.report.inspect import preview

    if isinstance(store, TokenStreams):
        store = store.beginning(_PREVIEWED * config.max_seq_len)
    elif isinstance(store, Streaming):
        store = store.beginning()
    preview(store, tokenizer, samples=1, seed=config.seed)
