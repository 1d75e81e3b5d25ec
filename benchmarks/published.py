"""Plans beside the peaks that another trainer published, and what of the difference has a known cause.

Llama 3.1 8B, Phi-3-mini, Llama 2 13B and Gemma 2 9B at 2 x 8,192 tokens, bf16 weights without float32
masters, AdamW, every block checkpointed, on H100s (torch 2.5.1, transformers 4.49; see docs/plan.md). Its
loss held all logits and its AdamW was the foreach one, so each row is planned again with these two. Under
QLoRA it had all but the codes in float32, as PEFT's prepare_model_for_kbit_training leaves them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.nn import functional as F

from tutelage.config import load
from tutelage.data.batch import Batch
from tutelage.model.config import ModelConfig
from tutelage.model.presets import PRESETS
from tutelage.model.quantize import load_library
from tutelage.model.transformer import Transformer
from tutelage.objectives.base import Loss, Objective
from tutelage.objectives.language import NextToken
from tutelage.recipes.estimating import batch_of, built
from tutelage.recipes.plan import PlanSFTConfig
from tutelage.recipes.stage.assembling import Assembled
from tutelage.train.plan import estimate, sharded
from tutelage.train.precision import Precision

_LLAMA2 = replace(
    PRESETS["instruct_llama-7b"],
    dim=5120,
    n_layers=40,
    n_heads=40,
    n_kv_heads=40,
    head_dim=128,
    ffn_dim=13824,
)
# Not among our families: Llamas of the same matrices. Gemma's has two more norms a block.
_PHI3 = replace(
    PRESETS["instruct_llama-7b"],
    vocab_size=32064,
    dim=3072,
    n_heads=32,
    n_kv_heads=32,
    head_dim=96,
    ffn_dim=8192,
)
_GEMMA = ModelConfig(
    vocab_size=256000,
    dim=3072,
    n_layers=28,
    n_heads=16,
    n_kv_heads=16,
    head_dim=256,
    ffn_dim=24576,
    tied=True,
)
_GEMMA2 = ModelConfig(
    vocab_size=256000,
    dim=3584,
    n_layers=42,
    n_heads=16,
    n_kv_heads=8,
    head_dim=256,
    ffn_dim=14336,
    tied=True,
)
_ROWS: list[tuple[str, ModelConfig, str, float, int]] = [  # published GiB; processes
    ("Llama 3.1 8B", PRESETS["llama3.1-8b"], "full", 78, 1),
    ("Llama 3.1 8B", PRESETS["llama3.1-8b"], "LoRA", 36, 1),
    ("Phi-3-mini", _PHI3, "full", 40, 1),
    ("Phi-3-mini", _PHI3, "LoRA", 17, 1),
    ("Llama 2 13B", _LLAMA2, "full", 31, 2),
    ("Llama 2 13B", _LLAMA2, "LoRA", 43, 1),
    ("Gemma 2 9B", _GEMMA2, "full", 59, 2),
    ("Gemma 7B", _GEMMA, "full", 48, 2),
    ("Gemma 7B", _GEMMA, "LoRA", 51, 1),
    ("Gemma 2 9B", _GEMMA2, "LoRA", 60, 1),
]
_QLORA: list[tuple[str, ModelConfig, str]] = [
    ("Llama 3.1 8B", PRESETS["llama3.1-8b"], "48"),
    ("Phi-3-mini", _PHI3, "21"),
    ("Llama 2 13B", _LLAMA2, "38"),
    ("Gemma 7B", _GEMMA, "70"),
    ("Gemma 2 9B", _GEMMA2, "more than 80"),
]
_LORA = ["--lora", "--lora_rank", "8", "--lora_dropout", "0.05"]


@dataclass(frozen=True, slots=True)
class WholeLogits:
    """Next-token loss over all logits at once, shifted as a copy, in bfloat16 or float32.

    They are held until the next batch, as what transformers' models return holds them.
    """

    wide: bool
    held: list[Tensor] = field(default_factory=list)

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        hidden = model(batch.tokens, batch.positions, batch.docs)
        logits = F.linear(hidden, model.head_weight)
        logits = logits.float() if self.wide else logits
        self.held[:] = [logits]
        shifted = logits[:, :-1].flatten(0, 1)  # a copy
        total = F.cross_entropy(shifted, batch.targets[:, :-1].flatten(), reduction="sum")
        return Loss(total, batch.weights.sum())


def compare() -> None:
    """Print the table."""
    load_library()  # of 4 bits, while tensors are real
    print(
        "| | | published | plan | foreach AdamW | and all logits, bf16 | or float32 |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name, shape, tuning, published, processes in _ROWS:
        flags = [] if tuning == "full" else _LORA
        own = peak(shape, flags, processes)
        foreach = peak(shape, flags, processes, foreach=True) if tuning == "full" else own
        whole = [
            peak(shape, flags, processes, foreach=True, objective=WholeLogits(wide)) for wide in (False, True)
        ]
        cells = " | ".join(f"{x:.1f}" for x in (own, foreach, *whole))
        print(f"| {name} | {tuning} | {published:.0f} | {cells} |", flush=True)
    print("\n| | published | plan | all but codes in float32 | and all logits |\n|---|---|---|---|---|")
    for name, shape, published in _QLORA:
        flags = [*_LORA, "--quant", "nf4"]
        own, wide = peak(shape, flags, 1), peak(shape, flags, 1, precision="fp32")
        whole = peak(shape, flags, 1, precision="fp32", objective=WholeLogits(True))
        print(f"| {name} | {published} | {own:.1f} | {wide:.1f} | {whole:.1f} |", flush=True)


def peak(
    shape: ModelConfig,
    flags: list[str],
    processes: int,
    *,
    foreach: bool = False,
    objective: Objective | None = None,
    precision: Precision = "bf16_pure",
) -> float:
    """GiB that a plan says of 2 x 8,192 tokens on a GPU."""
    fixed = "--ckpt_paths planned --max_seq_len 8192 --micro_batch_size_per_gpu 2 --selective_ac_ratio 1"
    words = [*fixed.split(), "--precision", precision, *flags]
    config = load("plan sft", PlanSFTConfig, words)
    batch, pairs = batch_of(config)

    def assembled(objective: Objective, source: Iterator[list[Batch]]) -> Assembled:
        run = built(config, shape, objective, source)
        for group in run.optimizer.param_groups:
            group["fused"], group["foreach"] = not foreach, foreach
        return run

    found = estimate(assembled, objective or NextToken(), batch, accumulate=1, gpu=True, pairs=pairs)
    if processes > 1:
        found = sharded(found, shape, precision, processes)
    return found.peak / 2**30
