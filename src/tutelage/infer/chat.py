"""A conversation that goes on: it keeps its history, and forgets the oldest turns once it is full."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from tutelage.errors import UserError
from tutelage.infer.engine import generate
from tutelage.infer.sampling import Sampling
from tutelage.model.transformer import Transformer
from tutelage.text.pieces import Encoded
from tutelage.text.stream import StreamDecoder
from tutelage.text.template import Template
from tutelage.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered, why it stopped, and how many old messages had to be forgotten first."""

    text: str
    stop_reason: Literal["stop", "length", "context"]
    forgotten: int = 0


class ChatSession:
    """One person's conversation with a model. `messages` is what the model will see of it."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        template: Template,
        sampling: Sampling,
        *,
        system: str = "",
        max_new_tokens: int = 512,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template
        self.sampling = sampling
        self.max_new_tokens = max_new_tokens
        self.stop = stop_tokens(model, tokenizer, template)
        self.messages: list[dict[str, str]] = []
        self.turns = 0
        self.reset(system)

    def reset(self, system: str = "") -> None:
        """Forget everything; `system` opens the new conversation, unless it is empty."""
        self.messages = [{"role": "system", "content": system}] if system else []
        self.turns = 0

    def ask(self, text: str, on_text: Callable[[str], None] | None = None) -> Reply:
        """The answer to `text`, given out piece by piece through `on_text` while it is written.

        Ctrl-C ends an answer early: what was said stays in the history, and KeyboardInterrupt goes on."""
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        decoder = StreamDecoder(self.tokenizer)

        def hand_out(piece: str) -> None:
            said.append(piece)
            if piece and on_text is not None:
                on_text(piece)

        try:
            prompt, forgotten = self._prompt()
            (completion,) = generate(
                self.model,
                [prompt.tokens],
                replace(self.sampling, seed=self.sampling.seed + self.turns),
                max_new_tokens=self.max_new_tokens,
                stop=self.stop,
                roles=[prompt.roles],
                on_token=lambda _, token: hand_out(decoder.push(token)),
            )
            hand_out(decoder.flush())
        except BaseException:
            if any(said):
                self._answered("".join(said))
            else:
                self.messages = before
            raise
        self._answered("".join(said))
        return Reply("".join(said), completion.stop_reason, forgotten)

    def _answered(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})
        self.turns += 1

    def _prompt(self) -> tuple[Encoded, int]:
        """The tokens to go on from, after forgetting as many old turns as the answer needs room for."""
        context = self.model.config.max_positions
        room = min(self.max_new_tokens, context // 4)
        forgotten = 0
        while True:
            prompt = self.template.encode(self.messages, self.tokenizer, reply=True)
            length, oldest = len(prompt.tokens), self._oldest_turn()
            if length + room <= context or not oldest:
                break
            del self.messages[oldest]
            forgotten += oldest.stop - oldest.start
        if length >= context:
            raise UserError(
                f"this message makes a prompt of {length} tokens, and the model's context holds "
                f"{context}, the answer included; send less at once"
            )
        return prompt, forgotten

    def _oldest_turn(self) -> slice | None:
        """Where the first user message and its answers lie, unless it is the one now to be answered."""
        users = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        return slice(users[0], users[1]) if len(users) > 1 else None


def stop_tokens(model: Transformer, tokenizer: Tokenizer, template: Template | None) -> set[int]:
    """The tokens that end an answer: the template's, and what model and tokenizer call their end of text."""
    stop = set(model.config.eos) | ({tokenizer.eos} if tokenizer.eos is not None else set())
    return stop | template.stop_ids(tokenizer) if template is not None else stop
