"""Surgery with adapters on a finished model: add them, switch between them, merge them.

`add_lora_` changes the class of chosen layers in place and leaves their parameters, and so the names that
files have, alone.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tutelage.errors import UserError
from tutelage.model.lora import Kind, LoRAEmbedding, LoRALayer, LoRALinear, LoRAQuantizedLinear
from tutelage.model.quantize import QuantizedLinear
from tutelage.model.score import LAYER as SCORE
from tutelage.model.transformer import Transformer

DEFAULT = "default"  # the adapter that training makes, as PEFT calls it
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRASettings:
    """Which layers get an adapter, and of what kind."""

    rank: int = 16
    alpha: float = 32.0  # scale = alpha / rank
    dropout: float = 0.0  # of what the low-rank path reads, in training
    rslora: bool = False  # scale = alpha / sqrt(rank), https://arxiv.org/abs/2312.03732
    dora: bool = False  # direction and magnitude apart, https://arxiv.org/abs/2402.09353
    init: Literal["lora", "pissa"] = "lora"  # pissa: principal components, https://arxiv.org/abs/2404.02948
    targets: tuple[str, ...] = ()  # patterns of layers' names; none: every linear layer inside blocks
    embedding: bool = False  # the token embedding too, and of a tied model so the head
    head: bool = False
    ranks: tuple[tuple[str, int], ...] = ()  # (pattern, rank): the first that fits a layer's name holds
    alphas: tuple[tuple[str, float], ...] = ()

    def rank_of(self, layer: str) -> int:
        """The rank of a layer's adapter."""
        return next((rank for pattern, rank in self.ranks if fits(pattern, layer)), self.rank)

    def scale_of(self, layer: str) -> float:
        """What B A is multiplied by."""
        alpha = next((alpha for pattern, alpha in self.alphas if fits(pattern, layer)), self.alpha)
        rank = self.rank_of(layer)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern, a regular expression, is all of a dotted name or its last parts; so does PEFT."""
    return re.fullmatch(rf"(.*\.)?({pattern})", name) is not None


ADAPTED: dict[type, type] = {
    nn.Linear: LoRALinear,
    nn.Embedding: LoRAEmbedding,
    QuantizedLinear: LoRAQuantizedLinear,
}


def targets_of(model: Transformer, settings: LoRASettings, *, without: Iterable[str] = ()) -> list[str]:
    """The names of the layers that get an adapter, in the model's order."""
    # One row has no low rank: a score head is trained in full.
    layers = {name: m for name, m in model.named_modules() if _adaptable(m) and name != SCORE}
    chosen = set()
    for pattern in settings.targets:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"lora_targets: {pattern} is no regular expression: {error}") from error
        found = {name for name in layers if fits(pattern, name)}
        if not found:
            raise UserError(
                f"lora_targets: no linear layer or embedding is named {pattern}; the model has "
                + ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
            )
        chosen |= found
    if not settings.targets:
        chosen = {name for name in layers if name.startswith("model.layers.")}
    if settings.embedding:
        chosen.add(EMBEDDING)
    if settings.head:
        if model.score is not None:
            raise UserError("lora_head: the model's head is a score, trained in full beside the adapters")
        chosen.add(HEAD if HEAD in layers else EMBEDDING)  # tied, they are one matrix
    chosen -= set(without)
    for flag, pairs in (("lora_rank_pattern", settings.ranks), ("lora_alpha_pattern", settings.alphas)):
        for pattern, _ in pairs:
            if not any(fits(pattern, name) for name in chosen):
                raise UserError(f"{flag}: no layer with an adapter is named {pattern}")
    if not chosen:
        raise UserError("no layer is left for an adapter; leave out --lora, or lora_unfrozen_params")
    return [name for name in layers if name in chosen]


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, LoRALayer) or type(module) in ADAPTED


def add_lora_(
    model: Transformer,
    settings: LoRASettings,
    *,
    seed: int = 0,
    name: str = DEFAULT,
    without: Iterable[str] = (),
) -> Transformer:
    """Give the model one more adapter, make it the active one, and freeze everything but it.

    B starts at zero, so nothing changes yet; A is drawn from `seed`, U(±1/sqrt(in)), of embeddings N(0, 1).
    PiSSA begins with the largest singular vectors instead; `settle_` takes them out of the weight. Layers
    `without` get none, because they are trained in full.
    """
    model.requires_grad_(False)
    for number, layer in enumerate(targets_of(model, settings, without=without)):
        module = model.get_submodule(layer)
        adapt_(module)
        assert isinstance(module, LoRALayer)
        if name in module.kinds:
            raise ValueError(f"{layer} has an adapter named {name} already")
        if isinstance(module, nn.Embedding) and (settings.dora or settings.init == "pissa"):
            raise UserError("DoRA and PiSSA are for linear layers, and the embedding is to have an adapter")
        module.kinds[name] = Kind(settings.scale_of(layer), settings.dropout)
        _initialise(module, settings, name, settings.rank_of(layer), seed + number)
    use_adapter(model, name)
    return model


def adapt_(module: nn.Module) -> None:
    """Make a layer one that can have adapters."""
    if isinstance(module, LoRALayer):
        return
    module.__class__ = ADAPTED[type(module)]
    assert isinstance(module, LoRALayer)
    for part in ("lora_A", "lora_B", "lora_magnitude", "initial_A", "initial_B"):
        setattr(module, part, nn.ParameterDict())
    module.kinds, module.active = {}, None


