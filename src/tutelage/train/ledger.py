"""Counts the bytes and the arithmetic of a step that runs on tensors without data (FakeTensors).

Below autograd every operation passes through `Ledger`, which books the storages it makes under the part of
the step that is running, and strikes them out when they are freed. What the layout of a batch depends on
(where documents begin, which positions count) is computed in earnest beside it: those tensors are small.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

_EARNEST = 1 << 20  # elements of the largest tensor that is computed in earnest too
_DYNAMIC = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


class Ledger(TorchDispatchMode):
    """Live bytes by part, the highest sum, what it was made of, and floating-point operations by part."""

    def __init__(self, fake: FakeTensorMode, *, earnest: bool) -> None:
        super().__init__()
        self._earnest = earnest  # on GPUs no layout waits for data
        self.part = "weights"  # under which new storages are booked
        self.total = 0
        self.peak = 0
        self.flops: dict[str, float] = {}
        self._fake = fake
        self._names: dict[int, str] = {}  # entry -> part; entries outlive their storages, to be named later
        self._live: dict[int, int] = {}  # entry -> bytes
        self._entries: dict[
            int, tuple[int, weakref.ref]
        ] = {}  # id of a storage -> entry, and who says it died
        self._real: dict[int, torch.UntypedStorage] = {}  # id of a storage -> the data it would hold
        self._at_peak: dict[int, int] = {}
        self._peak_part = ""
        self._risen = False  # since the last copy into _at_peak

    def name(self, tensors: Iterator[Tensor], part: str) -> None:
        """Book these tensors under `part`, from the beginning."""
        for tensor in tensors:
            self._names[self._book(tensor)] = part

    def count_flops(self, operations: float) -> None:
        """Add to the running part's."""
        self.flops[self.part] = self.flops.get(self.part, 0.0) + operations

    def at_peak(self) -> tuple[dict[str, int], str]:
        """The bytes of every part when the sum was highest, and the part that ran then."""
        self._note_peak()
        parts: dict[str, int] = {}
        for entry, size in self._at_peak.items():
            parts[self._names[entry]] = parts.get(self._names[entry], 0) + size
        return parts, self._peak_part

    def live(self) -> dict[str, int]:
        """The bytes of every part now."""
        parts: dict[str, int] = {}
        for entry, size in self._live.items():
            parts[self._names[entry]] = parts.get(self._names[entry], 0) + size
        return parts

    def in_earnest(self, tensor: Tensor) -> Tensor:
        """A tensor without data that stands for this one, whose data decide how things are laid out."""
        fake = self._fake.from_tensor(tensor, static_shapes=True)
        self._book(fake)
        self._real[id(fake.untyped_storage())] = tensor.untyped_storage()
        return fake

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Book what is made inside under `part`."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._item(args[0])
        real = self._realised(func, args, kwargs)
        if real is not None and any(tag in func.tags for tag in _DYNAMIC):
            with unset_fake_temporarily():
                found = func(*real[0], **real[1])
            return tree_map(lambda x: self.in_earnest(x) if isinstance(x, Tensor) else x, found)
        out = func(*args, **kwargs)
        if real is not None:
            self._compute(func, real, out)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.count_flops(formula(*args, **kwargs, out_val=out))
        for tensor in (out,) if isinstance(out, Tensor) else tree_iter(out):
            if isinstance(tensor, Tensor):
                self._book(tensor)
        if self._earnest and torch.Tag.pointwise in func.tags:
            self._add_for_a_moment(_converted(args, kwargs))
        return out

    def _add_for_a_moment(self, size: int) -> None:
        """Book what lives inside one operation only."""
        if self.total + size > self.peak and size:
            entry = len(self._names)
            self._names[entry], self._risen = self.part, False
            self.peak, self._peak_part = self.total + size, self.part
            self._at_peak = {**self._live, entry: size}

    def _book(self, tensor: Tensor) -> int:
        """The entry of a tensor's storage, a new one if it has none; on the meta device it takes nothing."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._entries:
            return self._entries[key][0]
        entry, size = len(self._names), 0 if tensor.device.type == "meta" else storage.nbytes()
        # In a backward pass only blocks that are run again record what they do.
        part = "recomputed" if self.part == "temporary" and torch.is_grad_enabled() else self.part
        # The callback holds no tensor: a storage is struck out when the last view of it goes.
        self._entries[key] = (entry, weakref.ref(storage, lambda _: self._strike(key)))
        self._names[entry], self._live[entry] = part, size
        self.total += size
        if self.total > self.peak:
            self.peak, self._peak_part, self._risen = self.total, self.part, True
        return entry

    def _strike(self, key: int) -> None:
        if self._risen:
            self._note_peak()
        entry, _ = self._entries.pop(key)
        self._real.pop(key, None)
        self.total -= self._live.pop(entry)

    def _note_peak(self) -> None:
        if self._risen:  # the sum has not fallen since it rose: what lives is what it was made of
            self._at_peak, self._risen = dict(self._live), False

    def _realised(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """The arguments with data in place of tensors without; None unless all of them have data."""
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        if not self._earnest or not all(
            not isinstance(x, FakeTensor) or id(x.untyped_storage()) in self._real for x in tensors
        ):
            return None
        return tree_map(self._with_data, (args, kwargs))

    def _with_data(self, x: Any) -> Any:
        if not isinstance(x, FakeTensor):
            return x
        with unset_fake_temporarily():
            return torch.empty(0, dtype=x.dtype).set_(
                self._real[id(x.untyped_storage())], x.storage_offset(), x.shape, x.stride()
            )

    def _compute(self, func: Any, real: tuple[Any, Any], out: Any) -> None:
        outs = [x for x in tree_iter(out) if isinstance(x, Tensor)]
        made_of_nothing = not any(isinstance(x, Tensor) for x in tree_iter(real))
        if made_of_nothing and any(x.is_floating_point() for x in outs):
            return  # a weight decides no layout
        if any(x.device.type == "meta" for x in outs):
            return
        if sum(x.numel() for x in outs) > _EARNEST:
            return
        with unset_fake_temporarily():
            found = [x for x in tree_iter(func(*real[0], **real[1])) if isinstance(x, Tensor)]
        for fake, data in zip(outs, found, strict=True):
            self._real.setdefault(id(fake.untyped_storage()), data.untyped_storage())

    def _item(self, tensor: Tensor) -> Any:
        """The number in a tensor of one element; 1 where there is none, as a loss or a norm may be."""
        real = self._realised(None, (tensor,), {})
        if real is not None:
            with unset_fake_temporarily():
                return real[0][0].item()
        constant = getattr(tensor, "constant", None)
        if constant is not None:
            with unset_fake_temporarily():
                return constant.item()
        return 1.0 if tensor.is_floating_point() else 1


def _converted(args: Any, kwargs: Any) -> int:
    """Bytes of the copies that an elementwise operation on a CPU makes of tensors of narrower floats.

    A kernel for CPUs reads one dtype: what is added to float32 in bfloat16 is copied whole before. On GPUs
    kernels convert as they read.
    """
    tensors = [
        x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor) and x.dim() and x.is_floating_point()
    ]
    widest = max((x.dtype.itemsize for x in tensors), default=0)
    return sum(x.numel() * widest for x in tensors if x.dtype.itemsize < widest)
