"""From a model, an objective and a loader to a trained model: what all training recipes share."""

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tutelage import dist
from tutelage.data.batch import Batch
from tutelage.data.loader import Loader
from tutelage.errors import Interrupted, UserError, no_room
from tutelage.model.adapters import holding, settle_
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import Objective
from tutelage.recipes.stage.assembling import assemble
from tutelage.recipes.stage.pretokenized import shard_directories
from tutelage.recipes.stage.run_directory import note_settings
from tutelage.recipes.stage.saving_memory import needs_gpu
from tutelage.recipes.stage.training import TrainingConfig
from tutelage.recipes.stage.watching import (
    Annotate,
    Annotated,
    Beginning,
    Reporter,
    Watch,
    mfu_per_rate,
    recall,
    total_steps,
    writers_of,
)
from tutelage.report.progress import ProgressBar
from tutelage.train import parallel
from tutelage.train.ema import EMA
from tutelage.train.interrupt import Signals
from tutelage.train.saver import Saver, complete, newest, read_state
from tutelage.train.trainer import Hook, Metrics, NonFiniteLossError, Trainer, every

_ROWS_NAMED = 20  # of a step that cannot be trained on


@dataclass(slots=True)
class Fitted:
    """What a run leaves behind: its result by name, and the numbers of its last step and validation."""

    masters: Mapping[str, Tensor]  # what was trained, float32; with --ema_decay, in the end, its averages
    steps: int
    last: Metrics
    validation: Metrics
    average: EMA | None  # of the weights


def device_of(config: TrainingConfig) -> torch.device:
    """The device that the settings mean, of several GPUs this process's; refuses one that is not there."""
    if config.device == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = _named(config)
    if device.type == "cpu" and (words := needs_gpu(config)):
        raise UserError(words)
    return _mine(device, config)


def _named(config: TrainingConfig) -> torch.device:
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise UserError(f"device {config.device} is no device: cuda, cuda:1, cpu or auto") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {config.device} is none that training runs on: cuda, cuda:1, cpu or auto")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but torch sees no GPU; --device cpu trains without one")
    return device


def _mine(device: torch.device, config: TrainingConfig) -> torch.device:
    """The device itself, or of several GPUs this process's; what it cannot do is refused."""
    if device.type != "cuda":
        return device
    if dist.world_size() > 1 and device.index is not None:
        raise UserError(f"device {device} is one GPU for all processes; give --device cuda, and each has one")
    number = dist.local_rank() if dist.world_size() > 1 else device.index or 0
    if number >= torch.cuda.device_count():
        raise UserError(
            f"there is no GPU {number}: this machine has {torch.cuda.device_count()}; start fewer processes "
            "(--nproc_per_node), or give --device cpu"
        )
    torch.cuda.set_device(number)
    if config.precision.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"{torch.cuda.get_device_name()} has no bfloat16; --precision fp16 is for such GPUs")
    return torch.device("cuda", number)


def building_device(device: torch.device) -> torch.device:
    """Where a run's model is built: several processes build it in main memory, and each takes its share."""
    return torch.device("cpu") if dist.world_size() > 1 else device


def fit(
    config: TrainingConfig,
    stage: str,
    model: Transformer,
    objective: Objective,
    loader: Loader,
    watch: Watch,
    directory: Path,
    *,
    origin: dict[str, str] | None = None,
    begin: Callable[[Transformer], Beginning] | None = None,
) -> Fitted:
    """Train to the end, or save and raise Interrupted at a signal. Resumes if the settings say so.

    `origin` is what checkpoints do not hold and their weights need again. `begin` is given the model before
    any step, as it computes, and says what comes of that.
    """
    torch.manual_seed(config.seed + dist.rank())  # of dropout
    steps = total_steps(config, loader)
    beginning, source = Beginning(), Annotated(loader)
    run = assemble(config, model, objective, source, steps=steps, device=device_of(config))
    trainer, average = run.trainer, run.average
    saver = Saver(
        directory / "checkpoints", run.weights, run.optimizer, keep=config.max_checkpoints, extra=run.extra
    )
    fitted = Fitted({**run.weights, **run.fixed}, steps, {}, {}, average)
    checkpoint = newest(saver.directory) if config.resume else None
    first = {}  # values of what is trained, where a checkpoint will replace them
    if checkpoint is not None:
        if begin is not None:
            first = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        state = saver.load(checkpoint)
        trainer.step = state["step"]
        loader.restore(state["data"])
        fitted.last, fitted.validation = recall(directory / "metrics.jsonl", trainer.step)
        dist.by_rank_zero(lambda: note_settings(config, stage))  # not before: it may have been refused
    settle_(model)
    run.follow()
    if begin is not None:
        with holding(model, first):
            beginning = begin(model)
        source.annotate = beginning.annotate
        parallel.reshard(model)
        del first  # as much as what is trained takes
    try:
        with ExitStack() as stack:
            stack.callback(loader.close)
            _train(config, trainer, loader, saver, watch, directory, fitted, stack, origin, beginning)
    except NonFiniteLossError as error:
        raise UserError(_non_finite(error, config, loader, saver, trainer.step)) from error
    except OSError as error:
        if (why := no_room(error)) is None:
            raise
        raise saver.full_disk(why, f"the numbers of step {trainer.step}") from error
    if average:
        average.copy_into(model)
        fitted.masters = {**average.weights(), **run.fixed}
    return fitted


