"""The settings that every training stage shares, in the words of the command line."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tutelage.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    # Data
    train_data_paths: tuple[str, ...]
    """jsonl:FILE with messages or text, text:FILE, a document a line, document:FILE, local:DIR, hub ids"""
    val_data_paths: tuple[str, ...] = ()  # held-out data of the same kinds; none: no validation
    train_data_splits: tuple[
        str, ...
    ] = ()  # of each path that is a data set of the hub or local:; - for files
    val_data_splits: tuple[str, ...] = ()  # of each path, as above
    train_num_samples: tuple[float, ...] = ()  # of each path: above 1 a count, up to 1 a share, -1 all
    val_num_samples: tuple[float, ...] = ()  # of each path, as above
    max_seq_len: int = 4096  # positions of the longest document and, packed, of a row
    pack_samples: bool = False  # fill rows of max_seq_len best-fit; a batch then counts rows, not samples
    max_cut_percent: float = 5.0  # of rows or tokens that may be cut or dropped before the data is refused
    skip_bad_rows: bool = False  # count rows that cannot be used and go on without them
    num_data_workers: int = 1  # processes that encode
    num_loader_workers: int = 1  # threads that prepare the next batches
    cache_dir: Path | None = None  # of encoded data; default ~/.cache/tutelage

    # Batches
    micro_batch_size_per_gpu: int = 4  # samples (packed: rows) a forward pass
    gradient_accum_steps: int = 1  # forward passes an optimizer step
    train_epochs: int = 1
    train_steps: int = -1  # optimizer steps; above 0 it overrides train_epochs and repeats the data

    # Optimizer
    lr: float = 2e-5
    lr_scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    wd: float = 0.0  # weight decay; of matrices only, never of norms and biases
    clip_grad_norm: float = 1.0  # largest gradient norm; 0: no clipping

    # Precision and memory
    precision: Literal["fp32", "bf16", "bf16_pure"] = "bf16"  # bf16 keeps float32 masters, bf16_pure does not
    fp32_logits: bool = False  # the head's matmul in float32 too; softmax and loss always are
    attention_impl: Literal["auto", "eager", "sdpa", "flash"] = "auto"  # flash needs a GPU
    selective_ac_ratio: float = 0.0  # share of blocks whose activations are computed again, to save memory
    compile: bool = False  # torch.compile: a minute at the start, faster steps after it
    device: str = "auto"  # cuda, cpu, or auto: cuda where there is one

    # Run
    output_dir: Path = Path("output")
    resume: bool = False  # go on from the newest complete checkpoint in output_dir
    overwrite: bool = False  # throw away a run that is already in output_dir
    dry_run: bool = False  # check everything but the weights, print the plan and stop
    seed: int = 1234
    print_freq: int = 1  # steps between lines where there is no terminal for a progress bar
    val_freq: int = 100  # steps between validations
    save_freq: int = 500  # steps between checkpoints
    max_checkpoints: int = 1  # newest ones that are kept
    no_visualize_dataset: bool = False  # do not print samples at the start

    # Weights & Biases
    wandb: bool = False
    wandb_project: str = "default"
    wandb_entity: str | None = None
    wandb_group: str | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)}, must be {words}"
            for names, right, words in _BOUNDS
            for name in names
            if not right(getattr(self, name))
        ]
        if not self.train_data_paths:
            problems.append("train_data_paths names no path")
        if self.val_num_samples and not self.val_data_paths:
            problems.append("val_num_samples is given, but there are no val_data_paths to take samples from")
        if self.attention_impl == "flash" and self.device == "cpu":
            problems.append("attention_impl flash needs a GPU; sdpa is the fast one on CPU")
        if self.wandb and find_spec("wandb") is None:
            problems.append("wandb is on, but its package is missing: pip install 'tutelage[wandb]'")
        if self.resume and self.overwrite:
            problems.append("resume and overwrite exclude each other")
        if problems:
            raise UserError("\n  ".join(problems))


_BOUNDS = (
    (
        (
            "max_seq_len",
            "micro_batch_size_per_gpu",
            "gradient_accum_steps",
            "train_epochs",
            "max_checkpoints",
            "num_data_workers",
        ),
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        ("num_loader_workers", "warmup_steps", "wd", "clip_grad_norm", "lr"),
        lambda value: value >= 0,
        "0 or more",
    ),
    (("train_steps",), lambda value: value == -1 or value > 0, "above 0, or -1 for train_epochs"),
    (("selective_ac_ratio",), lambda value: 0 <= value <= 1, "between 0 and 1"),
    (("max_cut_percent",), lambda value: 0 <= value <= 100, "between 0 and 100"),
    (("eps",), lambda value: value > 0, "above 0"),
    (("betas",), lambda value: all(0 <= beta < 1 for beta in value), "two numbers from 0 up to, not with, 1"),
)
