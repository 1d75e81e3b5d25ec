"""An adapter as files hold it, whatever their format: put on a model to be trained, or into its weights.

`Merged` is a source of weights like any other: what reads a model reads one with its adapters, each piece
summed in float32 and rounded once.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tutelage.checkpoint.rounded import Rounded, Rounding
from tutelage.checkpoint.source import EMBEDDING, HEAD, Source, parameter_shapes
from tutelage.errors import UserError
from tutelage.model.adapters import DEFAULT, adapt_, use_adapter
from tutelage.model.config import ModelConfig
from tutelage.model.lora import Kind, LoRALayer
from tutelage.model.quantize import QuantizedLinear
from tutelage.model.roles import PARAMETER as ROLES
from tutelage.model.score import PARAMETER as SCORE
from tutelage.model.score import with_score_head
from tutelage.model.transformer import Transformer

_KIND = "2:"  # of fingerprint: those taken in another way cannot be compared
_ROWS, _VALUES = 12, 24  # of each tensor, and of each of its rows, that a fingerprint reads
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one layer's weight: scale · B A, and DoRA's magnitudes."""

    a: Tensor  # (r, in)
    b: Tensor  # (out, r)
    scale: float
    magnitude: Tensor | None = None  # (out,)


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """Everything an adapter's files say."""

    where: str  # for messages
    layers: dict[str, LowRank]  # by the layer's name
    full: dict[str, Tensor]  # parameters that were trained in full, by name
    dropout: float = 0.0
    rslora: bool = False
    base: str | None = None  # the model it was trained on: a path or a hub id
    fingerprint: str | None = None  # that of the model it was trained on


def collected(
    model: Transformer, trained: Mapping[str, Tensor], name: str = DEFAULT, *, rslora: bool = False
) -> StoredAdapter:
    """An adapter of the model with the values of `trained`: its own, and all that was trained beside it.

    What PiSSA took out of the weights is given back: an adapter of twice the rank, for the base as it was.
    """
    layers, taken, dropout = {}, set(), 0.0
    for layer, module in model.named_modules():
        if not isinstance(module, LoRALayer) or name not in module.kinds:
            continue
        parts = {part: f"{layer}.{part}.{name}" for part in ("lora_A", "lora_B", "lora_magnitude")}
        taken |= set(parts.values())
        a, b = trained[parts["lora_A"]].float(), trained[parts["lora_B"]].float()
        if name in module.initial_A:
            initial = [f"{layer}.{part}.{name}" for part in ("initial_A", "initial_B")]
            taken |= set(initial)
            a, b = (
                torch.cat([a, trained[initial[0]].float()]),
                torch.cat([b, -trained[initial[1]].float()], 1),
            )
        magnitude = trained.get(parts["lora_magnitude"])
        kind = module.kinds[name]
        layers[layer] = LowRank(a, b, kind.scale, None if magnitude is None else magnitude.float())
        dropout = kind.dropout
    full = {key: value for key, value in trained.items() if key not in taken}
    both = [layer for layer in layers if f"{layer}.weight" in full]
    assert not both, f"trained by an adapter and in full at once: {both[:_SHOWN]}"
    return StoredAdapter("the trained adapter", layers, full, dropout, rslora)


def same(one: StoredAdapter, other: StoredAdapter | None) -> bool:
    """Whether two adapters have the same values, bit for bit but for the scales' last digits."""
    if other is None or one.layers.keys() != other.layers.keys() or one.full.keys() != other.full.keys():
        return False
    pairs = [(value, other.full[name]) for name, value in one.full.items()]
    for name, low in one.layers.items():
        pair = other.layers[name]
        if not math.isclose(low.scale, pair.scale, rel_tol=1e-9):
            return False
        if (low.magnitude is None) != (pair.magnitude is None):
            return False
        pairs += [(low.a, pair.a), (low.b, pair.b)]
        if low.magnitude is not None and pair.magnitude is not None:
            pairs.append((low.magnitude, pair.magnitude))
    return all(torch.equal(a.float().cpu(), b.float().cpu()) for a, b in pairs)


