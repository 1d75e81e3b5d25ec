"""Recomputation, offloading and compilation change how a finished model runs, never what it gives."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from tutelage.model.adapters import active_adapter, adapter
from tutelage.model.block import MLP
from tutelage.model.planned import main_memory
from tutelage.model.transformer import Transformer

# Of attention only what is fused: the scores of the other kind are larger than all else together.
_MATMULS: list[Any] = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
_ATTENTION: list[Any] = [
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]
SMALLEST = 1 << 12  # numbers that are worth a way to main memory
BUDGET = 0.95  # of the activations that would be kept; to 0.8 it is reached without repeating a matmul


def recompute(model: Transformer, ratio: float, policy: Literal["block", "matmul"] = "block") -> list[int]:
    """Checkpoint the activations of this share of the blocks, evenly spaced; returns which.

    Block k, counted from 1, is chosen when k · ratio reaches 0.5, 1.5, 2.5, … `block` forms all inside it
    again from what entered it; `matmul` keeps what matmuls and attention gave and forms the rest again.
    Compile before: nothing inside a checkpoint is compiled later. matmul is for blocks that are not compiled.
    """

    def contexts(block: nn.Module) -> tuple[Any, Any]:
        """Of the forward pass and of its repetition, which has the adapter that the forward pass had."""
        kept = (nullcontext(), nullcontext())
        if policy == "matmul":
            kept = create_selective_checkpoint_contexts(_kept(model))
        return kept[0], _both(kept[1], adapter(block, active_adapter(block)))

    chosen, threshold = [], 0.5
    for index, block in enumerate(model.model.layers):
        # A third of 3 blocks is not to be lost to 0.333… · 3 < 1.
        if (index + 1) * ratio >= threshold - 1e-9:
            how = {"use_reentrant": False, "context_fn": partial(contexts, block)}
            block.forward = partial(checkpoint, block.forward, **how)
            # All is formed anew here, up to what the last matmul reads: that matmul itself need not be.
            _mlp(block).form_anew = policy == "matmul"
            chosen.append(index)
            threshold += 1
    return chosen


def _mlp(block: nn.Module) -> MLP:
    mlp = block.mlp
    assert isinstance(mlp, MLP)
    return mlp


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


def _kept(model: Transformer) -> list[Any]:
    """The operations whose results a checkpoint keeps."""
    if not model.attention_dropout:
        return [*_MATMULS, *_ATTENTION]
    # Attention that drops weights draws numbers: left out the second time, all draws after it would differ.
    return _MATMULS


def offload(model: Transformer) -> None:
    """What the backward pass needs of the blocks waits in main memory, in pinned pages, until it is needed.

    Weights stay where they are. Last of all: what recomputation keeps is then what waits.
    """
    for block in model.model.layers:
        block.forward = partial(_offloaded, block.forward)


def _offloaded(forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(_to_main_memory, _back):
        return forward(*inputs)


def _to_main_memory(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
    weight = tensor if tensor._base is None else tensor._base
    if isinstance(weight, nn.Parameter) or tensor.numel() < SMALLEST:
        return tensor
    waiting = torch.empty_like(tensor, device=main_memory(), pin_memory=tensor.is_cuda)
    waiting.copy_(tensor, non_blocking=tensor.is_cuda)
    return tensor.device, waiting


def _back(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
    if isinstance(packed, Tensor):
        return packed
    device, waiting = packed
    return waiting.to(device, non_blocking=device.type == "cuda")


def compile_blocks(model: Transformer) -> None:
    """Compile block by block: one graph serves all layers, and what depends on the data stays outside it.

    What is computed element by element is computed again in the backward pass, joined to other such work:
    165 of 1,480 MB less for a 15M model at 8,192 positions, in the same time.
    """
    functorch.activation_memory_budget = BUDGET
    for block in model.model.layers:
        block.forward = torch.compile(block.forward)
