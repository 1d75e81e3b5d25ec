"""Which of the settings that save memory do not go together, or not here."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from tutelage import dist

if TYPE_CHECKING:
    from tutelage.recipes.stage.training import TrainingConfig


def memory_problems(config: TrainingConfig) -> list[str]:
    """What is wrong with them, a line each."""
    problems, state = [], config.optimizer_state
    if config.ac_policy == "matmul" and not config.selective_ac_ratio:
        problems.append("ac_policy matmul does nothing while selective_ac_ratio is 0")
    if config.ac_policy == "matmul" and config.compile:
        problems.append("ac_policy matmul does not go with compile, which itself picks what to form again")
    if state == "fp32" and config.precision == "bf16_pure":
        problems.append("optimizer_state fp32 does not go with precision bf16_pure; leave one of them out")
    if state not in (None, "fp32") and config.optimizer == "muon":
        problems.append(f"optimizer_state {state} is for optimizer adamw; muon's has no second moments")
    if state in ("8bit", "paged_8bit"):
        if find_spec("bitsandbytes") is None:
            problems.append(
                f"optimizer_state {state} needs a package that is missing: pip install 'tutelage[quant]'"
            )
        if dist.launched() > 1:
            problems.append(
                f"optimizer_state {state} has scales of blocks that are not cut over several processes; "
                "bf16 works there"
            )
    if config.device == "cpu" and (words := needs_gpu(config)):
        problems.append(words)
    if config.gradient_release:
        problems += [
            f"gradient_release does not go with {name} {value}, which {why}; give --{name} {wanted}"
            for name, wrong, why, wanted in _NOT_RELEASED
            if wrong(value := getattr(config, name))
        ]
    return problems


_NOT_RELEASED = (
    ("gradient_accum_steps", lambda value: value > 1, "adds gradients up", 1),
    ("clip_grad_norm", lambda value: value > 0, "needs all gradients at once", 0),
    ("optimizer", lambda value: value == "muon", "has two optimizers", "adamw"),
    ("precision", lambda value: value == "fp16", "leaves steps out", "bf16"),
)


def needs_gpu(config: TrainingConfig) -> str | None:
    """What of these settings a run on CPU refuses, in words."""
    if config.attention_impl == "flash":
        return "attention_impl flash needs a GPU; sdpa is the fast one on CPU"
    if config.optimizer_state == "paged_8bit":
        return "optimizer_state paged_8bit needs a GPU; on CPU there is nowhere to page to, 8bit is the same"
    if config.offload_activations:
        return "offload_activations needs a GPU; on CPU activations are in main memory already"
    return None
