"""Whole runs of the command line on a model of 24 thousand weights, and what they leave behind."""

import contextlib
import io
import json
import signal
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor

from tutelage import cli
from tutelage.checkpoint.hf import save_model
from tutelage.model.config import ModelConfig
from tutelage.model.transformer import Transformer, initialise_
from tutelage.text.template import Template
from tutelage.train.saver import newest
from tutelage.train.trainer import Trainer

CLOCKS = (
    "seconds",
    "tokens_per_second",
    "mfu",
    "peak_memory_bytes",
)  # of a metrics row: no two runs share them


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*words: Any) -> Ended:
    """One command in this process."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
    return Ended(code, out.getvalue(), err.getvalue())


def refused(ended: Ended) -> str:
    """The error that a command ended with, without what was said before it."""
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    return ended.err[ended.err.index("error: ") :].removeprefix("error: ").rstrip("\n")


def run_here(words: list[str]) -> None:
    """One command, with the output and the end of this process for its own."""
    cli.main(words)


@dataclass(frozen=True, slots=True)
class Material:
    """A place with a model, data and room for runs."""

    place: Path

    @property
    def model(self) -> Path:
        return self.place / "base"

    @property
    def chats(self) -> str:
        return f"jsonl:{self.place / 'chats.jsonl'}"

    @property
    def held_out(self) -> str:
        return f"jsonl:{self.place / 'held_out.jsonl'}"

    def sft(self, out: Path, *words: Any, **settings: Any) -> list[str]:
        """The words of a fine-tuning run: 20 conversations, 5 steps of 2 x 2 an epoch, float32."""
        chosen = {
            "ckpt_paths": self.model,
            "train_data_paths": self.chats,
            "output_dir": out,
            "cache_dir": self.place / "cache",
            "precision": "fp32",
            "micro_batch_size_per_gpu": 2,
            "gradient_accum_steps": 2,
            "max_seq_len": 64,
            "lr": 1e-2,
            "num_loader_workers": 0,
            "print_freq": 1000,
            "no_visualize_dataset": "true",
            "device": "cpu",
        } | settings
        return ["sft", *_flags(chosen), *map(str, words)]

    def pretrain(self, out: Path, *words: Any, **settings: Any) -> list[str]:
        """The words of a pretraining run: 30 documents in rows of 24, two a micro-batch, float32."""
        chosen = {
            "tokenizer": self.model,
            "train_data_paths": f"text:{self.place / 'text.txt'}",
            "output_dir": out,
            "cache_dir": self.place / "cache",
            "precision": "fp32",
            "dim": 32,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "max_seq_len": 24,
            "micro_batch_size_per_gpu": 4,
            "warmup_steps": 2,
            "print_freq": 1000,
            "no_visualize_dataset": "true",
            "device": "cpu",
        } | settings
        return ["pretrain", *_flags(chosen), *map(str, words)]


def _flags(settings: dict[str, Any]) -> list[str]:
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


def material(place: Path, **settings: Any) -> Material:
    """A random model with a ChatML tokenizer, 20 conversations to learn from and 6 held out."""
    made = Material(place)
    tokenizer, model, config = base_model(**settings)
    save_model(model, config, made.model, dtype=torch.float32)
    tokenizer.save(made.model, chat_template=Template.load("chatml").jinja)
    for name, count in (("chats", 20), ("held_out", 6)):
        lines = [json.dumps({"messages": conversation(i, name)}) + "\n" for i in range(count)]
        (place / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    lines = [f"{'naïve '[: i % 7]}document {i} 東京{'.' * i}\n" for i in range(30)]
    (place / "text.txt").write_text("".join(lines), encoding="utf-8")
    return made


@cache
def base_model(**settings: Any):
    tokenizer = tiny_tokenizer()
    shape = {"vocab_size": tokenizer.size, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}
    shape |= {"head_dim": 8, "ffn_dim": 48, "max_positions": 256, "tied": True} | settings
    config = ModelConfig(**shape, bos=tokenizer.bos, eos=(tokenizer.eos,), pad=tokenizer.pad)
    model = Transformer(config)
    initialise_(model, seed=0)
    return tokenizer, model, config


def conversation(number: int, name: str) -> list[dict[str, str]]:
    """Of differing lengths, a few with two turns; some replies are empty or Unicode."""
    answers = ("", "a", "Grüße 👋", "b c d", " x ", "no")
    turn = [
        {"role": "user", "content": f"{name[0]} {number}" + "?" * (number % 5)},
        {"role": "assistant", "content": answers[number % 6] + "z" * (number % 4)},
    ]
    return turn * (1 + (number % 9 == 0))


@dataclass(slots=True)
class Watch:
    """What the steps of runs in this process were made of.

    `signals` are raised in the middle of their step; before a step in `poison` weights become NaN, once.
    """

    ids: dict[int, list[str]] = field(default_factory=dict)
    signals: dict[int, signal.Signals] = field(default_factory=dict)
    poison: set[int] = field(default_factory=set)


def watched(monkeypatch: Any) -> Watch:
    """Steps are recorded as they are trained."""
    watch, train_step = Watch(), Trainer.train_step

    def recorded(trainer: Any, batches: Any) -> Any:
        watch.ids[trainer.step + 1] = trainer.source.last_ids
        if trainer.step + 1 in watch.signals:
            signal.raise_signal(watch.signals.pop(trainer.step + 1))
        if trainer.step + 1 in watch.poison:
            watch.poison.remove(trainer.step + 1)
            next(trainer.model.parameters()).data.fill_(torch.nan)
        return train_step(trainer, batches)

    monkeypatch.setattr(Trainer, "train_step", recorded)
    return watch


def dying(monkeypatch: Any, *, step: int) -> None:
    """Runs in this process die before this step, without a chance to save."""
    train_step = Trainer.train_step

    def dies(trainer: Any, batches: Any) -> Any:
        if trainer.step + 1 == step:
            raise RuntimeError("the power went")
        return train_step(trainer, batches)

    monkeypatch.setattr(Trainer, "train_step", dies)


def stored(checkpoint: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by name."""
    about = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in about.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(tensors, checkpoint_id=checkpoint, no_dist=True)
    return tensors


def metrics(out: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without the clock's values."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def leavings(out: Path) -> dict[str, Any]:
    """All that a finished run leaves and that must not depend on its history, by name."""
    checkpoint = newest(out / "checkpoints")
    assert checkpoint is not None
    left: dict[str, Any] = {f"checkpoint {name}": value for name, value in stored(checkpoint).items()}
    left["checkpoint state"] = json.loads((checkpoint / "state.json").read_text())
    left["checkpoints"] = sorted(path.name for path in (out / "checkpoints").iterdir())
    left["metrics"] = metrics(out)
    for path in [path for kind in ("model", "adapter") for path in sorted((out / kind).glob("*"))]:
        if path.suffix == ".safetensors":
            left |= {f"{path.parent.name} {name}": value for name, value in load_file(path).items()}
        else:
            left[f"{path.parent.name} {path.name}"] = path.read_bytes()
    return left


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what differs; tensors are compared bit for bit."""
    names = sorted(one.keys() | other.keys())
    return [name for name in names if not _same(one.get(name), other.get(name))]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other
