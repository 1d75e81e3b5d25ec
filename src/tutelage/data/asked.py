"""What a pickle asks to be called, as words: which names stand for data, and what a call of them is."""

from dataclasses import dataclass, field
from typing import Any

NAMES = (  # by what they begin with; Python 2 calls builtins __builtin__ and copyreg copy_reg
    *("numpy.", "datasets.", "pyarrow.", "torch.utils.data.", "collections.OrderedDict", "_codecs.encode"),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("bytes", "dict", "object")),
    *("builtins.bytearray", "__builtin__.bytearray", "copyreg._reconstructor", "copy_reg._reconstructor"),
)


@dataclass(frozen=True, slots=True)
class Name:
    """A function or class that a pickle names. It is never looked up."""

    text: str


@dataclass(slots=True)
class Asked:
    """A call that a pickle asks for and that was not made."""

    name: str
    args: tuple[Any, ...]
    state: Any = None
    items: dict[str | bytes, Any] = field(default_factory=dict)


def answer(asked: Name, args: tuple[Any, ...]) -> Any:
    """What stands for a call: the value, where it only spells one, or a record that it was asked for."""
    if asked.text == "collections.OrderedDict" and not args:
        return {}
    if asked.text == "_codecs.encode" and len(args) == 2 and type(args[0]) is str:
        return args[0].encode("latin-1")
    if asked.text.endswith(".bytes") and not args:
        return b""
    if asked.text.endswith(".bytearray") and len(args) == 1 and type(args[0]) is bytes:
        return args[0]
    if asked.text.endswith("._reconstructor") and args and isinstance(args[0], Name):
        return Asked(args[0].text, ())
    return Asked(asked.text, args)
