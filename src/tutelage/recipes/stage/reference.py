"""What preference losses hold the policy to: a reference, live or read once."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tutelage import dist
from tutelage.checkpoint.hf import load_model
from tutelage.data.batch import Batch
from tutelage.data.cache import DEFAULT_DIR
from tutelage.data.groups import Comparisons
from tutelage.data.loader import Loader
from tutelage.data.ranked import RankedBatch
from tutelage.errors import UserError, no_room
from tutelage.model.adapters import adapter_values, holding, trained_beside, without_adapters
from tutelage.model.score import refuse_score_head
from tutelage.model.transformer import Transformer, add_role_embeddings_
from tutelage.objectives.preference import answer_logps
from tutelage.recipes.saying import say
from tutelage.recipes.stage.adapting import Start
from tutelage.recipes.stage.chain import chain_of
from tutelage.recipes.stage.divergence import Divergence
from tutelage.recipes.stage.fitting import building_device
from tutelage.recipes.stage.preferring import Data, PreferenceConfig
from tutelage.recipes.stage.quantizing import quantization_of
from tutelage.recipes.stage.watching import Beginning
from tutelage.report.progress import ProgressBar
from tutelage.train.parallel import reshard, shard
from tutelage.train.precision import compute_dtype

FORMAT = 1  # of the tables that are kept
Judge = Callable[[RankedBatch], Tensor]  # log p of each answer under the reference, (A,)


@dataclass(frozen=True, slots=True)
class HeldTo:
    """Which model is the reference, and whether it is read once."""

    ckpt_paths: tuple[str, ...]  # none: that which training starts from
    precompute: bool = False

    def stands_beside(self, config: PreferenceConfig) -> bool:
        """Whether a second model stays in memory for the whole run."""
        return not self.precompute and bool(self.ckpt_paths or not config.lora)


@dataclass(frozen=True, slots=True)
class Reference:
    """A model and how to make it the reference for a while: of the policy itself, without what it learned."""

    model: Transformer
    inside: Callable[[], AbstractContextManager] = nullcontext

    @torch.no_grad()
    def __call__(self, batch: RankedBatch) -> Tensor:
        """log p(answer) of each answer, (A,) float32."""
        self.model.eval()
        reshard(self.model)  # gathered weights, which a forward pass leaves, have no share to put others into
        with self.inside():
            logps = answer_logps(self.model, batch)
            reshard(self.model)  # gathered weights may be others than outside
        return logps


def beginning_of(
    config: PreferenceConfig,
    training: Data,
    held_out: Data | None,
    device: torch.device,
    reference: HeldTo | None,
    fingerprint: str,
) -> Callable[[Transformer], Beginning]:
    """What a run takes from the model it begins with: what it makes of answers, and how far others are off.

    Without `reference` only the second, from held-out data. `fingerprint` is the reference's.
    """

    def begin(model: Transformer) -> Beginning:
        held_to = reference or HeldTo(())
        lasting = reference is not None and not reference.precompute
        judging = _reference(config, held_to, model, device, lasting=lasting)
        beginning = Beginning()
        if held_out:
            beginning.gauge = Divergence(judging, held_out.loader(training=False), device)
        if lasting:
            beginning.annotate = annotated(judging, model, device)
        elif reference:
            made_by = [fingerprint, config.precision]
            made_by += [config.quant, str(config.quant_double)]
            sets = [data for data in (training, held_out) if data]
            tables = [precomputed(config.cache_dir, made_by, judging, data, device) for data in sets]
            table = torch.cat(tables)
            beginning.annotate = annotated(lambda batch: table[batch.numbers], model, device)
        return beginning

    return begin


def start_of_reference(config: PreferenceConfig, reference: HeldTo) -> Start:
    """The reference as it lies on disk."""
    names = reference.ckpt_paths or config.ckpt_paths
    chain = chain_of(names)
    return Start(chain.base, chain.adapters, None, chain.text, tuple(names), chain.name)


def fingerprint_of_reference(config: PreferenceConfig, reference: HeldTo) -> str:
    """What tells this reference from others: its files, and the role embeddings that it begins with."""
    start = start_of_reference(config, reference)
    if reference.ckpt_paths or config.role_embeddings_init == "zeros" or start.shape().role_embeddings:
        return start.fingerprint
    return f"{start.fingerprint} roles {config.role_embeddings_init} seed {config.seed}"


def _reference(
    config: PreferenceConfig, held_to: HeldTo, model: Transformer, device: torch.device, *, lasting: bool
) -> Reference:
    """The reference: the model itself, as long as it is as it begins or when its adapters can be left out;
    else a model of its own. `lasting`: for the whole run.
    """
    if not held_to.ckpt_paths:
        if config.lora:
            return beside(model, continued=config.lora_continue)
        if not lasting:
            return Reference(model)
    found = start_of_reference(config, held_to)
    dtype = compute_dtype(config.precision)
    rounding = quantization_of(config.quant, config.quant_double)
    other = load_model(
        found.base,
        dtype=dtype,
        device=building_device(device),
        adapters=found.adapters,
        force=config.force,
        quantization=rounding,
    ).requires_grad_(False)
    refuse_score_head(other.config, found.names[-1])
    if not held_to.ckpt_paths and model.config.role_embeddings and not other.config.role_embeddings:
        add_role_embeddings_(other, config.role_embeddings_init, seed=config.seed)
        other.requires_grad_(False)  # the table that the policy begins with is the reference's too
    other.attention_impl = config.attention_impl
    if other.config.vocab_size != model.config.vocab_size:
        raise UserError(
            f"{found.names[0]} embeds {other.config.vocab_size:,} tokens and the model "
            f"{model.config.vocab_size:,}: as a reference it must read the same tokens"
        )
    if dist.world_size() > 1:
        shard(other, config.precision, device)
    return Reference(other)


def beside(model: Transformer, *, continued: bool) -> Reference:
    """The model without its adapters; `continued` ones had learned before, and count as they were."""
    if continued:
        first = {**trained_beside(model), **adapter_values(model)}
        return Reference(model, lambda: holding(model, first))
    first = trained_beside(model)
    return Reference(model, lambda: without_adapters(model, first))


def annotated(judge: Judge, model: Transformer, device: torch.device) -> Callable[[list[Batch]], list[Batch]]:
    """What gives a step's batches the reference's log-probabilities and, with strays, the drift from it."""

    def annotate(step: list[Batch]) -> list[Batch]:
        moved = [batch.to(device) for batch in step]
        known = [replace(b, ref_logps=judge(b)) for b in moved if isinstance(b, RankedBatch)]
        if strays := [batch.strays for batch in known if batch.strays]:
            drift = _drift(judge, model, strays)
            known = [replace(batch, strays=None, drift=drift) for batch in known]
        return [*known]

    return annotate


@torch.no_grad()
def _drift(judge: Judge, model: Transformer, strays: Sequence[RankedBatch]) -> Tensor:
    """How much likelier than the reference the policy finds answers to other prompts, (), over a whole step.

    So it does not depend on how the step is cut, as an estimate by micro-batch would.
    """
    model.eval()
    gains = torch.cat([answer_logps(model, batch) - judge(batch) for batch in strays])
    reshard(model)
    gains = gains.double()
    total, count = dist.all_reduce_sum(torch.stack([gains.sum(), torch.ones_like(gains).sum()]))
    return (total / count.clamp(min=1)).float()


def precomputed(
    cache_dir: Path | None, made_by: Sequence[str], reference: Reference, data: Data, device: torch.device
) -> Tensor:
    """The reference's log-probability of every answer, (N,) float32; kept under `made_by` and the data."""
    loader, count = data.loader(training=False), data.groups.n_numbers
    digest = hashlib.sha256(repr([FORMAT, *made_by, data.alone, loader.fingerprint]).encode()).hexdigest()[
        :32
    ]
    place = (cache_dir or DEFAULT_DIR).expanduser() / "reference" / f"{digest}.npy"
    table = dist.by_rank_zero(lambda: _read(place, count))
    if table is None:
        # That it cannot be kept is better known before hours of reading than after them.
        dist.by_rank_zero(lambda: _aside(place, np.zeros(count, np.float32)).unlink())
        say(f"reference: reading {data.groups.n_answers:,} answers once")
        table = _compute(reference, loader, data.groups, device)
        dist.by_rank_zero(lambda: _aside(place, table).replace(place))
    say(f"reference: log-probabilities of {data.groups.n_answers:,} answers, kept in {place}")
    return torch.from_numpy(table).to(device)


