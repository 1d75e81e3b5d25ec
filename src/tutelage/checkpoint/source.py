"""What every kind of weight file answers: which tensors it holds under Hugging Face names, and their rows.

A model is built from it piece by piece, so loading costs the weights and one piece more.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from tutelage.errors import UserError
from tutelage.model.config import ModelConfig
from tutelage.model.families import FAMILIES
from tutelage.model.quantize import Quantization, QuantizedLinear, quantizable
from tutelage.model.score import PARAMETER as SCORE
from tutelage.model.transformer import Transformer

ROLES = "model.role_embeddings.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
PIECE = 4 * 2**20  # elements read at a time
_SHOWN = 5  # names per kind of problem


class Source(Protocol):
    """Weights on disk."""

    where: str  # for messages
    shapes: dict[str, tuple[int, ...]]  # by Hugging Face name
    problems: list[str]  # what is wrong with the files themselves

    @property
    def dtype(self) -> torch.dtype:
        """Of most of the weights."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of the tensor `name`, on the CPU, in any floating dtype."""
        ...


def check(config: ModelConfig, source: Source) -> None:
    """Refuse files that lack a parameter of `config`, hold another, or hold one of another shape."""
    wanted = parameter_shapes(config)
    # A tied model's head may be stored too (fill compares it); rotary frequencies are computed, never read.
    found = {name: shape for name, shape in source.shapes.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tied and found.get(HEAD) == wanted[EMBEDDING]:
        del found[HEAD]
    problems = list(source.problems)
    if missing := [name for name in wanted if name not in found]:
        problems.append(f"missing: {_listed(missing)}{_hint(config, missing)}")
    if unexpected := [name for name in found if name not in wanted]:
        problems.append(f"unexpected: {_listed(unexpected)}")
    misshapen = [
        f"{name} is {_shape(found[name])}, config.json makes it {_shape(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    problems += misshapen[:_SHOWN]
    if len(misshapen) > _SHOWN:
        problems.append(f"{len(misshapen) - _SHOWN} more of the wrong shape")
    if problems:
        raise UserError(f"{source.where} cannot be loaded:\n  " + "\n  ".join(problems))


def fill(
    config: ModelConfig,
    source: Source,
    dtype: torch.dtype | Callable[[str], torch.dtype],
    device: torch.device | str,
    quantization: Quantization | None = None,
) -> Transformer:
    """The model with the weights of `source`, which `check` has passed, in a dtype that may be by name.

    Quantized it is layer by layer: one matrix at a time is there in full.
    """
    of = dtype if callable(dtype) else lambda _: dtype
    stored = str(source.dtype if callable(dtype) else dtype).removeprefix("torch.")
    with torch.device("meta"):
        model = Transformer(replace(config, dtype=stored))
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(of(name))
    quantized = quantizable(model) if quantization else []
    for path, module in model.named_modules():
        if path not in quantized:
            module.to_empty(device=device, recurse=False)
            for name, parameter in module.named_parameters(path, recurse=False):
                read_into(parameter, source, name)
    if quantization:
        _fill_quantized(model, quantized, source, device, quantization)
    if config.tied and HEAD in source.shapes:
        _check_head_is_embedding(source)
    return model


def _fill_quantized(
    model: Transformer,
    names: list[str],
    source: Source,
    device: torch.device | str,
    quantization: Quantization,
) -> None:
    """Read, quantize and replace one layer after the other. All take turns in one piece of memory: where
    matrices are freed among what stays, holes are left that the next does not fit.
    """
    largest = max(torch.Size(source.shapes[f"{name}.weight"]).numel() for name in names)
    dtype = model.get_parameter(f"{names[0]}.weight").dtype
    room = torch.empty(largest, dtype=dtype, device=device)
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weight = room[: linear.weight.numel()].view(linear.weight.shape)
        read_into(weight, source, f"{name}.weight")
        bias = linear.bias
        if bias is not None:
            bias = nn.Parameter(torch.empty_like(bias, device=device))
            read_into(bias, source, f"{name}.bias")
        model.set_submodule(name, QuantizedLinear(weight, bias, quantization))


@torch.no_grad()
def read_into(into: Tensor, source: Source, name: str) -> None:
    """Put the tensor `name` there, a few rows at a time."""
    for start, stop in pieces(into.shape):
        rows = source.rows(name, start, stop)
        into[start:stop].copy_(rows)
        if not all(bound.isfinite() for bound in rows.aminmax()):  # a tenth of the work of isfinite on all
            raise UserError(
                f"{source.where}: {name} has NaN or infinity among its weights (rows {start:,} to {stop:,}): "
                "the file is damaged, or its training went wrong; no such model is loaded"
            )


def pieces(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of rows of at most PIECE elements each (at least one row)."""
    step = max(1, PIECE // max(1, torch.Size(shape[1:]).numel()))
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What a file of this model holds: every parameter's name and shape."""
    with torch.device("meta"):
        model = Transformer(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _check_head_is_embedding(source: Source) -> None:
    if not same_rows(source, HEAD, EMBEDDING):
        raise UserError(
            f"{source.where}: lm_head.weight differs from model.embed_tokens.weight, but config.json has "
            "tie_word_embeddings = true; set it to false to use both, or remove lm_head.weight"
        )


class HasRows(Protocol):
    """A source, or what is to become one."""

    shapes: dict[str, tuple[int, ...]]

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of the tensor `name`."""
        ...


def same_rows(source: HasRows, one: str, other: str) -> bool:
    """Whether two tensors are equal; read until they are not."""
    return source.shapes[one] == source.shapes[other] and all(
        torch.equal(source.rows(one, *piece), source.rows(other, *piece))
        for piece in pieces(source.shapes[one])
    )


def _hint(config: ModelConfig, missing: list[str]) -> str:
    """What in config.json may ask for more than there is."""
    if SCORE in missing:
        wanted = FAMILIES[config.family].architecture
        return f" (a language model's config.json names the architecture {wanted})"
    if missing == [ROLES]:
        return " (for a fresh table set use_role_embeddings = false in config.json, and give sft the flag)"
    if HEAD not in missing or config.tied:
        return ""
    return " (if the model has no head of its own, set tie_word_embeddings = true in config.json)"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