def _train(
    config: TrainingConfig,
    trainer: Trainer,
    loader: Loader,
    saver: Saver,
    watch: Watch,
    directory: Path,
    fitted: Fitted,
    stack: ExitStack,
    origin: dict[str, str] | None,
    beginning: Beginning,
) -> None:
    """Rehearse, then train under a progress bar, with writers and signals that `stack` closes."""
    bar = stack.enter_context(
        ProgressBar(steps=trainer.steps, done=trainer.step, print_freq=config.print_freq)
    )
    if trainer.step:
        bar.say(f"resumed at step {trainer.step} of {trainer.steps}")
    if trainer.step < trainer.steps:
        _rehearse(trainer, loader.longest(), beginning.annotate, bar)
    else:
        saver.prune()  # a kill may have come between the last save and this
    writers = writers_of(config, directory, trainer.step)
    for writer in writers:
        stack.callback(writer.close)
    again = "; again stops at once" if dist.world_size() == 1 else ""
    signals = stack.enter_context(
        Signals(lambda received: bar.say(f"{received.name}: this step ends and is saved{again}"))
    )
    reporter = Reporter(
        config=config,
        watch=watch,
        bar=bar,
        writers=writers,
        directory=directory,
        beginning=beginning,
        average=fitted.average,
        mfu_per_rate=mfu_per_rate(config, trainer.model, loader, trainer.device),
        last=fitted.last,
        validated=fitted.validation,
    )
    trainer.hooks = [reporter, *_hooks(config, loader, saver, bar, signals, origin)]
    trainer.fit()
    fitted.last, fitted.validation = reporter.last, reporter.validated


def loader_words(config: TrainingConfig, loader: Loader) -> str:
    """What an optimizer step is made of, in words."""
    unit = f"rows of {loader.row_length}" if config.pack_samples else config.unit
    return f"{config.micro_batch_size_per_gpu} {unit} x {config.gradient_accum_steps} micro-batches"


def _hooks(
    config: TrainingConfig,
    loader: Loader,
    saver: Saver,
    bar: ProgressBar,
    signals: Signals,
    origin: dict[str, str] | None,
) -> list[Hook]:
    def save(trainer: Trainer, metrics: Metrics) -> None:
        saver.save(trainer.step, {"data": loader.state(), "origin": origin})

    def stop(trainer: Trainer, metrics: Metrics) -> None:
        if received := dist.largest(signals.received or 0):
            save(trainer, metrics)
            name = signal.Signals(received).name
            bar.say(f"{name}: saved at step {trainer.step}; --resume goes on from there")
            raise Interrupted(received)

    def save_last(trainer: Trainer, metrics: Metrics) -> None:
        if trainer.step == trainer.steps:
            save(trainer, metrics)
            saver.prune()

    def prune(trainer: Trainer, metrics: Metrics) -> None:
        saver.prune()

    return [prune, every(config.save_freq, save), save_last, stop]


def _rehearse(trainer: Trainer, batches: list[Batch], annotate: Annotate, bar: ProgressBar) -> None:
    """A step on the longest rows, without effect: memory that will not do fails here and not hours later."""
    shape = "x".join(map(str, batches[0].tokens.shape))
    dist.together(lambda: _try(trainer, batches, annotate, shape))
    bar.say(f"dry step on the longest rows ({shape}) done")


def _try(trainer: Trainer, batches: list[Batch], annotate: Annotate, shape: str) -> None:
    try:
        trainer.rehearse(annotate(batches))
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"not enough memory for the longest micro-batch ({shape}); lower --micro_batch_size_per_gpu (and "
            "raise --gradient_accum_steps to match), lower --max_seq_len, or raise --selective_ac_ratio"
        ) from error


def _non_finite(
    error: NonFiniteLossError, config: TrainingConfig, loader: Loader, saver: Saver, step: int
) -> str:
    whole = complete(saver.directory)
    proved = [path for path in whole if read_state(path)["step"] < step]
    kept = f"the last good checkpoint is {proved[-1]}" if proved else "there is no good checkpoint before it"
    if len(whole) > len(proved):
        kept += (
            f"; {whole[-1]} was made just before and may be spoiled: remove it unless the rows are to blame"
        )
    ids = [name for each in dist.gathered(loader.last_ids) for name in each]
    places = [_place(name, config.train_data_paths) for name in ids]
    look = "Look at these rows with `tutelage data show`; "
    if shard_directories(config.train_data_paths):
        look = "The numbers are those of documents in the shards, and of tokens in them; "
    rows = ", ".join(places[:_ROWS_NAMED]) + (", ..." if len(places) > _ROWS_NAMED else "")
    harm = "the weights were not touched"
    if error.spoiled:
        harm = "it moved the weights before it was seen, since --gradient_release: they are spoiled"
    return (
        f"{error}; {harm}. The step's rows: {rows}; {kept}. "
        f"{look}otherwise lower --lr or raise --warmup_steps"
    )


def _place(name: str, paths: Sequence[str]) -> str:
    """`0-17`, a sample's id, as the line of a file; `0.2-17` is line 17 of the third file of a path."""
    place, _, line = name.partition("-")
    path, _, file = place.partition(".")
    return f"{paths[int(path)]}:{line}" if not file else f"{paths[int(path)]}, file {int(file) + 1}:{line}"
