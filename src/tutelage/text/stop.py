"""An answer that ends at a text, however its tokens are cut: what may become a stop is held back."""

from collections.abc import Sequence

from tutelage.text.stream import StreamDecoder
from tutelage.text.tokenizer import Tokenizer


class StoppedText:
    """Decodes one answer token by token; `ended` once one of the stop strings is in it.

    Without `included`, the answer ends before the stop string, else after it."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], *, included: bool = False) -> None:
        assert all(stops)
        self.ended = False
        self._stops = stops
        self._included = included
        self._decoder = StreamDecoder(tokenizer)
        self._held = ""  # what may become a stop string

    def push(self, token: int) -> str:
        """The text that this token makes sure."""
        return self._sure(self._decoder.push(token))

    def flush(self) -> str:
        """What is still held back, at the end of an answer that was not stopped by its text."""
        text = self._sure(self._decoder.flush())
        if self.ended:
            return text
        held, self._held = self._held, ""
        return text + held

    def _sure(self, piece: str) -> str:
        if self.ended:
            return ""
        text = self._held + piece
        found = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.ended = True
            end, start = min(found)  # the first that is complete, so that the cut into tokens changes nothing
            return text[: end if self._included else start]
        longest = max(map(len, self._stops), default=0)
        start = max(0, len(text) - longest + 1)
        while start < len(text) and not any(stop.startswith(text[start:]) for stop in self._stops):
            start += 1
        self._held = text[start:]
        return text[:start]
