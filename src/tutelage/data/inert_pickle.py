"""Pickles read without running anything: values come back, and what asks to be called comes back as words.

A pickle is a program for a small stack machine, and two of its instructions call whatever it names. This
machine has no such instructions: a call becomes an `Asked`, which says what was asked and with which
arguments. Others read those few that stand for data (`pickled_arrays.py`); any other name is refused. What
a file may grow to in memory is bounded by its size.
Format: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tutelage.data.asked import NAMES, Asked, Name, answer
from tutelage.errors import UserError

MOST_BYTES = 8 << 30  # of a file
GROWTH, SLACK = 32, 64 << 20  # bytes in memory of a byte in the file, and what any file may take
DEEPEST = 64  # marks that wait for their end
_LONGEST_NUMBER = 20  # characters or bytes
_OBJECT = 100  # bytes of an empty container, about; of a key in an object
_INTS = list(range(1 << 16))  # one object for every token, however often it stands in a file


def read_pickle(path: Path) -> Any:
    """What the pickle in a file holds, made of plain values and `Asked`."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(
                f"{path} has {size >> 30} GiB; a pickle of more than {MOST_BYTES >> 30} is not read"
            )
        if not size:
            raise UserError(f"{path} is empty")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Machine(path, data, SLACK + GROWTH * size).run()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


