"""The settings that every training stage shares, in the words of the command line."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from tutelage.errors import UserError
from tutelage.recipes.stage.quantizing import Quant, quant_problems
from tutelage.recipes.stage.saving_memory import memory_problems


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    default_warmup: ClassVar[int] = 0
    unit: ClassVar[str] = "samples"  # what micro_batch_size_per_gpu counts, unpacked

    # Data
    train_data_paths: tuple[str, ...]
    """jsonl:, parquet:, csv:, json: or text:FILE, a folder or *.suffix of them, local:DIR, hub ids"""
    val_data_paths: tuple[str, ...] = ()  # held-out data of the same kinds; none: no validation
    train_data_splits: tuple[
        str, ...
    ] = ()  # of each path that is a data set of the hub or local:; - for files
    val_data_splits: tuple[str, ...] = ()  # of each path, as above
    train_data_shapes: tuple[str, ...] = ()  # of each path: messages, sharegpt, alpaca, ... or - to find out
    val_data_shapes: tuple[str, ...] = ()  # of each path, as above
    data_fields: tuple[str, ...] = ()  # OLD=NEW, other names for keys of records, like question=instruction
    train_num_samples: tuple[float, ...] = ()  # of each path: above 1 a count, up to 1 a share, -1 all
    val_num_samples: tuple[float, ...] = ()  # of each path, as above
    train_data_weights: tuple[float, ...] = ()  # of each path, its share of the rows; none: all of each, once
    streaming: bool = (
        False  # read while training, for data that is too much to encode first; needs train_steps
    )
    shuffle_buffer_size: int = 4096  # with streaming: records of a path that are shuffled among themselves
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
    train_tokens: int = -1  # the same in tokens, rounded up to whole steps

    # What is trained
    lora: bool = False  # low-rank adapters on a frozen model: the result is OUT/adapter, a PEFT directory
    lora_rank: int = 16  # of every adapter's matrices
    lora_alpha: float | None = None  # adapters count lora_alpha / lora_rank; default: 2 x lora_rank
    lora_dropout: float = 0.0  # chance of a value that an adapter reads to be left out
    lora_targets: tuple[str, ...] = ()  # layers by name or pattern; default: every linear layer in blocks
    lora_embedding: bool = False  # an adapter for the token embedding too
    lora_head: bool = False  # an adapter for the output head too; tied, it is the embedding's
    lora_rank_pattern: tuple[str, ...] = ()  # PATTERN=RANK for layers that differ, like q_proj=8
    lora_alpha_pattern: tuple[str, ...] = ()  # PATTERN=ALPHA, likewise
    lora_rslora: bool = False  # adapters count lora_alpha / sqrt(lora_rank)
    lora_dora: bool = False  # DoRA: directions by the adapter, and a magnitude for every output
    lora_init: Literal["lora", "pissa"] = "lora"  # pissa: begin with the largest singular vectors
    lora_bias: Literal["none", "lora_only", "all"] = "none"  # biases trained beside, of which layers
    lora_unfrozen_params: tuple[str, ...] = ()  # patterns of weights' whole names, trained in full beside
    lora_continue: bool = False  # train the last adapter of ckpt_paths further, instead of one on top of it
    save_merged: bool = False  # with lora: OUT/model too, the adapter in its weights
    frozen_layers: int = 0  # without lora: the first so many blocks, and the embeddings, stay as they are
    train_atten_qv_layers_only: bool = False  # of the other blocks only query and value projections
    train_parts: Literal["all", "embeddings", "head", "embeddings_head", "blocks"] = "all"  # and no other
    trained_params: tuple[str, ...] = ()  # patterns of weights' whole names: these and no others
    frozen_params: tuple[str, ...] = ()  # patterns of weights' whole names that stay as they are
    force: bool = False  # put an adapter of ckpt_paths on a model that it was not trained on

    # Optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: of matrices inside blocks; adamw has the rest
    lr: float = 2e-5
    muon_lr: float | None = None  # of what Muon trains; default: lr, since its steps have the size of AdamW's
    lr_scheduler: Literal["linear", "cosine", "constant", "wsd"] = "linear"  # wsd: warm-up, stable, decay
    warmup_steps: int | None = None  # of the warm-up, in which the rate rises; default: 0
    warmup_ratio: float | None = None  # the warm-up as a share of all steps; default: by warmup_steps
    warmup_init_lr_ratio: float = 0.0  # where the warm-up begins, as a share of lr
    min_lr_ratio: float = 0.0  # where linear, cosine and wsd end, as a share of lr
    decay_ratio: float = 0.2  # share of all steps, the last ones, in which wsd falls
    decay_in_warmup: bool = False  # linear and cosine fall from step 0, and the warm-up multiplies them
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    wd: float = 0.0  # weight decay; of matrices only, never of norms and biases
    clip_grad_norm: float = 1.0  # largest gradient norm; 0: no clipping
    optimizer_state: Literal["fp32", "bf16", "8bit", "paged_8bit"] | None = (
        None  # what AdamW's moments are kept in; default: fp32, with precision bf16_pure as its weights
    )
    ema_decay: float = 0.0  # of an average of the weights, which is validated and exported; 0: none

    # Precision and memory
    precision: Literal["fp32", "bf16", "bf16_pure", "fp16"] = "bf16"  # fp16: for GPUs without bf16
    fp32_logits: bool = False  # the head's matmul in float32 too; softmax and loss always are
    attention_impl: Literal["auto", "eager", "sdpa", "flash"] = "auto"  # flash needs a GPU
    selective_ac_ratio: float = 0.0  # share of blocks whose activations are computed again, to save memory
    ac_policy: Literal["block", "matmul"] = "block"  # of those blocks, again: all, or all but matmuls
    offload_activations: bool = False  # of a GPU, to main memory until the backward pass
    gradient_release: bool = False  # weights move in the backward pass: no gradients of all at once
    compile: bool = False  # torch.compile: a minute at the start, faster steps after it
    device: str = "auto"  # cuda, cpu, or auto: cuda where there is one

    # Quantized base
    quant: Quant = "none"  # the base's linear layers in 4 (nf4, fp4) or 8 bits, frozen: for --lora
    quant_double: bool = True  # the scales of nf4 and fp4 in 8 bits too: 4.13 bits a weight instead of 4.5

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
    sample_prompts: tuple[str, ...] = ()  # that the model goes on from now and then: OUT/samples.jsonl
    sample_freq: int = 500  # steps between samples
    sample_tokens: int = 100  # of each sample, at most
    sample_temperature: float = 0.8  # 0: always the likeliest token
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
        if self.train_data_weights and len(self.train_data_weights) != len(self.train_data_paths):
            problems.append(
                f"train_data_weights has {len(self.train_data_weights)} numbers "
                f"for {len(self.train_data_paths)} train_data_paths"
            )
        if not all(0 < weight < math.inf for weight in self.train_data_weights):
            problems.append("train_data_weights must each be a number above 0")
        problems += self._streaming_problems()
        if self.val_num_samples and not self.val_data_paths:
            problems.append("val_num_samples is given, but there are no val_data_paths to take samples from")
        if self.wandb and find_spec("wandb") is None:
            problems.append("wandb is on, but its package is missing: pip install 'tutelage[wandb]'")
        if (
            not self.sample_prompts
            and not self.has_own_samples
            and self.sample_freq != TrainingConfig.__dataclass_fields__["sample_freq"].default
        ):
            problems.append("sample_freq does nothing without sample_prompts")
        if self.train_steps > 0 and self.train_tokens > 0:
            problems.append("train_steps and train_tokens both say how long to train; give one of them")
        if self.resume and self.overwrite:
            problems.append("resume and overwrite exclude each other")
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            problems.append("warmup_steps and warmup_ratio say the same thing twice; give one of them")
        problems += self._adapting_problems()
        if self.muon_lr is not None and self.optimizer != "muon":
            problems.append("muon_lr is given, but optimizer is adamw; --optimizer muon uses it")
        problems += quant_problems(self.quant, self.quant_double)
        if self.quant != "none" and not self.lora:
            problems.append(f"quant is {self.quant}, and a quantized weight cannot be trained; add --lora")
        problems += memory_problems(self)
        for name, kinds in _SCHEDULERS.items():
            default = TrainingConfig.__dataclass_fields__[name].default
            if getattr(self, name) != default and self.lr_scheduler not in kinds:
                problems.append(
                    f"{name} does nothing for lr_scheduler {self.lr_scheduler}, only for {', '.join(kinds)}"
                )
        if problems:
            raise UserError("\n  ".join(problems))

    def _streaming_problems(self) -> list[str]:
        """Settings that do not go with reading while training, or do nothing without it."""
        defaults = TrainingConfig.__dataclass_fields__
        if not self.streaming:
            given = self.shuffle_buffer_size != defaults["shuffle_buffer_size"].default
            return ["shuffle_buffer_size does nothing without streaming"] if given else []
        problems = []
        if self.train_steps < 1:
            problems.append("streaming needs train_steps: how much data there is is not known before its end")
        if self.train_num_samples:
            problems.append(
                "train_num_samples chooses of all rows, which streaming does not know; leave it out"
            )
        return problems

    def _adapting_problems(self) -> list[str]:
        """Settings of what is trained that do nothing here, or contradict each other."""
        defaults = TrainingConfig.__dataclass_fields__

        def given(names: Iterable[str]) -> str:
            return ", ".join(name for name in names if getattr(self, name) != defaults[name].default)

        of_lora = [name for name in defaults if name.startswith("lora_")] + ["save_merged"]
        of_all = (
            "frozen_layers",
            "train_atten_qv_layers_only",
            "train_parts",
            "trained_params",
            "frozen_params",
        )
        of_new = [
            name for name in of_lora if name not in ("lora_bias", "lora_unfrozen_params", "save_merged")
        ]
        of_new.remove("lora_continue")
        problems = []
        if not self.lora and (names := given(of_lora)):
            problems.append(f"{names} without lora; add --lora, or leave it out")
        if self.lora and (names := given(of_all)):
            problems.append(f"lora trains adapters and freezes all else; leave out {names}")
        if self.lora_continue and (names := given(of_new)):
            problems.append(f"lora_continue trains an adapter as it is; leave out {names}")
        if self.lora and self.optimizer == "muon":
            problems.append(
                "muon moves whole matrices and lora trains factors of them; leave out optimizer muon"
            )
        if self.lora_init == "pissa" and self.quant != "none":
            problems.append(
                "lora_init pissa takes something out of the weights, and quant keeps them as they are"
            )
        if self.lora_dora and self.lora_init == "pissa":
            problems.append("lora_dora and lora_init pissa exclude each other")
        return problems

    @property
    def has_own_samples(self) -> bool:
        """Whether a run shows samples without sample_prompts."""
        return False

    def warmup(self, steps: int) -> int:
        """Steps of the warm-up in a run of `steps`."""
        if self.warmup_ratio is not None:
            return round(self.warmup_ratio * steps)
        return self.default_warmup if self.warmup_steps is None else self.warmup_steps


_SCHEDULERS = {  # whose settings these are
    "min_lr_ratio": ("linear", "cosine", "wsd"),
    "decay_ratio": ("wsd",),
    "decay_in_warmup": ("linear", "cosine"),
}
_BOUNDS = (
    (
        (
            "max_seq_len",
            "micro_batch_size_per_gpu",
            "gradient_accum_steps",
            "train_epochs",
            "max_checkpoints",
            "num_data_workers",
            "sample_tokens",
            "shuffle_buffer_size",
            "lora_rank",
        ),
        lambda value: value >= 1,
        "at least 1",
    ),
    (
        ("sample_temperature", "num_loader_workers", "warmup_steps", "wd", "clip_grad_norm", "lr", "muon_lr")
        + ("frozen_layers",),
        lambda value: value is None or value >= 0,
        "0 or more",
    ),
    (
        ("train_steps", "train_tokens"),
        lambda value: value == -1 or value > 0,
        "above 0, or -1 for train_epochs",
    ),
    (
        ("selective_ac_ratio", "warmup_ratio", "warmup_init_lr_ratio", "min_lr_ratio", "decay_ratio"),
        lambda value: value is None or 0 <= value <= 1,
        "between 0 and 1",
    ),
    (("max_cut_percent",), lambda value: 0 <= value <= 100, "between 0 and 100"),
    (("ema_decay", "lora_dropout"), lambda value: 0 <= value < 1, "from 0 up to, not with, 1"),
    (("lora_alpha",), lambda value: value is None or value > 0, "above 0"),
    (("eps",), lambda value: value > 0, "above 0"),
    (("seed",), lambda value: 0 <= value < 2**63, "0 or more and below 2^63"),
    (("betas",), lambda value: all(0 <= beta < 1 for beta in value), "two numbers from 0 up to, not with, 1"),
)
