"""Chat templates: a conversation becomes text that knows its roles and what is learned, then tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.text.messages import message_faults, with_article
from tutelage.text.pieces import Encoded, Piece, Rendered
from tutelage.text.recognise import first_that_writes
from tutelage.text.roles import ROLE_IDS
from tutelage.text.template_file import TemplateFile, built_in_names, find_template, read_template
from tutelage.text.tokenizer import Tokenizer

Messages = Sequence[dict[str, str]]


class Template:
    """How one family of models writes conversations. `file` is the checked content of its YAML file."""

    def __init__(self, name: str, file: TemplateFile) -> None:
        self.name = name
        self.file = file
        self.jinja = file.jinja  # the same template for other programs
        self.stop = list(file.stop)  # the control tokens with which a reply ends

    @classmethod
    def load(cls, name_or_path: str | Path) -> "Template":
        """A built-in by its name, with or without .yaml, or the template in a file of the user's own."""
        path = find_template(name_or_path)
        return cls(path.stem, read_template(path))

    @classmethod
    def recognise(cls, tokenizer: Tokenizer) -> "Template":
        """The built-in that writes what the model's own chat template writes; UserError where none does."""
        name_it = (
            "name the template it was trained with by --template_config: "
            f"one of {', '.join(built_in_names())}, or the path of a YAML file"
        )
        if tokenizer.chat_template is None:
            raise UserError(f"the model has no chat template of its own; {name_it}")
        built_ins = (cls.load(name) for name in built_in_names())
        found = first_that_writes(tokenizer.chat_template, built_ins, tokenizer)
        if found is None:
            raise UserError(f"the model's own chat template is none of the built-in ones; {name_it}")
        return found

    def export_jinja(self, tokenizer: Tokenizer) -> str:
        """The Jinja a model trained with this should carry: its own if that writes the same, else ours."""
        own = tokenizer.chat_template
        return own if own is not None and first_that_writes(own, [self], tokenizer) else self.jinja

    def fault(self, messages: Any, *, answered: bool = True) -> str | None:
        """Why this template cannot render a conversation, in a few words, or None; see `message_faults`."""
        fault = message_faults(messages, answered=answered)
        if fault is not None:
            return fault
        for number, message in enumerate(messages, start=1):
            role = message["role"]
            if role not in self.file.turns and not (role == "system" and self.file.into is not None):
                return f"message {number} is a {role} message, for which template {self.name} has no form"
        return None

    def render(self, messages: Messages, *, reply: bool = False, learned_last: int | None = None) -> Rendered:
        """The conversation as text; with `reply`, up to where the assistant's next words begin.

        Of the assistant's messages those among the last `learned_last` are learned; None: all of them.
        """
        fault = self.fault(messages, answered=False)
        if fault is None and reply and messages[-1]["role"] not in ("user", "tool"):
            last = with_article(messages[-1]["role"])
            fault = f"a reply is asked for after {last} message; user or tool is wanted"
        if fault is not None:
            raise UserError(f"this conversation cannot be rendered: {fault}")
        return Rendered(
            self._pieces(messages, reply, len(messages) if learned_last is None else learned_last)
        )

    def encode(self, messages: Messages, tokenizer: Tokenizer, *, reply: bool = False) -> Encoded:
        """The conversation as tokens, each with its role; learned ones have weight 1."""
        return self.encode_batch([messages], tokenizer, reply=reply)[0]

    def encode_batch(
        self,
        conversations: Sequence[Messages],
        tokenizer: Tokenizer,
        *,
        reply: bool = False,
        learned_last: Sequence[int | None] | None = None,
    ) -> list[Encoded]:
        """`encode` for each conversation, on all threads of the tokenizers library; see `render`."""
        self.check(tokenizer)
        lasts = [None] * len(conversations) if learned_last is None else learned_last
        rendered = [
            self.render(each, reply=reply, learned_last=last)
            for each, last in zip(conversations, lasts, strict=True)
        ]
        return tokenizer.encode_marked([each.pieces for each in rendered])

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that lacks control tokens which this template writes."""
        missing = [token for token in self.file.control if token not in tokenizer.control]
        if missing:
            raise UserError(
                f"template {self.name} writes {', '.join(missing)}, and the model's tokenizer has no such "
                "control token; name the template the model was trained with by --template_config: "
                f"one of {', '.join(built_in_names())}, or the path of a YAML file"
            )

    def stop_ids(self, tokenizer: Tokenizer) -> set[int]:
        """The tokens that end a reply."""
        self.check(tokenizer)
        return {tokenizer.control[token] for token in self.stop}

    def _pieces(self, messages: Messages, reply: bool, learned_last: int) -> list[Piece]:
        pieces = list(self.file.bos)
        messages = self._with_default_system(messages)
        system = None
        if self.file.into is not None and messages[0]["role"] == "system":
            system, messages = messages[0]["content"] + self.file.into, messages[1:]
        roles = [message["role"] for message in messages]
        last_user = max(place for place, role in enumerate(roles) if role == "user")
        for place, message in enumerate(messages):
            first = place == 0 or roles[place - 1] != roles[place]
            last = place == len(roles) - 1 or roles[place + 1] != roles[place]
            opening = system if place == last_user else None
            turn = self._turn(message, first=first, last=last, system=opening)
            kept = len(messages) - place <= learned_last
            pieces += turn if kept else [piece._replace(learned=False) for piece in turn]
        return pieces + list(self.file.reply) if reply else pieces

    def _turn(self, message: dict[str, str], *, first: bool, last: bool, system: str | None) -> list[Piece]:
        turn, role = self.file.turns[message["role"]], ROLE_IDS[message["role"]]
        content = message["content"].strip() if turn.strip else message["content"]
        lead, body = turn.lead, [Piece(content, role, turn.learned)]
        if system is not None:
            opener = ROLE_IDS["system"]
            lead = tuple(piece._replace(role=opener, learned=False) for piece in lead)
            body = [Piece(system, opener), *body]
        opening, closing = turn.open if first else (), turn.close if last else ()
        return [*opening, *turn.start, *lead, *body, *turn.end, *turn.after, *closing]

    def _with_default_system(self, messages: Messages) -> Messages:
        if self.file.default_system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.file.default_system}, *messages]