def _compute(reference: Reference, loader: Loader, groups: Comparisons, device: torch.device) -> np.ndarray:
    sums = torch.zeros(groups.n_numbers, dtype=torch.float64, device=device)
    steps = loader.steps_per_epoch(0)
    with ProgressBar(steps=steps, done=0, print_freq=max(steps // 10, 1), title="reference") as bar:
        for number, step in enumerate(loader, start=1):
            for batch in (batch.to(device) for batch in step):
                assert isinstance(batch, RankedBatch)
                for part in (batch, batch.strays) if batch.strays else (batch,):
                    sums[part.numbers - groups.first] = reference(part).double()
            bar.advance(number)
    return dist.all_reduce_sum(sums).float().cpu().numpy()


def _read(place: Path, count: int) -> np.ndarray | None:
    """The table at this place; None if there is none or it is damaged."""
    try:
        table = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return table if table.shape == (count,) and table.dtype == np.float32 else None


def _aside(place: Path, table: np.ndarray) -> Path:
    """The table in a file beside its place; refuses a cache that has no room for it."""
    aside = place.with_name(f"{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.save(file, table, allow_pickle=False)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        reason = no_room(error) or error.strerror
        raise UserError(
            f"cannot keep the reference's log-probabilities in {place.parent}: {reason}; free it or pass "
            "another --cache_dir"
        ) from error
    return aside
