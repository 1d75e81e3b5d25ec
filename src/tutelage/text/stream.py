"""Tokens to text one at a time, for printing while a model writes."""

from tutelage.text.tokenizer import Tokenizer

_HALF = "\ufffd"  # what decoding gives for bytes that are not, or not yet, a character


class StreamDecoder:
    """Gives out text once no later token can change it; joined, it is exactly `decode` of all tokens."""

    def __init__(self, tokenizer: Tokenizer, *, skip_control: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        # a window: some tokens already given out, as context, then those held back
        self._tokens: list[int] = []
        self._given = 0  # how many of them are given out

    def push(self, token: int) -> str:
        """The text this token completes; empty while a character or a run of byte tokens is unfinished."""
        if self._skip_control and self._tokenizer.is_control(token):
            return ""
        self._tokens.append(token)
        if token in self._tokenizer.byte_tokens:
            # one bad byte spoils its whole run, so wait for the end of it
            return ""
        text = self._new_text()
        if text.endswith(_HALF):
            return ""
        if text:
            self._tokens = self._tokens[self._given :]
            self._given = len(self._tokens)
        return text

    def flush(self) -> str:
        """What is still held back, at the end of a text; the decoder is then as new."""
        text = self._new_text()
        self._tokens, self._given = [], 0
        return text

    def _new_text(self) -> str:
        before = self._decode(self._tokens[: self._given])
        return self._decode(self._tokens)[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_control=self._skip_control)
