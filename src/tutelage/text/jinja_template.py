"""A model's own Jinja chat template as a template of ours: what is learned is found, never guessed."""

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tutelage.errors import UserError
from tutelage.text.jinja_replies import Written, replies_of, told_of, unsaid
from tutelage.text.jinja_spans import (
    ASSISTANT,
    clean,
    marked,
    marked_spans,
    pieces_of,
    typed,
    unmarked,
)
from tutelage.text.messages import Message, message_faults
from tutelage.text.pieces import Encoded, Piece, Rendered
from tutelage.text.sandbox import Input, sandbox_of
from tutelage.text.template import Messages, Template, reply_fault
from tutelage.text.tokenizer import Tokenizer

OWN = "model"  # how --template_config calls it
_REMEMBERED = 1024  # conversations whose faults were asked for, and whose tokens will be
_AT_ONCE = 64  # conversations in one request to the process
_NEXT = {"role": "user", "content": "?"}


def template_of(tokenizer: Tokenizer, named: str | None) -> Template:
    """The template that is named: `model` is the model's own Jinja, None the built-in that this one is."""
    if named == OWN:
        template: Template = JinjaTemplate(tokenizer)
    else:
        template = Template.load(named) if named else Template.recognise(tokenizer)
    template.check(tokenizer)
    return template


