"""Write OUT/model, read it back, and compare with the model in memory before calling a run done."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage import dist
from tutelage.checkpoint.hf import load_model, save_model
from tutelage.errors import UserError
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.config import ModelConfig
from tutelage.model.roles import NOTE
from tutelage.model.transformer import Transformer
from tutelage.text.pieces import Encoded
from tutelage.train.parallel import reshard, whole

TOLERANCE = 1e-3  # of logits; the same weights in the same arithmetic differ by 0


@dataclass(frozen=True, slots=True)
class Gate:
    """How far the model read back from disk is from the one in memory."""

    logit_error: float  # largest absolute difference over the probes
    greedy_equal: bool
    positions: int

    @property
    def passed(self) -> bool:
        return self.logit_error <= TOLERANCE and self.greedy_equal


@torch.compiler.set_stance("force_eager")  # a compiled model rounds in other places than the one read back
def export(
    model: Transformer,
    weights: Mapping[str, Tensor],
    config: ModelConfig,
    directory: Path,
    *,
    dtype: torch.dtype,
    probes: Sequence[Encoded],
    new_tokens: int = 32,
) -> Gate:
    """Write `weights` as an HF directory, then reload it and compare logits and greedy text on `probes`.

    `model` computes in `dtype`. Raises RuntimeError, the files left for inspection, if they do not agree.
    """
    model.eval()
    room = config.max_positions - 1  # and one more for an answer
    probes = [Encoded(p.tokens[:room], p.weights[:room], p.roles[:room]) for p in probes]
    live = [_logits(model, probe) for probe in probes]
    if not all(logits.isfinite().all() for logits in live):
        raise UserError(
            f"the trained model gives logits that are no numbers, so {directory} was not written; "
            "lower --lr or raise --warmup_steps and start anew with --overwrite"
        )
    stop = set(config.eos)  # for both: fine-tuning may have given the files more of them
    live_text = _greedy(model, probes, new_tokens, stop)
    reshard(model)
    weights = whole(weights)

    def write_and_compare() -> Gate:
        save_model(weights, config, directory, dtype=dtype)
        reloaded = load_model(directory, dtype=dtype, device=live[0].device)
        reloaded.attention_impl = model.attention_impl
        reloaded.eval()
        worst = [
            (logits - _logits(reloaded, probe)).abs().max()
            for logits, probe in zip(live, probes, strict=True)
        ]
        error = float(torch.stack(worst).max())  # NaN if any is; Python's max would lose it
        equal = _greedy(reloaded, probes, new_tokens, stop) == live_text
        return Gate(error, equal, sum(len(probe.tokens) for probe in probes))

    gate = dist.by_rank_zero(write_and_compare)
    if not gate.passed:
        raise RuntimeError(
            f"{directory} does not reproduce the model that was trained: logits differ by "
            f"{gate.logit_error:.3g}, greedy text is {'equal' if gate.greedy_equal else 'different'}; do not "
            "use it"
        )
    return gate


def model_card(
    *,
    title: str,
    stage: str,
    base: str,
    facts: Mapping[str, Any],
    gate: Gate,
    template: str,
    config: ModelConfig,
) -> str:
    """The README.md of an exported model: where it comes from, its numbers, and how exact the files are."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    roles = f"## Only tutelage runs this model\n\n{NOTE[0].upper()}{NOTE[1:]}.\n\n"
    return (
        f"---\nlibrary_name: transformers\ntags: [tutelage, {stage}]\n---\n\n# {title}\n\n"
        f"Trained with `tutelage {stage}` from {base}. Chat template: {template}.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        f"{roles if config.role_embeddings else ''}"
        "## Are these files the model that was trained?\n\n"
        f"After training they were read back from disk and compared with the model in memory: logits over "
        f"{gate.positions} positions differ by at most {gate.logit_error:.3g}, greedy text is "
        f"{'equal' if gate.greedy_equal else 'different'}.\n"
    )


@torch.inference_mode()
def _logits(model: Transformer, probe: Encoded) -> Tensor:
    row, roles = torch.tensor([[probe.tokens], [probe.roles]], device=next(model.parameters()).device)
    return model.unembed(model(row, torch.arange(row.shape[1], device=row.device)[None], roles=roles))


def _greedy(
    model: Transformer, probes: Sequence[Encoded], new_tokens: int, stop: set[int]
) -> list[list[int]]:
    done = generate(
        model,
        [probe.tokens for probe in probes],
        Sampling(temperature=0.0),
        max_new_tokens=new_tokens,
        stop=stop,
        roles=[probe.roles for probe in probes],
    )
    return [list(completion.tokens) for completion in done]
