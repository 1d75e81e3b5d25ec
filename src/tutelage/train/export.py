"""Write OUT/model, read it back, and compare with the model in memory before calling a run done."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage import dist
from tutelage.checkpoint.adapter import attach_, collected, for_tied, same
from tutelage.checkpoint.aside import Beside
from tutelage.checkpoint.hf import load_model, save_model
from tutelage.checkpoint.peft import read_peft, write_peft
from tutelage.errors import UserError
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.config import ModelConfig
from tutelage.model.roles import NOTE
from tutelage.model.transformer import Transformer
from tutelage.text.pieces import Encoded
from tutelage.train.parallel import reshard, whole

TOLERANCE = 1e-3  # of logits; the same weights in the same arithmetic differ by 0
ROUNDED = math.inf  # where they were rounded apart: it is told and no more


@dataclass(frozen=True, slots=True)
class Gate:
    """How far the model read back from disk is from the one in memory."""

    logit_error: float  # largest absolute difference over the probes
    greedy_equal: bool
    positions: int

    tolerance: float = TOLERANCE  # of logits; with one for rounding, greedy text may be another too
    given: str = "logits"  # or scores, of a model that writes no text

    @property
    def passed(self) -> bool:
        """Whether the files are what was trained."""
        exact = self.tolerance == TOLERANCE
        return self.logit_error <= self.tolerance and (self.greedy_equal or not exact)

    @property
    def text(self) -> str:
        """What to say of greedy text after the rest: nothing of a model that writes none."""
        equal = "equal" if self.greedy_equal else "different"
        return f", greedy text is {equal}" if self.given == "logits" else ""


def given_by(shape: ModelConfig) -> str:
    """What its head gives, in a word."""
    return "logits" if shape.head == "lm" else "scores"


@torch.compiler.set_stance("force_eager")  # a compiled model rounds in other places than the one read back
def export(
    model: Transformer,
    trained: Mapping[str, Tensor],
    config: ModelConfig,
    directory: Path,
    *,
    dtype: torch.dtype,
    probes: Sequence[Encoded],
    beside: Beside | None = None,
    new_tokens: int = 32,
) -> Gate:
    """Write the model, with the `trained` weights in place of its own, as an HF directory; then reload it and
    compare logits and greedy text on `probes`.

    `model` computes in `dtype`. Raises RuntimeError, the files left for inspection, if they do not agree.
    """
    probes = _with_room(probes, config)
    stop = set(config.eos)  # for both: fine-tuning may have given the files more of them
    live = _answers(model, probes, new_tokens, stop)
    _check_finite(live, directory, given_by(config))
    reshard(model)
    weights = whole({**dict(model.named_parameters()), **trained})

    def write_and_compare() -> Gate:
        _check_weights(weights, directory)
        save_model(weights, config, directory, dtype=dtype, beside=beside)
        try:
            reloaded = load_model(directory, dtype=dtype, device=live.logits[0].device)
        except UserError:  # of files that we wrote: ours, and no user's
            return Gate(math.nan, False, 0, given=given_by(config))
        reloaded.attention_impl = model.attention_impl
        return _compare(live, _answers(reloaded, probes, new_tokens, stop), given_by(config))

    return _passed(dist.by_rank_zero(write_and_compare), directory)


@torch.compiler.set_stance("force_eager")
def export_adapter(
    model: Transformer,
    trained: Mapping[str, Tensor],
    directory: Path,
    *,
    base: str,
    fingerprint: str,
    rslora: bool,
    probes: Sequence[Encoded],
    anew: Callable[[], Transformer],
    beside: Beside | None = None,
    new_tokens: int = 32,
) -> Gate:
    """Write the model's adapter, of the `trained` values, as a PEFT directory; then read it back, put it on
    the model in the other's place, and compare.

    With several processes, and after PiSSA, `anew` reads the base and the adapter from disk for that. PiSSA
    trains on weights that were rounded without their largest components: that much its files may be off.
    """
    probes, given = _with_room(probes, model.config), given_by(model.config)
    stop = set(model.config.eos)
    live = _answers(model, probes, new_tokens, stop)
    _check_finite(live, directory, given)
    reshard(model)
    pissa = any(".initial_" in name for name in trained)
    if pissa:  # what it began with is large: rounded in one place and not in the other, it would not cancel
        own = dict(model.named_parameters())
        trained = {name: own[name] for name in trained}
    values = whole(trained)

    def write_and_compare() -> Gate:
        stored = collected(model, values, rslora=rslora)
        write_peft(
            stored,
            directory,
            config=model.config,
            base=base,
            fingerprint=fingerprint,
            dtype=torch.float32,
            beside=beside,
        )
        read = read_peft(directory)
        if not same(stored, for_tied(read) if model.config.tied else read):
            return Gate(math.nan, False, 0, given=given)
        if dist.world_size() > 1 or pissa:
            found = _answers(_like(model, anew()), probes, new_tokens, stop)
            return _compare(live, found, given, ROUNDED if pissa else TOLERANCE)
        dtype = model.head_weight.dtype
        attach_(model, read, "read back")
        for name, parameter in model.named_parameters():
            if name.endswith(".read back"):
                parameter.data = parameter.data.to(dtype)
        return _compare(live, _answers(model, probes, new_tokens, stop), given)

    return _passed(dist.by_rank_zero(write_and_compare), directory)


def _with_room(probes: Sequence[Encoded], config: ModelConfig) -> list[Encoded]:
    """The probes, cut so that there is room for an answer."""
    room = config.max_positions - 1
    return [Encoded(probe.tokens[:room], probe.weights[:room], probe.roles[:room]) for probe in probes]


@dataclass(frozen=True, slots=True)
class _Answers:
    logits: list[Tensor]  # of every probe
    text: list[list[int]]  # greedy, after every probe; none of a score head's


def _answers(model: Transformer, probes: Sequence[Encoded], new_tokens: int, stop: set[int]) -> _Answers:
    model.eval()
    logits = [logits_of(model, probe) for probe in probes]
    return _Answers(logits, _greedy(model, probes, new_tokens, stop) if model.score is None else [])


def _check_finite(live: _Answers, directory: Path, given: str) -> None:
    if not all(each.isfinite().all() for each in live.logits):
        raise UserError(
            f"the trained model gives {given} that are no numbers, so {directory} was not written; "
            "lower --lr or raise --warmup_steps and start anew with --overwrite"
        )


def _check_weights(weights: Mapping[str, Tensor], directory: Path) -> None:
    """Also those that no probe asks for, the embedding of a rare token say."""
    for name, value in weights.items():
        if not all(bound.isfinite() for bound in value.aminmax()):
            raise UserError(
                f"the trained {name} has values that are no numbers, so {directory} was not written; "
                "lower --lr or raise --warmup_steps and start anew with --overwrite"
            )


def _like(model: Transformer, other: Transformer) -> Transformer:
    """The other one, where and how this one computes."""
    other.attention_impl = model.attention_impl
    return other.to(next(model.parameters()).device)


def _compare(live: _Answers, found: _Answers, given: str, tolerance: float = TOLERANCE) -> Gate:
    worst = [(a - b).abs().max() for a, b in zip(live.logits, found.logits, strict=True)]
    error = float(torch.stack(worst).max())  # NaN if any is; Python's max would lose it
    positions = sum(each.shape[1] for each in live.logits)
    return Gate(error, found.text == live.text, positions, tolerance, given)


def _passed(gate: Gate, directory: Path) -> Gate:
    if not gate.passed:
        refused = directory.with_name(f"{directory.name}.refused")  # not to be taken for a result
        if dist.rank() == 0:
            shutil.rmtree(refused, ignore_errors=True)
            directory.rename(refused)
        raise RuntimeError(
            f"{directory} does not reproduce the model that was trained: {gate.given} differ by "
            f"{gate.logit_error:.3g}{gate.text}; look into {refused}, do not use it"
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
    adapter_of: str | None = None,
) -> str:
    """The README.md of an exported model, or of an adapter of a base model: where it comes from, its numbers,
    and how exact the files are.
    """
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    library = f"peft\nbase_model: {adapter_of}" if adapter_of else "transformers"
    roles = f"## Only tutelage runs this model\n\n{NOTE[0].upper()}{NOTE[1:]}.\n\n"
    return (
        f"---\nlibrary_name: {library}\ntags: [tutelage, {stage}]\n---\n\n# {title}\n\n"
        f"Trained with `tutelage {stage}` from {base}. Chat template: {template}.\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        f"{roles if config.role_embeddings else ''}"
        "## Are these files the model that was trained?\n\n"
        f"After training they were read back from disk and compared with the model in memory: {gate.given} "
        f"over {gate.positions} positions differ by at most {gate.logit_error:.3g}{gate.text}.\n"
    )


@torch.inference_mode()
def logits_of(model: Transformer, probe: Encoded) -> Tensor:
    """(1, T, V) of a text."""
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
