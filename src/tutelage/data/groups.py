"""Answers to one prompt, kept together: the groups that a `Loader` fills rows with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tutelage.data.batch import Sample
from tutelage.data.comparison import UNKNOWN
from tutelage.data.store import SampleStore

_BLOCK = 1024  # answers looked at together
TRUNK = -1  # the number of what no answer is: a prompt that several share


@dataclass(slots=True)
class Stretch(Sample):
    """Part of a group as it lies in a row: a prompt and its answer, or what answers share, or one's own."""

    group: int
    number: int  # of the answer in its data set, or TRUNK
    branch: int  # 0: a document of its own, or the trunk that branches grow from
    start: int  # position of its first token in its document
    rank: int
    score: float
    learned: int  # tokens of the answer itself


class Comparisons:
    """The groups of a data set of answers: those to one prompt, best first.

    With `share_prompt` the tokens that all of a group begin with are laid once. With `scored` an answer is
    not predicted but judged: the one position that counts is that of its last token. Answers are numbered
    from `first`.
    """

    def __init__(
        self, store: SampleStore, *, share_prompt: bool = False, scored: bool = False, first: int = 0
    ) -> None:
        self.store, self.first, self._scored = store, first, scored
        self.starts = np.append(_first_of_groups(store), len(store))
        self._shared = _shared(store, self.starts) if share_prompt else np.zeros(len(self), np.int64)
        self._learned = store.learned()

    def __len__(self) -> int:
        return len(self.starts) - 1

    def answers_of(self, index: int) -> range:
        """The numbers in `store` of a group's answers."""
        return range(int(self.starts[index]), int(self.starts[index + 1]))

    @property
    def n_answers(self) -> int:
        return len(self.store)

    @property
    def n_numbers(self) -> int:
        """How many numbers its answers and their strays take."""
        return 2 * len(self.store)

    @property
    def sizes(self) -> np.ndarray:
        """Answers of each group."""
        return np.diff(self.starts)

    @property
    def depths(self) -> np.ndarray:
        """Positions of each answer after its prompt."""
        return self.store.positions + self._scored

    def depths_of(self, chosen: np.ndarray) -> np.ndarray:
        """Those of the answers of some groups."""
        return self.depths[np.concatenate([np.arange(*self.starts[i : i + 2]) for i in chosen])]

    @property
    def paths(self) -> np.ndarray:
        """Which of the data set's paths each group is of."""
        return self.store.paths[self.starts[:-1]]

    @property
    def positions(self) -> np.ndarray:
        """Positions of a row that each group takes."""
        apart = np.add.reduceat(self.depths, self.starts[:-1])
        return apart - np.maximum(self._shared - 1, 0) * (self.sizes - 1)

    @property
    def shared(self) -> float:
        """The share of all positions that sharing prompts saves, or would save."""
        apart = int(self.depths.sum())
        common = _shared(self.store, self.starts)
        return float((np.maximum(common - 1, 0) * (self.sizes - 1)).sum() / max(apart, 1))

    @property
    def margins_known(self) -> bool:
        """Whether of any answer it is said how good it is, and not its place alone."""
        for number, shard in enumerate(self.store.shards):
            assert shard.scores is not None
            if np.isfinite(shard.scores[self.store.rows[self.store.shard_of == number]]).any():
                return True
        return False

    @property
    def fingerprint(self) -> str:
        """Equal for equal groups in equal order, laid out alike."""
        return f"{self.store.fingerprint}{' shared' * bool(self._shared.any())}{' scored' * self._scored}"

    def id(self, index: int) -> str:
        """`<path index>-<line number>` of the record."""
        return self.store.id(int(self.starts[index]))

    def group(self, index: int) -> list[Stretch]:
        """The record's answers as stretches; a shared beginning comes first, as one of its own."""
        first, shared = int(self.starts[index]), int(self._shared[index])
        samples = [judged(sample) if self._scored else sample for sample in self._samples(index)]
        stretches: list[Stretch] = []
        if shared > 1:
            trunk = samples[0]
            stretches.append(
                Stretch(
                    trunk.tokens[:shared], np.zeros(shared, np.float32), trunk.roles[:shared],
                    index, TRUNK, 0, 0, 0, 0.0, 0,
                )
            )  # fmt: skip
        for at, sample in enumerate(samples):
            number, begin = first + at, max(shared - 1, 0)
            rank, score = self._judgement(number)
            stretches.append(
                Stretch(
                    sample.tokens[begin:], sample.weights[begin:], sample.roles[begin:],
                    index, self.first + number, at + 1 if shared > 1 else 0, begin if shared > 1 else 0,
                    rank, score, int(self._learned[number]),
                )
            )  # fmt: skip
        return stretches

    def stray(self, number: int) -> Stretch:
        """The prompt of an answer with one to the record before; its number comes after all answers'."""
        own = number - self.first
        index = int(np.searchsorted(self.starts, own, side="right")) - 1
        before = self.answers_of((index - 1) % len(self))
        other = self.store[before[(own - int(self.starts[index])) % len(before)]]
        mine = self.store[own]
        end, begin = prompt_length(mine), prompt_length(other)
        most = int(self.store.lengths.max())  # which rows have room for

        def joined(part: str) -> np.ndarray:
            return np.concatenate([getattr(mine, part)[:end], getattr(other, part)[begin:]])[:most]

        tokens, weights, roles = joined("tokens"), joined("weights"), joined("roles")
        learned = int((weights[1:] > 0).sum())
        return Stretch(tokens, weights, roles, index, number + self.n_answers, 0, 0, 0, UNKNOWN, learned)

    def _samples(self, index: int) -> list[Sample]:
        return [self.store[number] for number in self.answers_of(index)]

    def _judgement(self, number: int) -> tuple[int, float]:
        shard, row = self.store.shards[self.store.shard_of[number]], self.store.rows[number]
        assert shard.ranks is not None and shard.scores is not None
        return int(shard.ranks[row]), float(shard.scores[row])


