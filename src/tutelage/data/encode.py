"""Turn rows of data into tokens, weights and roles, in as many processes as wanted and always in order.

Importing this stays free of torch: every process that encodes does it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tutelage.data.comparison import UNKNOWN
from tutelage.data.faults import Faults
from tutelage.data.processes import in_processes
from tutelage.data.read import Rows, load_rows
from tutelage.data.sources import Source
from tutelage.text.pieces import Encoded
from tutelage.text.roles import ROLE_IDS

if TYPE_CHECKING:
    from tutelage.text.template import Template
    from tutelage.text.tokenizer import Tokenizer

CHUNK = 128  # rows a process encodes at a time
FEW = 1024  # rows that are encoded before another process would have started
Row = tuple[int, Any]  # its line, and the messages, the text or the comparison in it
Document = tuple[Sequence[int], Sequence[float] | np.ndarray, Sequence[int] | np.ndarray]


@dataclass(slots=True)
class Chunk:
    """Encoded rows end to end. A row the template refuses is a fault and has no tokens here."""

    lines: np.ndarray  # int64, one a row
    lengths: np.ndarray  # int64, one a row
    tokens: np.ndarray  # uint32
    weights: np.ndarray  # float32
    roles: np.ndarray  # uint8
    ranks: np.ndarray  # uint8, one a row: the place of an answer among those to its prompt
    scores: np.ndarray  # float32, one a row: how good an answer is; NaN: not known
    faults: Faults
    read: int  # rows, the refused among them


class Encoder:
    """What turns rows into tokens, sent to every process once. Rows of text need no template."""

    def __init__(self, template: Template | None, tokenizer: Tokenizer) -> None:
        self.template = template
        self.tokenizer = tokenizer

    def origin(self, kind: str) -> list[object]:
        """What determines the tokens of a row of this kind."""
        if kind == "text":
            return [self.tokenizer.fingerprint, self.frame]
        assert self.template is not None
        return [self.tokenizer.fingerprint, self.template.origin]

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """What stands before and after a line of text: BOS if the tokenizer begins texts with it; EOS."""
        bos, eos = self.tokenizer.bos, self.tokenizer.eos
        before = [bos] if bos is not None and _adds_bos(self.tokenizer) else []
        return before, [] if eos is None else [eos]

    def prompt(self, text: str) -> Encoded:
        """A user's question, or, without a template, the beginning of a text, as its documents begin."""
        if self.template is None:
            tokens = [*self.frame[0], *self.tokenizer.encode(text)]
            return Encoded(tokens, [1.0] * len(tokens), [ROLE_IDS["other"]] * len(tokens))
        return self.template.encode([{"role": "user", "content": text}], self.tokenizer, reply=True)

    def chunk(self, source: Source, lines: np.ndarray, offsets: np.ndarray) -> Chunk:
        """The rows that begin at `offsets`, encoded."""
        return self.encoded(source, list(zip(lines.tolist(), load_rows(source, offsets), strict=True)))

    def encoded(self, source: Source, rows: list[Row]) -> Chunk:
        """Rows of a source, encoded."""
        faults, read = Faults(), len(rows)
        if source.kind == "ranked":
            rows, documents = self._answers(source, rows, faults)
            ranks = [rank for _, comparison in rows for rank in comparison.ranks]
            scores = [score for _, comparison in rows for score in comparison.scores]
            numbers = [line for line, comparison in rows for _ in comparison.answers]
        else:
            if source.kind == "text":
                documents = self._texts([row for _, row in rows])
            else:
                rows, documents = self._chats(source, rows, faults)
            numbers, ranks, scores = [line for line, _ in rows], [0] * len(rows), [UNKNOWN] * len(rows)
        tokens, weights, roles = zip(*documents, strict=True) if documents else ((), (), ())
        return Chunk(
            lines=np.array(numbers, np.int64),
            lengths=np.array([len(each) for each in tokens], np.int64),
            tokens=_end_to_end(tokens, np.uint32),
            weights=_end_to_end(weights, np.float32),
            roles=_end_to_end(roles, np.uint8),
            ranks=np.array(ranks, np.uint8),
            scores=np.array(scores, np.float32),
            faults=faults,
            read=read,
        )

    def _texts(self, texts: list[str]) -> list[Document]:
        before, after = self.frame
        documents = [[*before, *tokens, *after] for tokens in self.tokenizer.encode_batch(texts)]
        return [(each, np.ones(len(each)), np.full(len(each), ROLE_IDS["other"])) for each in documents]

    def _chats(self, source: Source, rows: list[Row], faults: Faults) -> tuple[list[Row], list[Document]]:
        """The rows this template can render, and their documents; a role it has no form for is a fault."""
        assert self.template is not None
        kept = []
        found = self.template.faults([messages for _, messages in rows])
        for (line, messages), fault in zip(rows, found, strict=True):
            if fault is None:
                kept.append((line, messages))
            else:
                faults.add(source.place(line), fault)
        encoded = self.template.encode_batch([messages for _, messages in kept], self.tokenizer)
        return kept, [(each.tokens, each.weights, each.roles) for each in encoded]

    def _answers(self, source: Source, rows: list[Row], faults: Faults) -> tuple[list[Row], list[Document]]:
        """The comparisons this template can render, and a document for each answer: it alone is learned."""
        assert self.template is not None
        kept, whole, lasts = [], [], []
        asked = [[[*row.prompt, *answer] for answer in row.answers] for _, row in rows]
        found = iter(self.template.faults([each for conversations in asked for each in conversations]))
        for (line, comparison), conversations in zip(rows, asked, strict=True):
            faults_of_row = [next(found) for _ in conversations]
            if fault := next((fault for fault in faults_of_row if fault is not None), None):
                faults.add(source.place(line), fault)
                continue
            kept.append((line, comparison))
            whole += conversations
            lasts += [len(answer) for answer in comparison.answers]
        encoded = self.template.encode_batch(whole, self.tokenizer, learned_last=lasts)
        return kept, [(each.tokens, each.weights, each.roles) for each in encoded]


def encode_rows(rows: Rows, encoder: Encoder, *, workers: int) -> Iterator[Chunk]:
    """The rows, encoded, in chunks and in order; the same whatever the number of workers."""
    tasks = (
        (rows.source, rows.lines[at : at + CHUNK], rows.offsets[at : at + CHUNK])
        for at in range(0, len(rows), CHUNK)
    )
    return in_processes(_chunk, encoder, tasks, workers=workers if len(rows) > FEW else 1)


def _chunk(encoder: Encoder, source: Source, lines: np.ndarray, offsets: np.ndarray) -> Chunk:
    return encoder.chunk(source, lines, offsets)


def _adds_bos(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's own files put BOS before every text."""
    said = tokenizer.settings.get("add_bos_token")
    if said is not None:
        return bool(said)
    processor = json.loads(tokenizer.source).get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        first = (step.get("single") or [{}])[0].get("SpecialToken")
        if first is not None:
            return tokenizer.control.get(first["id"]) == tokenizer.bos
    return False


def _end_to_end(lists: Iterable[Sequence[float] | np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(values, dtype) for values in lists] or [np.zeros(0, dtype)])
