"""From settings to a plan: the model's shape, a batch as large as they come, and what a step of it takes."""

import dataclasses
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tutelage.checkpoint.hf import load_config, read_config
from tutelage.checkpoint.hub import config_path
from tutelage.checkpoint.tokenizer import load_tokenizer
from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.presets import PRESETS
from tutelage.model.quantize import quantize_
from tutelage.model.score import refuse_score_head
from tutelage.model.transformer import Transformer, set_dropout
from tutelage.objectives.base import Objective
from tutelage.objectives.language import NextToken
from tutelage.recipes.plan import PlanPretrainConfig, PlanSFTConfig
from tutelage.recipes.saying import say
from tutelage.recipes.stage.adapting import adapt, blueprint_of
from tutelage.recipes.stage.assembling import Assembled, assemble
from tutelage.recipes.stage.chain import chain_of
from tutelage.recipes.stage.chain import shape_of as chain_shape
from tutelage.recipes.stage.preparing import with_roles
from tutelage.recipes.stage.quantizing import quantization_of
from tutelage.recipes.stage.shaping import changed, named_shape
from tutelage.train.devices import Device
from tutelage.train.flops import flops_per_token
from tutelage.train.plan import Estimate, estimate, sharded
from tutelage.train.precision import compute_dtype, load_dtype

