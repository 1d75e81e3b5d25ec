"""Say what a run will take before there is one: memory by part, arithmetic, time. No GPU, weights or data.

    tutelage plan sft --ckpt_paths llama3.1-8b --device_name H100 --max_seq_len 8192 ...
    tutelage plan pretrain --model smollm2-135m --device_name "RTX 4090" ...

It takes the flags of the stage and a device by name. Of a model only its config.json is read; the name of a
shape (see `tutelage pretrain --help`) will do. The step is that of the run itself, on tensors without data,
with rows as long as they can be. If it does not fit, changes are tried the same way, and told by what they
save.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tutelage.errors import UserError
from tutelage.recipes.pretrain import PretrainConfig
from tutelage.recipes.sft import SFTConfig
from tutelage.recipes.stage.saving_memory import needs_gpu


@dataclass(frozen=True, kw_only=True)  # no slots: a class has them from one parent at most
class PlanSettings:
    # Plan
    device_name: str | None = None  # H100, A100 40GB, RTX 4090, cpu, ...; default: what this machine has
    device_memory: float | None = None  # GiB; default: by device_name
    mfu: float | None = None  # share of its peak the device will reach; default: 0.35, on CPU 0.5
    processes: int = 1  # over which the model is sharded
    document_tokens: int | None = None  # length of a document in packed rows; default: max_seq_len
    no_suggestions: bool = False  # where it does not fit, do not try what would
    json: Path | None = None  # file for the numbers

    def check(self) -> None:
        """Refuse what makes no sense."""
        for name in ("device_memory", "mfu", "processes", "document_tokens"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"{name} is {value}, must be above 0")
        if self.mfu is not None and self.mfu > 1:
            raise UserError(f"mfu is {self.mfu}, a share of the peak: at most 1")


@dataclass(frozen=True, kw_only=True)
class PlanSFTConfig(SFTConfig, PlanSettings):
    # Data
    train_data_paths: tuple[str, ...] = ("not read",)  # as sft has them; a plan reads none

    def __post_init__(self) -> None:
        SFTConfig.__post_init__(self)
        self.check()
        if self.lora_continue:
            raise UserError("a plan reads no adapter to continue; give its shape, --lora --lora_rank ...")


@dataclass(frozen=True, kw_only=True)
class PlanPretrainConfig(PretrainConfig, PlanSettings):
    # Data
    train_data_paths: tuple[str, ...] = ("not read",)  # as pretrain has them; a plan reads none
    needs_tokenizer: ClassVar[bool] = False
    tokenizer: Path | None = None  # whose vocabulary the model gets; default: that of its shape

    def __post_init__(self) -> None:
        PretrainConfig.__post_init__(self)
        self.check()


def run(config: PlanSFTConfig | PlanPretrainConfig) -> None:
    """Estimate, print, suggest."""
    import json

    from rich.console import Console

    from tutelage.recipes.estimating import plan_of, shape_of, suggestions
    from tutelage.report.plan_table import closing, record, table
    from tutelage.train.devices import device_named

    device = device_named(config.device_name, config.device_memory)
    if not device.gpu and (words := needs_gpu(config)):
        raise UserError(words)
    shape = shape_of(config)
    plan = plan_of(config, shape, device)
    console = Console()
    console.print(table(plan))
    others = [] if plan.fits or config.no_suggestions else suggestions(config, shape, device, plan)
    console.print(closing(plan, others), highlight=False)
    if config.json:
        config.json.write_text(json.dumps(record(plan, others), indent=2) + "\n", encoding="utf-8")