class _Machine:
    """Runs one pickle. `room` is how many bytes its values may still take."""

    def __init__(self, path: Path, data: mmap.mmap, room: int) -> None:
        self.path, self.data, self.room = path, data, room
        self.at = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # how high the stack was at each
        self.memo: list[Any] = []

    def run(self) -> Any:
        """The value that is left at the end."""
        data, stack, at = self.data, self.stack, 0
        try:
            while (code := data[at]) != 0x2E:  # STOP
                if code == 0x4D:  # BININT2, of which token ids are made
                    stack.append(_INTS[data[at + 1] | data[at + 2] << 8])
                    at += 3
                elif code == 0x4B:  # BININT1
                    stack.append(data[at + 1])
                    at += 2
                else:
                    self.at = at + 1
                    _STEPS[code](self)
                    at = self.at
            (value,) = stack
            return value
        except KeyError as error:
            self.refuse(f"instruction 0x{error.args[0]:02x} is not one that data needs")
        except (IndexError, ValueError, struct.error, OverflowError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            self.refuse("it is truncated or no pickle")

    def refuse(self, why: str) -> NoReturn:
        raise UserError(f"{self.path} cannot be read at byte {self.at:,}: {why}") from None

    def charge(self, size: int) -> None:
        """Take from the room that is left."""
        self.room -= size
        if self.room < 0:
            self.refuse(
                f"its values would take more than {GROWTH} times its size in memory, as a bomb's would"
            )

    def number(self, width: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise IndexError
        self.at += size
        return self.data[self.at - size : self.at]

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise IndexError
        found = self.take(end - self.at)
        self.at += 1
        return found

    def push(self, value: Any, size: int = 0) -> None:
        self.charge(size)
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        """What was put on the stack after the last mark, taken off with it."""
        place = self.marks.pop()
        found = self.stack[place:]
        del self.stack[place:]
        return found

    def mark(self) -> None:
        if len(self.marks) == DEEPEST:
            self.refuse(f"it nests deeper than {DEEPEST} levels")
        self.marks.append(len(self.stack))

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError
        return self.stack.pop()

    def remember(self, place: int) -> None:
        """Keep the top of the stack under a number, which pickles count up from 0."""
        if place > len(self.memo):
            self.refuse(f"it keeps a value as number {place:,} of {len(self.memo):,}")
        if place == len(self.memo):
            self.memo.append(self.stack[-1])
        else:
            self.memo[place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.stack.append(self.memo[place])

    def extend(self, values: list[Any]) -> None:
        self.charge(8 * len(values))
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError
        target.extend(values)

    def update(self, values: list[Any]) -> None:
        self.charge(_OBJECT * (len(values) // 2))
        target = self.stack[-1]
        items = target.items if isinstance(target, Asked) else target
        if type(items) is not dict or len(values) % 2:
            raise ValueError
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, bytes):  # of which none can be made to collide
                self.refuse(f"a key is of type {type(key).__name__}, not a string")
            items[key] = value

    def name(self, text: str) -> None:
        if not text.startswith(NAMES):
            self.refuse(
                f"it asks for {text[:80]}, which is no data; only plain values and arrays are read, and "
                "nothing that a pickle names is ever run"
            )
        self.push(Name(text), _OBJECT)

    def ask(self, asked: Any, args: Any) -> None:
        """A call becomes a record of it, but for those that only spell a plain value."""
        if not isinstance(asked, Name) or type(args) is not tuple:
            raise ValueError
        value = answer(asked, args)
        self.push(value, 2 * _OBJECT + (len(value) if isinstance(value, bytes) else 0))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Asked):
            raise ValueError
        target.state = state

    def text_number(self, line: bytes) -> None:
        """A whole number or, as old pickles write them, true or false."""
        if len(line) > _LONGEST_NUMBER:
            self.refuse("a number is too long")
        self.push({b"00": False, b"01": True}.get(line, int(line.rstrip(b"L"))), 32)

    def long(self, size: int) -> None:
        if size > _LONGEST_NUMBER:
            self.refuse("a number is too long")
        self.push(self.number(size, signed=True), 32)

    def words(self, size: int) -> None:
        self.push(str(self.take(size), "utf-8", "surrogatepass"), 2 * size)

    def raw(self, size: int) -> None:
        self.push(self.take(size), size)

    def tuple_of(self, count: int) -> None:
        values = tuple(self.pop() for _ in range(count))[::-1]
        self.push(values, _OBJECT)

    def pairs(self) -> None:
        values = self.since_mark()
        self.push({}, _OBJECT)
        self.update(values)

    def list_of(self, values: list[Any]) -> None:
        self.push([], _OBJECT)
        self.extend(values)

    def two_names(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError
        self.name(f"{module}.{name}")

    def new(self, *, named: bool) -> None:
        if named and self.pop() != {}:
            raise ValueError
        args, kind = self.pop(), self.pop()
        self.ask(kind, args)

    def call(self) -> None:
        args, asked = self.pop(), self.pop()
        self.ask(asked, args)


def _pair(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.update([key, value])


_STEPS: dict[int, Callable[[_Machine], Any]] = {
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
    ord("1"): _Machine.since_mark,
    ord("2"): lambda m: m.push(m.stack[-1], 8),
    ord("F"): lambda m: m.push(float(m.line()[:64]), 32),
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0], 32),
    ord("I"): lambda m: m.text_number(m.line()),
    ord("L"): lambda m: m.text_number(m.line()),
    ord("J"): lambda m: m.push(m.number(4, signed=True), 32),
    ord("N"): lambda m: m.push(None),
    ord("R"): _Machine.call,
    ord("V"): lambda m: m.push(str(m.line(), "raw-unicode-escape")),
    ord("X"): lambda m: m.words(m.number(4)),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("b"): _Machine.build,
    ord("c"): lambda m: m.name(f"{m.line().decode()}.{m.line().decode()}"),
    ord("d"): _Machine.pairs,
    ord("}"): lambda m: m.push({}, _OBJECT),
    ord("e"): lambda m: m.extend(m.since_mark()),
    ord("g"): lambda m: m.recall(int(m.line()[:_LONGEST_NUMBER])),
    ord("h"): lambda m: m.recall(m.number(1)),
    ord("j"): lambda m: m.recall(m.number(4)),
    ord("l"): lambda m: m.list_of(m.since_mark()),
    ord("]"): lambda m: m.push([], _OBJECT),
    ord("p"): lambda m: m.remember(int(m.line()[:_LONGEST_NUMBER])),
    ord("q"): lambda m: m.remember(m.number(1)),
    ord("r"): lambda m: m.remember(m.number(4)),
    ord("s"): _pair,
    ord("t"): lambda m: m.push(tuple(m.since_mark()), _OBJECT),
    ord(")"): lambda m: m.push(()),
    ord("u"): lambda m: m.update(m.since_mark()),
    ord("B"): lambda m: m.raw(m.number(4)),
    ord("C"): lambda m: m.raw(m.number(1)),
    0x80: lambda m: m.take(1),  # PROTO
    0x81: lambda m: m.new(named=False),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    0x8A: lambda m: m.long(m.number(1)),
    0x8B: lambda m: m.long(m.number(4)),
    0x8C: lambda m: m.words(m.number(1)),
    0x8D: lambda m: m.words(m.number(8)),
    0x8E: lambda m: m.raw(m.number(8)),
    0x92: lambda m: m.new(named=True),
    0x93: _Machine.two_names,
    0x94: lambda m: m.remember(len(m.memo)),
    0x95: lambda m: m.take(8),  # FRAME
    0x96: lambda m: m.raw(m.number(8)),
}