PlanConfig = PlanSFTConfig | PlanPretrainConfig
SPARE = 0.06  # of a GPU's memory: what is not counted (its context, gaps between tensors) has to fit too
KEPT = 1.7  # on CPU, where malloc keeps what is freed: the most that a run took, as a multiple of its tensors
_MFU, _MFU_CPU = (
    0.35,
    0.5,
)  # torchtitan's 8B on H100s uncompiled and compiled: 0.30 and 0.35; here: docs/plan.md


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would take on a device."""

    device: Device
    estimate: Estimate  # on each of the processes
    processes: int
    tokens: int  # of a step, over all processes
    model_flops: float  # of a step that the model needs, whatever is computed again
    mfu: float  # of which the time is made
    seconds: float | None  # a step; None: the device's speed is not known
    notes: tuple[str, ...]  # what was assumed

    @property
    def fits(self) -> bool:
        """Whether the peak leaves the device room for what is not counted."""
        times = 1 / (1 - SPARE) if self.device.gpu else KEPT
        return self.estimate.peak * times <= self.device.memory * 2**30


def shape_of(config: PlanConfig) -> ModelConfig:
    """The model's shape; no weights are read."""
    if isinstance(config, PlanPretrainConfig) and not config.ckpt_paths:
        shape = changed(named_shape(config.model), config)
        vocabulary = load_tokenizer(config.tokenizer).size if config.tokenizer else shape.vocab_size
        multiple = config.pad_vocab_to_multiple_of
        return dataclasses.replace(shape, vocab_size=-(-vocabulary // multiple) * multiple)
    name = config.ckpt_paths[0]
    if name in PRESETS:
        shape = PRESETS[name]
    elif Path(name).expanduser().exists():
        shape = chain_shape(chain_of(config.ckpt_paths))
    else:
        if near := difflib.get_close_matches(name.lower(), PRESETS, n=1):
            raise UserError(f"{name} is no path, and no shape has this name; did you mean {near[0]}?")
        path = config_path(name)
        shape = read_config(path) if path.suffix == ".json" else load_config(path)
    refuse_score_head(shape, name)
    if isinstance(config, PlanSFTConfig):
        return with_roles(shape, use=config.use_role_embeddings, init=config.role_embeddings_init)
    return shape


def plan_of(config: PlanConfig, shape: ModelConfig, device: Device) -> Plan:
    """Run a step without data, as the settings say, and reckon its time."""
    quantization = quantization_of(
        config.quant, config.quant_double
    )  # its library is loaded with real tensors
    batch, pairs = batch_of(config)
    found = estimate(
        lambda objective, source: built(config, shape, objective, source),
        NextToken(fp32_logits=config.fp32_logits),
        batch,
        accumulate=config.gradient_accum_steps,
        gpu=device.gpu,
        pairs=pairs,
    )
    if config.processes > 1:
        found = sharded(
            found, shape, config.precision, config.processes, quantization, released=config.gradient_release
        )
    positions = batch.tokens.numel()
    tokens = positions * config.gradient_accum_steps * config.processes
    mfu = config.mfu or (_MFU if device.gpu else _MFU_CPU)
    return Plan(
        device=device,
        estimate=found,
        processes=config.processes,
        tokens=tokens,
        model_flops=flops_per_token(blueprint_of(config, shape), pairs / positions) * tokens,
        mfu=mfu,
        seconds=None if device.flops is None else found.flops / (device.flops * mfu),
        notes=tuple(_notes(config, device)),
    )


def suggestions(
    config: PlanConfig, shape: ModelConfig, device: Device, plan: Plan
) -> list[tuple[dict[str, Any], Plan]]:
    """Changes that save memory with their plans: alone, by what they save, then as many as it needs."""
    peak, memory = plan.estimate.peak / 2**30, device.memory
    say(f"it does not fit: {peak:.1f} of {memory:.1f} GiB; trying changes, each about as long as this took")
    possible = changes(config)
    alone = [(change, _planned(config, shape, device, change)) for change in possible]
    alone = sorted(
        (row for row in alone if row[1].estimate.peak < plan.estimate.peak), key=lambda r: r[1].estimate.peak
    )
    if len(alone) < 2 or any(row[1].fits for row in alone):
        return alone
    together, combined = {}, plan
    for change in possible:
        if not any(change is helpful for helpful, _ in alone) or _changed(config, together | change) is None:
            continue
        together = together | change
        combined = _planned(config, shape, device, together)
        if combined.fits:
            break
    return [*alone, (together, combined)]


def changes(config: PlanConfig) -> list[dict[str, Any]]:
    """What could be set otherwise, and the stage would accept."""
    return [change for change in _changes(config) if _changed(config, change) is not None]


def _changed(config: PlanConfig, change: dict[str, Any]) -> PlanConfig | None:
    """The settings with the change; None where the stage would refuse them."""
    try:
        return dataclasses.replace(config, **change)
    except UserError:
        return None


def _planned(config: PlanConfig, shape: ModelConfig, device: Device, change: dict[str, Any]) -> Plan:
    found = plan_of(dataclasses.replace(config, **change), shape, device)
    words = ", ".join(f"{name} {value}" for name, value in change.items())
    say(f"  {words}: {found.estimate.peak / 2**30:.1f} GiB")
    return found


def _changes(config: PlanConfig) -> Iterator[dict[str, Any]]:
    """What may save memory; what changes the result least is first."""
    rows, half = config.micro_batch_size_per_gpu, config.max_seq_len // 2
    if config.selective_ac_ratio < 1 and not config.compile:
        yield {"selective_ac_ratio": 1.0, "ac_policy": "matmul"}
    if config.selective_ac_ratio < 1 or config.ac_policy == "matmul":
        yield {"selective_ac_ratio": 1.0, "ac_policy": "block"}
    if rows > 1 and not config.gradient_release:
        yield {
            "micro_batch_size_per_gpu": 1,
            "gradient_accum_steps": config.gradient_accum_steps * rows,
        }
    if not config.lora and not config.gradient_release:  # refused where gradients are added up
        yield {"gradient_release": True, "clip_grad_norm": 0.0}
    kernels, state = find_spec("bitsandbytes") is not None, config.optimizer_state
    if not config.lora and state in (None, "fp32") and config.precision != "bf16_pure":
        yield {"optimizer_state": "bf16"}
    if not config.lora and state in (None, "fp32", "bf16") and kernels and config.processes == 1:
        yield {"optimizer_state": "8bit"}
    if config.precision in ("fp32", "bf16", "fp16"):
        yield {"precision": "bf16" if config.precision == "fp32" else "bf16_pure"}
    if not config.lora and config.ckpt_paths:
        yield {"lora": True}
    if config.quant == "none" and config.ckpt_paths:
        yield {"lora": True, "quant": "nf4" if kernels else "int8"}
    if config.optimizer == "adamw":
        yield {"optimizer": "muon"}
    if config.ema_decay:
        yield {"ema_decay": 0.0}
    if half >= 128:
        yield {"max_seq_len": half}


def built(
    config: PlanConfig, shape: ModelConfig, objective: Objective, source: Iterator[list[Batch]]
) -> Assembled:
    """The run's own model and trainer. Blocks are never compiled here: that needs data."""
    quantization = quantization_of(config.quant, config.quant_double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(compute_dtype(config.precision))
    try:
        if quantization is None:
            model = Transformer(shape)
        else:  # a matrix after another, as load_model reads them: never all of them before there are codes
            with torch.device("meta"):
                model = Transformer(shape)
            quantize_(model, quantization)
            _allocate(model)
        adapt(model, config)
    finally:
        torch.set_default_dtype(before)
    for parameter in model.parameters():
        if parameter.requires_grad:  # as Start.load reads them
            parameter.data = parameter.data.to(load_dtype(config.precision))
    if isinstance(config, PlanPretrainConfig):
        set_dropout(
            model,
            embed=config.dropout_embed,
            attn=config.dropout_attn,
            resid=config.dropout_resid,
            head=config.dropout_head,
        )
    state = "8bit" if config.optimizer_state == "paged_8bit" else config.optimizer_state  # paging needs CUDA
    plain = dataclasses.replace(config, compile=False, optimizer_state=state)
    return assemble(plain, model, objective, source, steps=1, device=torch.device("cpu"))


def _allocate(model: nn.Module) -> None:
    """Give what is on the meta device room, and nothing in it."""
    for module in model.modules():
        for name, p in [*module.named_parameters(recurse=False)]:
            setattr(module, name, nn.Parameter(torch.empty_like(p, device="cpu")))
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, torch.empty_like(buffer, device="cpu"))


def batch_of(config: PlanConfig) -> tuple[Batch, float]:
    """Full rows, all of it learned, and how many pairs of positions see each other in them."""
    B, T = config.micro_batch_size_per_gpu, config.max_seq_len
    length = min(config.document_tokens or T, T)
    places = torch.arange(T)
    docs, positions = places // length, places % length
    zeros = torch.zeros(B, T, dtype=torch.int64)
    batch = Batch(
        tokens=zeros,
        targets=zeros.clone(),
        weights=torch.ones(B, T),
        positions=positions.expand(B, T).clone(),
        docs=docs.expand(B, T).clone(),
        roles=zeros.clone(),
    )
    return batch, float(B * (positions + 1).sum())


def _notes(config: PlanConfig, device: Device) -> Iterator[str]:
    if device.gpu:
        yield "attention keeps no scores (FlexAttention): its output and a normaliser a position and head"
        yield f"{SPARE:.0%} of the device are left to its driver and to gaps between tensors"
    else:
        yield f"the process may take up to {KEPT} times as much: freed memory is kept, in pieces, for speed"
    if config.compile:
        yield "blocks as they are uncompiled; compiled ones keep less, not more"
    if config.optimizer_state == "paged_8bit":
        yield "moments are all on the device, as while there is room for them"
    if config.offload_activations:
        yield "what is offloaded is in main memory at once, and its way back takes no time"
    if config.processes > 1:
        yield "shares of several processes are reckoned, not run: two gathered blocks, and embedding and head"
