"""What a template file says, checked: the texts around messages, cut at control tokens."""

from dataclasses import dataclass
from typing import Literal

from tutelage.text.pieces import Piece


@dataclass(frozen=True)
class Thinking:
    """How a reply's reasoning is written: in the replies after the last question, and nowhere else."""

    open: str
    close: str


@dataclass(frozen=True)
class Calls:
    """How the tools that a reply calls are written, after its words."""

    separator: str  # between words and calls, where there are words
    open: tuple[Piece, ...]
    each: str  # $name, $arguments (as JSON) and $id stand for a call's
    between: str
    close: tuple[Piece, ...]
    alone: bool  # a reply has words or calls; without its lead before calls
    single: bool  # a reply has one call at most
    id_length: int | None  # how many letters and digits the id of a call must have


@dataclass(frozen=True)
class Turn:
    """What a template writes around the messages of one role."""

    start: tuple[Piece, ...]  # the header
    lead: tuple[Piece, ...]  # opens the message itself: has its role, and is learned with it
    end: tuple[Piece, ...]  # closes the message: has its role, and is learned with it
    after: tuple[Piece, ...]
    between: tuple[Piece, ...]  # after all this, unless the message is the last
    open: tuple[Piece, ...]  # before the first of several messages of this role in a row
    close: tuple[Piece, ...]  # after the last of them
    strip: bool  # the message loses the white space around it
    learned: bool
    omit_empty: bool  # an empty message is not written at all
    form: Literal["text", "json", "value"]  # of a tool's result
    calls: Calls | None
    thinking: Thinking | None


@dataclass(frozen=True)
class Into:
    """The system text opens a user message."""

    user: Literal["first_user", "last_user"]
    lead: str
    separator: str
    strip: bool
    strip_joined: bool  # what strips the user message strips both together


@dataclass(frozen=True)
class Tools:
    """How a model is told what tools it may call."""

    into: Literal["system", "first_user", "before_last_user"]
    system_start: tuple[Piece, ...] | None  # the header of the system message where there are tools
    separator: str  # between a system text and the tools
    lead: tuple[Piece, ...]
    each: str  # $tool stands for one tool as JSON
    between: str
    end: tuple[Piece, ...]
    indent: int | None  # of the JSON


@dataclass(frozen=True)
class TemplateFile:
    """A checked template file."""

    control: tuple[str, ...]
    bos: tuple[Piece, ...]
    eos: tuple[Piece, ...]  # after everything, unless a reply is asked for
    turns: dict[str, Turn]
    into: Into | None
    default_system: str | None
    tools: Tools | None
    reply: tuple[Piece, ...]
    stop: tuple[str, ...]
