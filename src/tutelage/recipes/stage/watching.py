"""What a run shows while it trains: numbers of every step, validation, samples of text, and where they go."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tutelage import dist
from tutelage.data.batch import Batch
from tutelage.data.encode import Encoder
from tutelage.data.loader import Loader
from tutelage.errors import UserError
from tutelage.infer.chat import stop_tokens
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.transformer import Transformer
from tutelage.recipes.stage.training import TrainingConfig
from tutelage.report.metrics import MetricsFile, TensorBoard, WeightsAndBiases, Writer, read_rows
from tutelage.report.progress import ProgressBar
from tutelage.text.pieces import Encoded
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer
from tutelage.train.ema import EMA
from tutelage.train.evaluate import evaluate
from tutelage.train.flops import flops_per_token, peak_flops
from tutelage.train.parallel import gathered
from tutelage.train.precision import compute_dtype
from tutelage.train.trainer import Metrics, Trainer

Sampler = Callable[[Transformer], list[tuple[str, str]]]  # -> prompts and what the model makes of them
Annotate = Callable[[list[Batch]], list[Batch]]


@dataclass(slots=True)
class Beginning:
    """What a stage takes from the model before any step: a reference, for what comes after."""

    annotate: Annotate = lambda step: step  # gives batches what it says of them
    gauge: Callable[[Transformer], Metrics] = lambda model: {}  # more to validate: how far the model has gone


@dataclass(slots=True)
class Annotated:
    """A loader's steps, each with what `annotate` says of it."""

    loader: Loader
    annotate: Annotate = lambda step: step

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        return self.annotate(next(self.loader))

    @property
    def last_ids(self) -> list[str]:
        """The ids of the samples of the step that was given last."""
        return self.loader.last_ids


@dataclass(slots=True)
class Watch:
    """What to look at beside the loss."""

    validation: Loader | None = None
    likelihood: bool = True  # whether the loss is one of tokens, which has a perplexity
    token_bytes: Tensor | None = (
        None  # (V,) bytes of text a token stands for: validation in bits per byte too
    )
    sampler: Sampler | None = None


