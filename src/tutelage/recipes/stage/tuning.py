"""The settings that every stage shares which goes on with a model that reads conversations."""

from dataclasses import dataclass
from typing import Literal

from tutelage.errors import UserError
from tutelage.model.config import role_embeddings_std
from tutelage.recipes.stage.training import TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningConfig(TrainingConfig):
    # Model and text
    ckpt_paths: tuple[
        str, ...
    ]  # the model to start from: an HF directory, a hub id or a .gguf file; then adapters, merged into it
    template_config: str | None = (
        None  # chat template: a built-in name, a YAML file, or `model` for its own; default: recognised
    )
    too_long: Literal["truncate", "drop"] = "truncate"  # what happens to conversations over max_seq_len
    use_role_embeddings: bool = False  # tell the model whose each token is; other programs cannot run it then
    role_embeddings_init: str = "zeros"  # of their table: zeros, or gaussian:STD drawn by the seed

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        if not self.ckpt_paths:
            raise UserError("ckpt_paths names no model")
        role_embeddings_std(self.role_embeddings_init)
        if self.role_embeddings_init != "zeros" and not self.use_role_embeddings:
            raise UserError("role_embeddings_init does nothing without use_role_embeddings")
