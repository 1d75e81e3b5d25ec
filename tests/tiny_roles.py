"""A finished run with role embeddings, for the tests of runs and of the files they leave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Material, run

from tutelage.checkpoint import shards

TABLE = "model.role_embeddings.weight"
ON = {"use_role_embeddings": "true"}


@dataclass(frozen=True, slots=True)
class Finished:
    """A run of six steps that began with a gaussian table, how it was made, and what it said."""

    out: Path
    settings: dict[str, Any]
    said: str

    @property
    def model(self) -> Path:
        return self.out / "model"


def finished_run(made: Material, out: Path) -> Finished:
    settings = {**ON, "role_embeddings_init": "gaussian:0.3", "train_steps": 6, "save_freq": 3}
    settings |= {
        "val_data_paths": made.held_out,
        "sample_prompts": "hi",
        "sample_tokens": 5,
        "ema_decay": 0.9,
    }
    ended = run(*made.sft(out, **settings))
    assert ended.code == 0, ended.err
    return Finished(out, settings, ended.err)


def refuse_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight can be read: a run that tries has begun to load."""

    def rows(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(shards.Shards, "rows", rows)