@dataclass(slots=True)
class Reporter:
    """Shows and writes every step; validates and samples when it is time to, by the averages if there are."""

    config: TrainingConfig
    watch: Watch
    bar: ProgressBar
    writers: Sequence[Writer]
    directory: Path
    beginning: Beginning
    average: EMA | None
    mfu_per_rate: float  # model FLOPs utilization of a token a second
    last: Metrics = field(default_factory=dict)
    validated: Metrics = field(default_factory=dict)

    def __call__(self, trainer: Trainer, metrics: Metrics) -> None:
        """The hook of a Trainer."""
        metrics = {**metrics, "mfu": self.mfu_per_rate * metrics["tokens"] / metrics["seconds"]}
        speed = self.bar.update(trainer.step, metrics)
        self.last = metrics
        with self._as_exported(trainer):
            if self.watch.validation is not None and self._due(trainer, self.config.val_freq):
                self.validated = self._validate(trainer, self.watch.validation)
                metrics = metrics | {f"val_{name}": value for name, value in self.validated.items()}
            if self.watch.sampler is not None and self._due(trainer, self.config.sample_freq):
                self._sample(trainer, self.watch.sampler)
        for writer in self.writers:
            writer.write(trainer.step, {**metrics, **speed})

    def _due(self, trainer: Trainer, frequency: int) -> bool:
        return trainer.step == trainer.steps or (frequency > 0 and trainer.step % frequency == 0)

    def _as_exported(self, trainer: Trainer):
        looked_at = [self.config.val_freq] if self.watch.validation is not None else []
        looked_at += [self.config.sample_freq] if self.watch.sampler is not None else []
        if self.average is None or not any(self._due(trainer, frequency) for frequency in looked_at):
            return nullcontext()
        return self.average.swapped(trainer.model)

    def _validate(self, trainer: Trainer, validation: Loader) -> Metrics:
        started = time.perf_counter()
        values = evaluate(
            trainer.model,
            trainer.objective,
            map(self.beginning.annotate, validation),
            likelihood=self.watch.likelihood,
            token_bytes=self.watch.token_bytes,
        )
        values |= self.beginning.gauge(trainer.model)
        said = [f"validation loss {values['loss']:.4f}"]
        said += [
            f"{name.replace('_', ' ')} {value:.{2 if name == 'perplexity' else 4}f}"
            for name, value in values.items()
            if name != "loss"
        ]
        self.bar.say(f"step {trainer.step}: {', '.join(said)} ({time.perf_counter() - started:.1f} s)")
        return values

    def _sample(self, trainer: Trainer, sampler: Sampler) -> None:
        with gathered(trainer.model):
            written = sampler(trainer.model)
        rows = [{"step": trainer.step, "prompt": prompt, "text": text} for prompt, text in written]
        for row in rows:
            self.bar.say(f"step {trainer.step}: {row['prompt']}▸{row['text']}")
        if dist.rank() == 0:
            with (self.directory / "samples.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for writer in self.writers:
            for number, row in enumerate(rows, start=1):
                writer.text(trainer.step, f"sample/{number}", f"{row['prompt']}▸{row['text']}")


def sampler_of(
    config: TrainingConfig, tokenizer: Tokenizer, template: Template | None, context: int
) -> Sampler | None:
    """What answers, or goes on from, --sample_prompts; the same chance each time, so that samples compare."""
    if not config.sample_prompts:
        return None
    encoder = Encoder(template, tokenizer)
    prompts = [encoder.prompt(text) for text in config.sample_prompts]
    if not all(prompt.tokens for prompt in prompts):
        raise UserError("sample_prompts has an empty one; a model needs at least one token to go on from")
    if (longest := max(len(prompt.tokens) for prompt in prompts)) >= context:
        raise UserError(
            f"sample_prompts has one of {longest} tokens, and the model's context holds {context}, the "
            "answer included; shorten it"
        )
    return answering(config, tokenizer, template, config.sample_prompts, prompts)


def answering(
    config: TrainingConfig,
    tokenizer: Tokenizer,
    template: Template | None,
    shown: Sequence[str],
    prompts: Sequence[Encoded],
) -> Sampler:
    """What answers prompts, of which each is `shown` in words; the same chance each time."""
    sampling = Sampling(temperature=config.sample_temperature, seed=config.seed)

    def sample(model: Transformer) -> list[tuple[str, str]]:
        stop = stop_tokens(model, tokenizer, template)
        done = generate(
            model,
            [prompt.tokens for prompt in prompts],
            sampling,
            max_new_tokens=config.sample_tokens,
            stop=stop,
            roles=[prompt.roles for prompt in prompts],
        )
        texts = [tokenizer.decode(completion.tokens) for completion in done]
        return list(zip(shown, texts, strict=True))

    return sample


def mfu_per_rate(config: TrainingConfig, model: Transformer, loader: Loader, device: torch.device) -> float:
    """Model FLOPs utilization of a run that trains on one token a second, by what its devices could do."""
    devices = dist.world_size() if device.type == "cuda" else 1  # processes on CPU share its cores
    peak = peak_flops(device, compute_dtype(config.precision)) * devices
    return flops_per_token(model, loader.context) / peak


def writers_of(config: TrainingConfig, directory: Path, step: int) -> list[Writer]:
    """Where the numbers go; what lies past `step` in the files is dropped. Rank 0 has all of them."""
    if dist.rank():
        return []
    writers: list[Writer] = [
        MetricsFile(directory / "metrics.jsonl", step=step),
        TensorBoard(directory / "tensorboard", step=step),
    ]
    if config.wandb:
        writers.append(
            WeightsAndBiases(
                project=config.wandb_project,
                entity=config.wandb_entity,
                group=config.wandb_group,
                name=directory.name,
            )
        )
    samples = directory / "samples.jsonl"
    if samples.exists():
        rows = [row for row in read_rows(samples) if row["step"] <= step]
        samples.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
    return writers


def recall(path: Path, step: int) -> tuple[Metrics, Metrics]:
    """The numbers of a step and of the last validation up to it, as an earlier part of the run wrote them."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    validations = [row for row in rows if "val_loss" in row]
    validation = validations[-1] if validations else {}
    return rows[-1] if rows else {}, {
        name.removeprefix("val_"): value for name, value in validation.items() if name.startswith("val_")
    }


def total_steps(config: TrainingConfig, loader: Loader) -> int:
    """Optimizer steps of the whole run, by whichever of steps, tokens and epochs was given."""
    if config.train_steps > 0:
        return config.train_steps
    if config.train_tokens > 0:
        return math.ceil(config.train_tokens * loader.steps_per_epoch(0) / loader.positions)
    return sum(loader.steps_per_epoch(epoch) for epoch in range(config.train_epochs))