def attach_(model: Transformer, stored: StoredAdapter, name: str = DEFAULT) -> None:
    """Put an adapter on the model as its active one, to be trained further, and freeze everything else."""
    if model.head is model.model.embed_tokens:
        together = for_tied(stored)
        if together is None:
            raise UserError(
                f"{stored.where} changes the embedding and the head apart, and the model has one matrix for "
                "both; merge it first (`tutelage merge`): the result has two"
            )
        stored = together
    check_fits(model.config, stored)
    for key in stored.full:
        if key.endswith(".weight") and isinstance(model.get_submodule(key[:-7]), QuantizedLinear):
            raise UserError(
                f"{stored.where} holds {key} in full, which in a quantized layer would not be what it "
                "was trained to; leave out --quant"
            )
    model.requires_grad_(False)
    for layer, low in stored.layers.items():
        module = model.get_submodule(layer)
        adapt_(module)
        assert isinstance(module, LoRALayer)
        module.kinds[name] = Kind(low.scale, stored.dropout)
        module.lora_A[name] = nn.Parameter(low.a.float().to(module.device))
        module.lora_B[name] = nn.Parameter(low.b.float().to(module.device))
        if low.magnitude is not None:
            module.lora_magnitude[name] = nn.Parameter(low.magnitude.float().to(module.device))
    with torch.no_grad():
        for key, value in stored.full.items():
            parameter = model.get_parameter(key)
            parameter.copy_(value)
    use_adapter(model, name)
    for key in stored.full:
        model.get_parameter(key).requires_grad_(True)


def check_fits(config: ModelConfig, stored: StoredAdapter) -> None:
    """Refuse an adapter for layers that a model of this config does not have, or has in another shape."""
    shapes = parameter_shapes(config)
    odd = []
    for layer, low in stored.layers.items():
        weight, change = shapes.get(f"{layer}.weight"), (low.b.shape[0], low.a.shape[1])
        if weight is None:
            odd.append(f"{layer} is no layer of the model")
        elif weight != change:
            odd.append(f"{layer} is {_by(weight)} in the model, the adapter changes {_by(change)}")
        elif low.magnitude is not None and tuple(low.magnitude.shape) != weight[:1]:
            odd.append(f"{layer} has {weight[0]} rows, the adapter magnitudes {_by(low.magnitude.shape)}")
    for key, value in stored.full.items():
        if shapes.get(key) != tuple(value.shape):
            there = _by(shapes[key]) if key in shapes else "missing"
            odd.append(f"{key} is {there} in the model, the adapter holds {_by(value.shape)}")
    if odd:
        more = f"\n  and {len(odd) - _SHOWN} more" if len(odd) > _SHOWN else ""
        raise UserError(f"{stored.where} was made for another model:\n  " + "\n  ".join(odd[:_SHOWN]) + more)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


