"""Turn rows of data into tokens, weights and roles, in as many processes as wanted and always in order.

Importing this stays free of torch: every process that encodes does it.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from tutelage.data.read import Faults, Rows, Source, load_rows
from tutelage.errors import UserError
from tutelage.text.roles import ROLE_IDS
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer

CHUNK = 128  # rows a process encodes at a time
_FEW = 1024  # rows that are encoded before another process would have started


@dataclass(slots=True)
class Chunk:
    """Encoded rows end to end. A row the template refuses is a fault and has no tokens here."""

    lines: np.ndarray  # int64, one a row
    lengths: np.ndarray  # int64, one a row
    tokens: np.ndarray  # uint32
    weights: np.ndarray  # float32
    roles: np.ndarray  # uint8
    faults: Faults
    read: int  # rows, the refused among them


def encode_rows(
    rows: Rows, template: Template | None, tokenizer: Tokenizer, *, workers: int
) -> Iterator[Chunk]:
    """The rows, encoded, in chunks and in order; the same whatever the number of workers."""
    tasks = [slice(start, start + CHUNK) for start in range(0, len(rows), CHUNK)]
    if workers <= 1 or len(rows) <= _FEW:
        for task in tasks:
            yield _encode(rows.source, rows.lines[task], rows.offsets[task], template, tokenizer)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),  # a fork would inherit the locks of torch's threads
        initializer=_start_worker,
        initargs=(template, tokenizer),
    )
    pending: deque[Future[Chunk]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(_work, rows.source, rows.lines[task], rows.offsets[task]))
            if len(pending) > 4 * workers:  # bounds what waits in memory
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that encoded data died, most likely for lack of memory; lower --num_data_workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def encode_text(text: str, tokenizer: Tokenizer) -> list[int]:
    """A line of plain text as one document: BOS if the tokenizer begins texts with it, the text, EOS."""
    start = [tokenizer.bos] if tokenizer.adds_bos and tokenizer.bos is not None else []
    end = [] if tokenizer.eos is None else [tokenizer.eos]
    return start + tokenizer.encode(text) + end


def _encode(source: Source, lines, offsets, template: Template | None, tokenizer: Tokenizer) -> Chunk:
    kept, encoded, faults = [], [], Faults()
    for line, row in zip(lines.tolist(), load_rows(source, offsets), strict=True):
        if source.kind == "text":
            tokens = encode_text(row, tokenizer)
            encoded.append((tokens, np.ones(len(tokens)), np.full(len(tokens), ROLE_IDS["other"])))
        else:
            assert template is not None
            try:
                chat = template.encode(row, tokenizer)
            except ValueError as error:  # an order of roles, say, that this template does not know
                faults.add(source.path, line, str(error))
                continue
            encoded.append((chat.tokens, chat.weights, chat.roles))
        kept.append(line)
    tokens, weights, roles = zip(*encoded, strict=True) if encoded else ((), (), ())
    return Chunk(
        lines=np.array(kept, np.int64),
        lengths=np.array([len(each) for each in tokens], np.int64),
        tokens=_end_to_end(tokens, np.uint32),
        weights=_end_to_end(weights, np.float32),
        roles=_end_to_end(roles, np.uint8),
        faults=faults,
        read=len(lines),
    )


def _end_to_end(lists, dtype) -> np.ndarray:
    return np.concatenate([np.asarray(values, dtype) for values in lists] or [np.zeros(0, dtype)])


_worker: tuple[Template | None, Tokenizer] | None = None  # what every task of a process needs, sent once


def _start_worker(template: Template | None, tokenizer: Tokenizer) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops this process
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = template, tokenizer


def _work(source: Source, lines: np.ndarray, offsets: np.ndarray) -> Chunk:
    assert _worker is not None
    return _encode(source, lines, offsets, *_worker)