@torch.no_grad()
def _initialise(module: LoRALayer, settings: LoRASettings, name: str, rank: int, seed: int) -> None:
    (n_out, n_in), device = module.size, module.device
    if rank > min(n_out, n_in):
        raise UserError(f"lora_rank {rank} is more than a layer of {n_out} x {n_in} has")
    a, b = torch.empty(rank, n_in, device=device), torch.zeros(n_out, rank, device=device)
    if device.type != "meta":
        if settings.init == "pissa":
            assert not isinstance(module, QuantizedLinear), "PiSSA takes something out of the weight"
            a, b = _principal(module.weight, rank, module.kinds[name].scale)
        else:
            draw = torch.Generator().manual_seed(seed)
            if isinstance(module, nn.Embedding):
                a.copy_(torch.randn(rank, n_in, generator=draw))
            else:
                bound = 1 / math.sqrt(n_in)  # kaiming_uniform_(a=sqrt(5))
                a.copy_(torch.rand(rank, n_in, generator=draw) * 2 * bound - bound)
    module.lora_A[name], module.lora_B[name] = nn.Parameter(a), nn.Parameter(b)
    if settings.init == "pissa":
        module.initial_A[name] = nn.Parameter(a.clone(), requires_grad=False)
        module.initial_B[name] = nn.Parameter(b.clone(), requires_grad=False)
    if settings.dora:
        norm = torch.linalg.vector_norm(module.base_weight().float(), dim=1)
        module.lora_magnitude[name] = nn.Parameter(norm)


def _principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A and B whose product, times `scale`, is the best approximation of the weight of this rank."""
    u, s, vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return (root[:, None] * vh[:rank]).contiguous(), (u[:, :rank] * root).contiguous()


@torch.no_grad()
def settle_(model: Transformer) -> None:
    """Take PiSSA's initial components out of the weights: what is left and the adapter give the base model.

    Once, when the adapter is as it was drawn or as a checkpoint has it, so that both leave the same weights.
    """
    for layer in _layers(model):
        for name in layer.initial_A:
            taken = layer.initial_B[name].float() @ layer.initial_A[name].float()
            layer.weight.copy_(
                (layer.weight.float() - layer.kinds[name].scale * taken).to(layer.weight.dtype)
            )


def use_adapter(model: nn.Module, name: str | None) -> None:
    """Make an adapter the active one of the whole model and the only one that learns; None: the base.

    What is trained in full beside adapters is left as it is. Raises ValueError for a name that none has.
    """
    for layer in _known(model, name):
        layer.active = name
        for part in layer.low_rank():
            for key, parameter in part.items():
                parameter.requires_grad_(key == name)


@contextmanager
def adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Inside, the model has this adapter (None: none, which is the base model); no weight moves.

    Raises ValueError for a name that no layer has.
    """
    layers = _known(model, name)
    before = [layer.active for layer in layers]
    for layer in layers:
        layer.active = name
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


def trained_beside(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what is trained in full beside the adapters, for `without_adapters` when it has changed."""
    return {name: p.detach().clone() for name, p in _beside(model).items()}


def adapter_values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the active adapter's values, for `holding` when they have changed."""
    inside = {id(p) for layer in _layers(model) for part in layer.low_rank() for p in part.values()}
    return {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) in inside
    }


def _beside(model: nn.Module) -> dict[str, nn.Parameter]:
    inside = {id(p) for layer in _layers(model) for part in layer.low_rank() for p in part.values()}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside}


@contextmanager
def without_adapters(model: nn.Module, beside: dict[str, Tensor] | None = None) -> Iterator[None]:
    """Inside, the model is the one that training began with: the reference of preference losses.

    What is trained in full has its first values inside: those of `beside`, from `trained_beside`.
    """
    beside = beside or {}
    assert set(_beside(model)) <= set(beside), (
        "weights are trained beside the adapter, and nobody kept their first"
    )
    with adapter(model, None), holding(model, beside):
        yield


@contextmanager
def holding(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters of these names have these values."""
    parameters = {name: p for name, p in model.named_parameters() if name in values}
    now = {name: p.detach().clone() if isinstance(p, DTensor) else p.data for name, p in parameters.items()}
    try:
        for name, parameter in parameters.items():
            _put(parameter, values[name])
        yield
    finally:
        for name, value in now.items():
            _put(parameters[name], value)


@torch.no_grad()
def _put(parameter: Tensor, value: Tensor) -> None:
    """Give a parameter another value; a plain one other data, so that a backward pass finds what it kept."""
    if isinstance(parameter, DTensor):
        parameter.copy_(value)
    else:
        parameter.data = value


def active_adapter(model: nn.Module) -> str | None:
    """The name of the adapter that the model, or a part of it, has now."""
    return next((layer.active for layer in _layers(model)), None)


def _known(model: nn.Module, name: str | None) -> list[LoRALayer]:
    layers = _layers(model)
    if name is not None and layers and not any(name in layer.kinds for layer in layers):
        known = sorted({key for layer in layers for key in layer.kinds})
        raise ValueError(f"no adapter is named {name}; there are {', '.join(known)}")
    return layers


def _layers(model: nn.Module) -> list[LoRALayer]:
    return [module for module in model.modules() if isinstance(module, LoRALayer)]