def prompt_length(sample: Sample) -> int:
    """How many tokens come before the first that is learned."""
    learned = np.asarray(sample.weights) > 0
    return int(learned.argmax()) if learned.any() else len(learned)


def judged(sample: Sample) -> Sample:
    """The sample with one token more, so that its last is read: what is predicted there counts, alone."""
    weights = np.zeros(len(sample) + 1, np.float32)
    weights[-1] = 1.0
    tokens, roles = np.asarray(sample.tokens), np.asarray(sample.roles)
    return Sample(np.append(tokens, tokens[-1:]), weights, np.append(roles, roles[-1:]))


def whole_groups(store: SampleStore) -> np.ndarray:
    """Which answers can still be compared, (len(store),) bool: some of their group may have been dropped.

    An answer that was alone in its record, liked or not, needs no other.
    """
    starts = np.append(_first_of_groups(store), len(store))
    kept = np.zeros(len(store), bool)
    for first, end in zip(starts[:-1], starts[1:], strict=True):
        shard = store.shards[store.shard_of[first]]
        assert shard.ranks is not None
        row = store.rows[first]
        alone = not any(
            0 <= near < len(shard.lines) and shard.lines[near] == shard.lines[row]
            for near in (row - 1, row + 1)
        )
        kept[first:end] = alone or len(set(shard.ranks[store.rows[first:end]].tolist())) > 1
    return kept


def _first_of_groups(store: SampleStore) -> np.ndarray:
    """Where each group begins: answers of one line of one file stand together."""
    if not len(store):
        return np.zeros(0, np.int64)
    lines = np.zeros(len(store), np.int64)
    for number, shard in enumerate(store.shards):
        mine = store.shard_of == number
        lines[mine] = shard.lines[store.rows[mine]]
    new = (np.diff(store.shard_of) != 0) | (np.diff(lines) != 0)
    return np.flatnonzero(np.concatenate([[True], new]))


def _shared(store: SampleStore, starts: np.ndarray) -> np.ndarray:
    """How many tokens each group's answers begin with alike, in token and role, before any is learned."""
    sizes, shared = np.diff(starts), store.unlearned()
    first = np.repeat(starts[:-1], sizes)  # of the group that an answer is in
    shared = np.minimum(shared, shared[first])
    for number, shard in enumerate(store.shards):
        others = np.flatnonzero((store.shard_of == number) & (first < np.arange(len(store))))
        for block in (others[at : at + _BLOCK] for at in range(0, len(others), _BLOCK)):
            counts = shared[block]
            along = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            one, other = (np.repeat(store.starts[which], counts) + along for which in (first[block], block))
            differ = (shard.tokens[one] != shard.tokens[other]) | (shard.roles[one] != shard.roles[other])
            answer = np.repeat(np.arange(len(block)), counts)
            np.minimum.at(counts, answer[differ], along[differ])
            shared[block] = counts
    return np.where(sizes > 1, np.minimum.reduceat(shared, starts[:-1]), 0)