class JinjaTemplate(Template):
    """The chat template that a tokenizer came with. What somebody says never becomes a control token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        source = tokenizer.chat_template
        if source is None:
            raise UserError(
                "--template_config model: the model has no chat template of its own; name another"
            )
        self.name = OWN
        self.source = source
        self.origin = json.dumps([OWN, source, tokenizer.named])
        self._pattern = _any_of(tokenizer)
        self._sandbox = sandbox_of(source, tokenizer)
        self._marks = re.search(r"{%-?\+?\s*generation\b", re.sub(r"(?s){#.*?#}", "", source)) is not None
        self._done: OrderedDict[str, Written] = OrderedDict()
        sample = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}]
        self._parts = False  # whether it wants contents as lists of parts: [{"type": "text", "text": ...}]
        written = self._write([(sample, False)])[0]
        if "a1" not in written.text:
            self._parts = True
            in_parts = self._write([(sample, False)])[0]
            self._parts = "a1" in in_parts.text
            written = in_parts if self._parts else written
        if not written.text:
            raise UserError(f"--template_config model: {written.fault}")
        pieces = pieces_of(written.text, [], 0, self._pattern)
        self.control = list(dict.fromkeys(piece.text for piece in pieces if piece.control))
        said = max((place for place, piece in enumerate(pieces) if piece.role == ASSISTANT), default=0)
        behind = [piece.text for piece in pieces[said + 1 :] if piece.control and said]
        eos = tokenizer.named.get("eos_token")
        self.stop = behind[:1] or ([eos] if eos else [])

    @property
    def jinja(self) -> str:
        return self.source

    def export_jinja(self, tokenizer: Tokenizer) -> str:
        return self.source

    def fault(self, messages: Any, *, answered: bool = True) -> str | None:
        return self.faults([messages], answered=answered)[0]

    def faults(self, conversations: Sequence[Any], *, answered: bool = True) -> list[str | None]:
        found = [message_faults(messages, answered=answered) for messages in conversations]
        sound = [messages for messages, fault in zip(conversations, found, strict=True) if fault is None]
        asked = [(each, not answered and each[-1]["role"] in ("user", "tool")) for each in sound]
        written = iter(self._written(asked))
        return [next(written).fault if fault is None else fault for fault in found]

    def check(self, tokenizer: Tokenizer) -> None:
        """Its control tokens are those of the tokenizer that it came with."""

    def named(self, pieces: list[Piece], tokenizer: Tokenizer) -> list[Piece]:
        """Its BOS and EOS are the tokenizer's own already."""
        return pieces

    def render(self, messages: Messages, *, reply: bool = False, learned_last: int | None = None) -> Rendered:
        return self._rendered([messages], reply, [learned_last])[0]

    def encode_batch(
        self,
        conversations: Sequence[Messages],
        tokenizer: Tokenizer,
        *,
        reply: bool = False,
        learned_last: Sequence[int | None] | None = None,
    ) -> list[Encoded]:
        lasts = [None] * len(conversations) if learned_last is None else learned_last
        return tokenizer.encode_marked([each.pieces for each in self._rendered(conversations, reply, lasts)])

    def _rendered(
        self, conversations: Sequence[Messages], reply: bool, lasts: Sequence[int | None]
    ) -> list[Rendered]:
        for messages in conversations:
            if fault := message_faults(messages, answered=False) or reply_fault(messages, reply=reply):
                raise UserError(f"this conversation cannot be rendered: {fault}")
        done = self._written([(messages, reply) for messages in conversations])
        made = []
        for messages, last, written in zip(conversations, lasts, done, strict=True):
            if written.fault is not None:
                raise UserError(f"this conversation cannot be rendered: {written.fault}")
            made.append(Rendered(self._pieces(messages, written, last)))
        return made

    def _pieces(self, messages: Messages, written: Written, last: int | None) -> list[Piece]:
        learned = len(written.spans)
        if last is not None:
            replies = [message["role"] == "assistant" for message in messages]
            if sum(replies) != learned:
                raise UserError(
                    f"the model's own chat template marks {learned} spans in {sum(replies)} replies, so the "
                    "last answer cannot be told from those before; name another template by --template_config"
                )
            learned = sum(replies[len(replies) - last :])
        return pieces_of(written.text, list(written.spans), learned, self._pattern)

    def _written(self, asked: Sequence[tuple[Messages, bool]]) -> list[Written]:
        """Each conversation as it is written; those that were just asked for are not rendered again."""
        keys = [json.dumps([messages, reply]) for messages, reply in asked]
        new = {key: each for key, each in zip(keys, asked, strict=True) if key not in self._done}
        made = dict(zip(new, self._write(list(new.values())), strict=True))
        found = [made[key] if key in made else self._done[key] for key in keys]
        self._done.update(made)
        while len(self._done) > _REMEMBERED:
            self._done.popitem(last=False)
        return found

    def _write(self, asked: Sequence[tuple[Messages, bool]]) -> list[Written]:
        made: list[Written] = []
        for first in range(0, len(asked), _AT_ONCE):
            made += self._write_few(asked[first : first + _AT_ONCE])
        return made

    def _write_few(self, asked: Sequence[tuple[Messages, bool]]) -> list[Written]:
        """Plain and marked; where marks change what is written, only with what was typed made harmless."""
        inputs: list[Input] = []
        for messages, reply in asked:
            told, tools = [told_of(message) for message in messages], clean(messages[0].get("tools"))
            whole = [(len(told), reply)]
            inputs.append(Input(told, whole, tools))
            inputs.append(self._marked(told, tools, reply))
        texts, reasons = self._sandbox.render([self._shaped(each) for each in inputs])
        changed = [n for n in range(len(asked)) if not _same(texts[2 * n][0], texts[2 * n + 1][0])]
        again = [self._shaped(self._typed(inputs[2 * n], asked[n][1])) for n in changed]
        for n, other in zip(changed, self._sandbox.render(again)[0] if again else [], strict=True):
            texts[2 * n + 1] = other
        return [
            self._found(*asked[n], texts[2 * n][0], texts[2 * n + 1], reasons[2 * n], n not in changed)
            for n in range(len(asked))
        ]

    def _shaped(self, given: Input) -> Input:
        """With contents as the template wants them."""
        if not self._parts:
            return given
        messages = [
            {**each, "content": [{"type": "text", "text": each["content"]}]} for each in given.messages
        ]
        return replace(given, messages=messages)

    def _marked(self, told: list[Message], tools: Any, reply: bool) -> Input:
        messages = [*(marked(each, self._pattern) for each in told), _NEXT]
        return Input(messages, self._cuts(told, reply), typed(tools, self._pattern))

    def _typed(self, plain: Input, reply: bool) -> Input:
        messages = [*typed(plain.messages, self._pattern), _NEXT]
        return Input(messages, self._cuts(plain.messages, reply), typed(plain.tools, self._pattern))

    def _cuts(self, messages: list[Message], reply: bool) -> list[tuple[int, bool]]:
        """All of it; and, to find replies by, up to each and with it, and with a question behind the last."""
        whole = len(messages)
        if reply or self._marks:
            return [(whole, reply)]
        replies = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        around = [cut for place in replies for cut in ((place, True), (place + 1, False))]
        return [(whole, False), *around, *([(whole + 1, False)] if replies[-1:] == [whole - 1] else [])]

    def _found(
        self,
        messages: Messages,
        reply: bool,
        plain: str | None,
        texts: list[str | None],
        reason: str | None,
        words_are_marked: bool,
    ) -> Written:
        """The text, if what people say can be told from what the template says, and where the replies are."""
        text = texts[0]
        if plain is None:
            return Written(fault=f"the model's own chat template refuses it: {reason}")
        if text is None or not _same(plain, text):
            return Written(
                fault="the model's own chat template looks into what messages say, so that a control token "
                "in them cannot be told from the template's; name another template by --template_config"
            )
        marked = self._marks or reply
        found = Written(text, tuple(marked_spans(text))) if marked else replies_of(messages, text, texts[1:])
        if found.fault is None and words_are_marked and (whose := unsaid(messages, found, reply=reply)):
            return Written(text, fault=f"the model's own chat template writes nothing of what {whose} say")
        return found


def _same(plain: str | None, text: str | None) -> bool:
    """Whether a marked text, without its marks, is what the template writes of the plain messages."""
    return plain is None or (text is not None and unmarked(plain) == unmarked(text))


def _any_of(tokenizer: Tokenizer) -> re.Pattern[str]:
    """One of a tokenizer's control tokens, the longest that stands at a place."""
    longest_first = sorted(tokenizer.control, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
