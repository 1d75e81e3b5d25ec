"""Shorten, split or drop the documents that cannot be trained on as they are, and count all of it aloud.

A document fits rows of `max_seq_len` if it takes at most that many positions, that is, has at most
`max_seq_len + 1` tokens: its last token is only predicted. Truncating keeps exactly that many.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tutelage.data.faults import Faults
from tutelage.data.groups import whole_groups
from tutelage.data.store import SampleStore, split_documents
from tutelage.errors import UserError

TooLong = Literal["truncate", "drop", "split"]
_IDS_NAMED = 5


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows that lost tokens, or were lost, for one reason."""

    reason: str
    rows: int
    tokens: int
    first: list[str]


@dataclass(slots=True)
class CutReport:
    """What became of a data set on its way into training. A row that lost anything is in exactly one cut."""

    rows: int  # of the data set, the bad ones among them
    tokens: int
    learned: int  # tokens that are predicted with weight, after cutting
    cuts: list[Cut] = field(default_factory=list)
    noun: str = "row"  # what a document is here

    @property
    def percent(self) -> float:
        """Of rows or of tokens, whichever lost more."""
        rows = sum(cut.rows for cut in self.cuts) / max(self.rows, 1)
        tokens = sum(cut.tokens for cut in self.cuts) / max(self.tokens, 1)
        return 100 * max(rows, tokens)

    def lines(self) -> list[str]:
        """The report for people, a line for the whole and one for each reason."""
        left = self.tokens - sum(cut.tokens for cut in self.cuts)
        whole = f"{self._counted(self.rows)}, {self.tokens:,} tokens"
        learned = f"{_share(self.learned, left)} of what is left is learned"
        if not self.cuts:
            return [f"{whole}: nothing cut, {_share(self.learned, left)} is learned"]
        return [f"{whole}; {learned}; cut or dropped:"] + [
            f"  {cut.reason}: {self._counted(cut.rows)} ({_share(cut.rows, self.rows)}), "
            f"{cut.tokens:,} tokens ({_share(cut.tokens, self.tokens)}), first {', '.join(cut.first)}"
            for cut in self.cuts
        ]

    def _counted(self, count: int) -> str:
        return f"{count:,} {self.noun}" if count == 1 else f"{count:,} {self.noun}s"

    def refuse(self, max_cut_percent: float) -> None:
        """Raise if more was cut than the user agreed to."""
        if self.percent > max_cut_percent:
            raise UserError(
                f"{self.percent:.1f} % of the data would be cut or dropped, and --max_cut_percent allows "
                f"{max_cut_percent:g}; mend the data, raise --max_seq_len, or raise --max_cut_percent:\n"
                + "\n".join(self.lines())
            )


def cut(
    store: SampleStore,
    *,
    max_seq_len: int,
    too_long: TooLong,
    faults: Faults | None = None,
    ranked: bool = False,
) -> tuple[SampleStore, CutReport]:
    """The documents that can be trained on, and what was lost. `faults` are bad rows skipped before.

    With `ranked` they are answers, and those go too that are left with none to compare them with."""
    faults = faults or Faults()
    report = CutReport(rows=len(store) + faults.count, tokens=int(store.lengths.sum()), learned=0)
    report.noun = "answer" if ranked else "row"
    if faults.count:
        first = [named.split(": ", 1)[0] for named in faults.named[:_IDS_NAMED]]
        report.cuts.append(Cut("bad rows skipped", faults.count, 0, first))
    store = _drop(store, store.lengths < 2, "dropped, too short to predict anything", report)
    store = _drop(store, store.learned() == 0, "dropped, nothing to learn", report)
    store = _fit(store, max_seq_len, too_long, report)
    if ranked:
        store = _drop(store, ~whole_groups(store), "dropped, no better or worse answer is left", report)
    report.learned = int(store.learned().sum())
    return store, report


def refuse_unmasked(store: SampleStore) -> None:
    """Refuse conversations of which every token is learned, or none. Text is learned whole by nature."""
    chats = np.array([shard.kind != "text" for shard in store.shards], bool)[store.shard_of]
    predicted, learned = int(store.positions[chats].sum()), int(store.learned()[chats].sum())
    if predicted and not learned:
        raise UserError(
            "no token of the conversations is learned: the template marks nothing as the assistant's; "
            "look with `tutelage data show` and give another --template_config"
        )
    if predicted and learned == predicted:
        raise UserError(
            "every token of the conversations is learned, prompts included; look with `tutelage data show` "
            "and give another --template_config, or pass --allow_unmasked if that is what you want"
        )


def _fit(store: SampleStore, length: int, too_long: TooLong, report: CutReport) -> SampleStore:
    long = store.positions > length
    if too_long == "drop":
        return _drop(store, long, f"dropped, longer than {length:,} positions", report)
    if too_long == "split":
        pieces = split_documents(store, length)
        return pieces.take(pieces.learned() > 0)  # of a long prompt: no token that is learned goes lost
    shorter = store.shorten(length + 1)
    silent = shorter.learned() == 0
    cut_short = long & ~silent
    if cut_short.any():
        lost = int((store.lengths - shorter.lengths)[cut_short].sum())
        reason = f"truncated to {length:,} positions"
        report.cuts.append(Cut(reason, int(cut_short.sum()), lost, _first(store, cut_short)))
    if silent.any():
        reason = f"dropped, nothing to learn in the first {length:,} positions"
        lost = int(store.lengths[silent].sum())
        report.cuts.append(Cut(reason, int(silent.sum()), lost, _first(store, silent)))
    return shorter.take(~silent)


def _drop(store: SampleStore, which: np.ndarray, reason: str, report: CutReport) -> SampleStore:
    if not which.any():
        return store
    report.cuts.append(Cut(reason, int(which.sum()), int(store.lengths[which].sum()), _first(store, which)))
    return store.take(~which)


def _first(store: SampleStore, which: np.ndarray) -> list[str]:
    names = dict.fromkeys(store.id(index) for index in np.flatnonzero(which)[: _IDS_NAMED * _IDS_NAMED])
    return list(names)[:_IDS_NAMED]  # answers to one prompt have one name


def _share(part: int, whole: int) -> str:
    """A percentage that says 0 only of nothing."""
    percent = 100 * part / max(whole, 1)
    return f"{percent:.1f} %" if percent >= 0.05 or not part else f"{percent:.1g} %"
