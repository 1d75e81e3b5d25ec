"""Train a new model on plain text: it learns to predict every token.

    tutelage pretrain --tokenizer TOK --train_data_paths text:stories.txt --output_dir OUT

TOK is a directory with a tokenizer.json, such as `tutelage tokenizer train` writes. Each line of a text: file
is one document, closed by the tokenizer's end token; one longer than a row is split, never cut. The result
lies in OUT/model as a Hugging Face directory that `tutelage sft` takes further.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tutelage.errors import UserError
from tutelage.recipes.training import TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(TrainingConfig):
    # Model
    tokenizer: Path  # a directory with tokenizer.json
    dim: int = 288  # the default shape is the 15M model of llama2.c
    n_layers: int = 6
    n_heads: int = 6
    n_kv_heads: int | None = None  # heads that keys and values have; default: as many as n_heads
    ffn_dim: int | None = (
        None  # width of the feed-forward layers; default: 8/3 of dim, up to a multiple of 32
    )
    tied: bool = True  # the output head is the embedding
    rope_theta: float = 10000.0

    # Data
    train_data_weights: tuple[float, ...] = ()  # of each shards: path, its share of the rows; none: all, once

    # Defaults that differ from fine-tuning
    max_seq_len: int = 256
    pack_samples: bool = True  # fill rows of max_seq_len best-fit; a batch counts rows
    micro_batch_size_per_gpu: int = 32
    lr: float = 5e-4
    lr_scheduler: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    wd: float = 0.1

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        if self.train_data_weights and len(self.train_data_weights) != len(self.train_data_paths):
            raise UserError(
                f"train_data_weights has {len(self.train_data_weights)} numbers "
                f"for {len(self.train_data_paths)} train_data_paths"
            )
        if self.train_data_weights and min(self.train_data_weights) <= 0:
            raise UserError(f"train_data_weights has {min(self.train_data_weights):g}; each must be above 0")
        if self.dim % self.n_heads:
            raise UserError(f"dim {self.dim} does not divide into n_heads {self.n_heads}")


def run(config: PretrainConfig) -> None:
    """Check everything, draw weights, train, export."""
    import torch

    from tutelage.model.config import ModelConfig
    from tutelage.model.transformer import Transformer, initialise_
    from tutelage.objectives.language import NextToken
    from tutelage.recipes.fitting import device_of, fit
    from tutelage.recipes.handing_over import hand_over
    from tutelage.recipes.preparing import check_resume, loaders, plan
    from tutelage.recipes.run_directory import open_run
    from tutelage.text.tokenizer import Tokenizer

    device = device_of(config)
    tokenizer = Tokenizer.load(config.tokenizer)
    model_config = ModelConfig(
        vocab_size=tokenizer.size,
        dim=config.dim,
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads or config.n_heads,
        head_dim=config.dim // config.n_heads,
        ffn_dim=config.ffn_dim or -(-(config.dim * 8 // 3) // 32) * 32,
        max_positions=config.max_seq_len,
        rope_theta=config.rope_theta,
        tied=config.tied,
        bos=tokenizer.bos,
        eos=() if tokenizer.eos is None else (tokenizer.eos,),
        pad=tokenizer.pad,
    )
    training, validation = loaders(
        config,
        tokenizer,
        None,
        reduction="tokens",
        too_long="split",
        allow_unmasked=True,
        weights=config.train_data_weights,
    )
    plan(config, model_config, training, device)
    check_resume(config, model_config, training)
    if config.dry_run:
        return
    directory = open_run(config, "pretrain")
    with torch.device(device):
        model = Transformer(model_config)
    initialise_(model, seed=config.seed)
    objective = NextToken(fp32_logits=config.fp32_logits, compiled=config.compile)
    fitted = fit(config, model, objective, training, validation, directory)
    hand_over(
        fitted,
        model,
        model_config,
        directory,
        stage="pretrain",
        base="random weights",
        tokenizer=tokenizer,
        template=None,
        precision=config.precision,
    )