class Merged:
    """Weights with an adapter in them: every row is computed when it is read.

    `tied` is whether the result is; of a tied model it can be another than the source's.
    """

    def __init__(self, source: Source, stored: StoredAdapter, *, tied: bool):
        self.where = f"{source.where} with {stored.where}"
        self.shapes, self.problems, self.dtype = dict(source.shapes), source.problems, source.dtype
        self._source = source
        self._low = {f"{layer}.weight": low for layer, low in stored.layers.items()}
        self._full = stored.full
        scores = SCORE in {*self.shapes, *self._full}
        # The stored one, without its change.
        self._head_is_embedding = not (tied or scores or HEAD in self.shapes)
        if scores:
            self.shapes.pop(HEAD, None)
        elif self._head_is_embedding:
            self.shapes[HEAD] = self.shapes[EMBEDDING]
        elif tied and EMBEDDING in {*self._low, *self._full}:
            self.shapes.pop(HEAD, None)  # a copy of what the embedding was
        for name in {ROLES, SCORE} & {*stored.full}:
            self.shapes[name] = tuple(stored.full[name].shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of the tensor `name`, as the adapter makes them, float32 where it changes them."""
        low = self._low.get(name)
        if name in self._full:
            rows = self._full[name][start:stop]
        else:
            stored = EMBEDDING if name == HEAD and self._head_is_embedding else name
            rows = self._source.rows(stored, start, stop)
        if low is None:
            return rows
        rows = rows.float() + low.scale * (low.b[start:stop].float() @ low.a.float())
        if low.magnitude is None:
            return rows
        return rows * (low.magnitude[start:stop].float() / torch.linalg.vector_norm(rows, dim=1))[:, None]


def merged(
    config: ModelConfig,
    source: Source,
    stored: StoredAdapter,
    *,
    force: bool = False,
    trained_on: Rounding | None = None,
) -> tuple[ModelConfig, Source]:
    """The model that an adapter makes of another, or of what quantization makes of that. Refused: layers that
    do not fit, and, unless `force`d, a model that is not the one it was trained on.
    """
    base, config = config, shape_with(config, stored)
    if config.tied:
        together = for_tied(stored)
        config, stored = (replace(config, tied=False), stored) if together is None else (config, together)
    check_fits(config, stored)
    if stored.fingerprint and not force:
        check_trained_on(stored, fingerprint(base, source), source.where)
    return config, Merged(Rounded(source, trained_on) if trained_on else source, stored, tied=config.tied)


def shape_with(config: ModelConfig, stored: StoredAdapter) -> ModelConfig:
    """The shape of a model with the adapter, which may bring a score head and role embeddings."""
    if SCORE in stored.full and config.head != "score":
        config = with_score_head(config)
    return replace(config, role_embeddings=config.role_embeddings or ROLES in stored.full)


def check_trained_on(stored: StoredAdapter, found: str, where: str, *, force: bool = False) -> None:
    """Refuse an adapter on a model with another fingerprint than the one it was trained on."""
    if stored.fingerprint in (None, found) or force or not stored.fingerprint.startswith(_KIND):
        return
    base = f" ({stored.base})" if stored.base else ""
    raise UserError(
        f"{stored.where} was trained on another model{base} than {where}: the shapes agree, the weights do "
        "not; give that one before it, or --force to put them together all the same"
    )


def for_tied(stored: StoredAdapter) -> StoredAdapter | None:
    """The adapter as a tied model can have it, whose embedding is its head: files say a change of it twice.

    None if the two change apart.
    """
    embedding, head = (_change(stored, name) for name in (EMBEDDING, HEAD))
    if embedding is None and head is None:
        return stored
    if embedding is None or head is None or not torch.allclose(embedding, head, atol=1e-6):
        return None
    layers = {name: low for name, low in stored.layers.items() if f"{name}.weight" != HEAD}
    return replace(stored, layers=layers, full={k: v for k, v in stored.full.items() if k != HEAD})


def _change(stored: StoredAdapter, name: str) -> Tensor | None:
    full, low = stored.full.get(name), stored.layers.get(name.removesuffix(".weight"))
    if low is None:
        return None if full is None else full.float()
    change = low.scale * (low.b.float() @ low.a.float())
    return change if full is None else full.float() + change


def fingerprint(config: ModelConfig, source: Source) -> str:
    """What tells a model from another of its shape: a hash of values from all over every tensor, as bfloat16.

    The same for copies in float32 and bfloat16, and for an adapter merged while loading or before it.
    """
    digest = hashlib.sha256()
    for name, shape in sorted(source.shapes.items()):
        if name.endswith("rotary_emb.inv_freq") or (config.tied and name == HEAD):
            continue
        for row in sorted({int(place) for place in torch.linspace(0, shape[0] - 1, _ROWS)}):
            values = source.rows(name, row, row + 1).flatten()
            values = values[:: max(1, len(values) // _VALUES)].to(torch.bfloat16).contiguous()
            digest.update(name.encode() + values.view(torch.int16).numpy().tobytes())
    return f"{_KIND}{digest.hexdigest()[:32]}"
