"""A rendered conversation: pieces of text that know whose words they are, if they are learned, if control."""

from dataclasses import dataclass
from typing import NamedTuple

from tutelage.text.roles import ROLES


class Piece(NamedTuple):
    text: str
    role: int  # an index into ROLES
    learned: bool = False
    control: bool = (
        False  # one control token of the tokenizer; any other piece is plain text, whatever it says
    )


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template made of a conversation. Spans are (start, end) in characters of `text`."""

    pieces: list[Piece]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def learned(self) -> list[tuple[int, int]]:
        """Spans to learn; neighbours are joined."""
        spans: list[tuple[int, int]] = []
        for start, end, piece in self._placed():
            if piece.learned and spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            elif piece.learned:
                spans.append((start, end))
        return spans

    @property
    def roles(self) -> list[tuple[int, int, str]]:
        """(start, end, role) from the first character to the last; neighbours of one role are joined."""
        spans: list[tuple[int, int, str]] = []
        for start, end, piece in self._placed():
            role = ROLES[piece.role]
            if spans and spans[-1][2] == role:
                spans[-1] = (spans[-1][0], end, role)
            else:
                spans.append((start, end, role))
        return spans

    @property
    def control(self) -> list[tuple[int, int]]:
        """One span for every control token, even where two stand side by side."""
        return [(start, end) for start, end, piece in self._placed() if piece.control]

    def _placed(self) -> list[tuple[int, int, Piece]]:
        placed, start = [], 0
        for piece in self.pieces:
            if piece.text:
                placed.append((start, start + len(piece.text), piece))
                start += len(piece.text)
        return placed


@dataclass(slots=True)
class Encoded:
    """One document as tokens; the three lists are of equal length."""

    tokens: list[int]
    weights: list[float]  # 1.0 where the token is learned, else 0.0
    roles: list[int]  # indices into ROLES
