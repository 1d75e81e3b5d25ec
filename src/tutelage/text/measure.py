"""How well a tokenizer fits a text: how much of it a token holds, what it cannot spell, what comes back."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from tutelage.text.tokenizer import Tokenizer
from tutelage.text.twin import plain

LONGEST_SHOWN = 8
_BATCH = 1 << 20  # characters tokenized at once
_NAMED = 3
_AROUND = 12  # characters shown on both sides of what did not come back
_SCRIPTS = {"N": "digits", "Z": "spaces", "C": "control characters", "P": "signs", "S": "signs"}
_HALF = "\ufffd"  # what decoding gives for part of a character


@dataclass(slots=True)
class Measures:
    """Counts over all texts. A script is a pair: its characters, and those that some token spells whole."""

    vocabulary: int
    control: int
    texts: int = 0
    bytes: int = 0
    characters: int = 0
    tokens: int = 0
    used: int = 0  # different tokens, of those that are not control
    byte_tokens: int = 0  # tokens that are a byte, or another part of a character
    unknown: int = 0  # unknown tokens
    changed: int = 0  # texts that decode to another
    changed_named: list[str] = field(
        default_factory=list
    )  # the first of them, `file:line: what became of it`
    longest: list[str] = field(default_factory=list)  # tokens that were used
    scripts: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def used_share(self) -> float:
        return self.used / max(self.vocabulary - self.control, 1)

    def of_tokens(self, count: int) -> float:
        """A count of tokens as a share of all."""
        return count / max(self.tokens, 1)

    def per_token(self, count: int) -> float:
        """How many bytes or characters a token holds."""
        return count / max(self.tokens, 1)


def measure(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> Measures:
    """Measures of a tokenizer on (`file:line`, text) pairs, which are read once and not kept."""
    found = Measures(tokenizer.size, len(tokenizer.control))
    counts, characters = np.zeros(tokenizer.size, np.int64), Counter[str]()
    for batch in _batches(texts):
        encoded = tokenizer.encode_batch([text for _, text in batch])
        for (place, text), tokens in zip(batch, encoded, strict=True):
            counts += np.bincount(tokens, minlength=tokenizer.size)
            characters.update(text)
            found.bytes += len(plain(text).encode())
            if (back := tokenizer.decode(tokens, skip_control=False)) != text:
                found.changed += 1
                if len(found.changed_named) < _NAMED:
                    found.changed_named.append(f"{place}: {_difference(text, back)}")
        found.texts += len(batch)
    used = np.flatnonzero(counts).tolist()
    control = {token for token in used if tokenizer.is_control(token)}
    spelled = {token: tokenizer.decode([token]) for token in used}
    parts = {token for token in used if token in tokenizer.byte_tokens or _HALF in spelled[token]} - control
    found.characters, found.tokens = characters.total(), int(counts.sum())
    found.used = len(used) - len(control)
    found.unknown, found.byte_tokens = (int(counts[list(which)].sum()) for which in (control, parts))
    whole = sorted(
        (spelled[token] for token in set(used) - control - parts), key=lambda text: (-len(text), text)
    )
    found.longest = whole[:LONGEST_SHOWN]
    found.scripts = _scripts(characters, tokenizer)
    return found


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch, size = [], 0
    for each in texts:
        batch.append(each)
        size += len(each[1])
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _scripts(characters: Counter[str], tokenizer: Tokenizer) -> dict[str, tuple[int, int]]:
    """For each script, the most frequent first: its characters, and those that tokens spell whole."""
    seen, whole = Counter[str](), Counter[str]()
    for (character, count), tokens in zip(
        characters.items(), tokenizer.encode_batch(list(characters)), strict=True
    ):
        script = _script(character)
        seen[script] += count
        whole[script] += count * _is_whole(tokens, tokenizer)
    return {script: (count, whole[script]) for script, count in seen.most_common()}


def _is_whole(tokens: list[int], tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a character end with one that spells it; a space may stand before."""
    if not tokens or tokens[-1] in tokenizer.byte_tokens or tokenizer.is_control(tokens[-1]):
        return False
    return _HALF not in tokenizer.decode(tokens[-1:])


def _script(character: str) -> str:
    """What a character belongs to, by the first word of its name in Unicode where it is a letter."""
    kind = unicodedata.category(character)[0]
    name = unicodedata.name(character, "unnamed").split()[0]
    return _SCRIPTS.get(kind) or (name if name == "CJK" else name.capitalize())


def _difference(text: str, back: str) -> str:
    """The first place where two texts differ, with what stands around it."""
    same = next(
        (at for at, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back))
    )
    start, stop = max(0, same - _AROUND), same + _AROUND
    return f"{text[start:stop]!r} came back as {back[start:stop]!r}"
