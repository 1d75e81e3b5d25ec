"""Chat templates: a conversation becomes text that knows its roles and what is learned, then tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tutelage.errors import UserError
from tutelage.text.messages import Message, message_faults, plain_messages, with_article
from tutelage.text.pieces import Encoded, Piece, Rendered
from tutelage.text.recognise import first_that_writes, writes_always
from tutelage.text.template_file import built_in_names, find_template, read_template
from tutelage.text.template_jinja import jinja_of
from tutelage.text.template_parts import TemplateFile
from tutelage.text.tokenizer import Tokenizer
from tutelage.text.writing import form_fault, write

Messages = Sequence[Message]


class Template:
    """How one family of models writes conversations. `file` is the checked content of its YAML file."""

    def __init__(self, name: str, file: TemplateFile) -> None:
        self.name = name
        self.file = file
        self.origin = repr(file)  # what determines the text of a conversation
        self.stop = list(file.stop)  # the control tokens with which a reply ends
        self.control = [token for token in file.control if token not in _NAMED]

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
            raise UserError(
                f"the model's own chat template is none of the built-in ones; {name_it}; or use it as it is "
                "with --template_config model"
            )
        return found

    @property
    def jinja(self) -> str:
        """The same template for other programs, with `{% generation %}` around what is learned."""
        return jinja_of(self.file)

    def export_jinja(self, tokenizer: Tokenizer) -> str:
        """The Jinja a model trained with this should carry: its own if that always writes the same."""
        own = tokenizer.chat_template
        if own is None or "strftime_now" in own or not writes_always(own, self, tokenizer):
            return self.jinja
        return own

    def fault(self, messages: Any, *, answered: bool = True) -> str | None:
        """Why this template cannot render a conversation, in a few words, or None; see `message_faults`."""
        fault = message_faults(messages, answered=answered)
        return fault or form_fault(self.file, self.name, plain_messages(messages))

    def faults(self, conversations: Sequence[Any], *, answered: bool = True) -> list[str | None]:
        """`fault` of each conversation."""
        return [self.fault(messages, answered=answered) for messages in conversations]

    def render(self, messages: Messages, *, reply: bool = False, learned_last: int | None = None) -> Rendered:
        """The conversation as text; with `reply`, up to where the assistant's next words begin.

        Of the assistant's messages those among the last `learned_last` are learned; None: all of them.
        """
        fault = self.fault(messages, answered=False) or reply_fault(messages, reply=reply)
        if fault is not None:
            raise UserError(f"this conversation cannot be rendered: {fault}")
        last = len(messages) if learned_last is None else learned_last
        return Rendered(write(self.file, plain_messages(messages), reply=reply, learned_last=last))

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
        return tokenizer.encode_marked([self.named(each.pieces, tokenizer) for each in rendered])

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that lacks control tokens which this template writes."""
        missing = [token for token in self.control if token not in tokenizer.control]
        if EOS in self.file.control and tokenizer.eos is None:
            missing.append("the end of text (eos_token)")
        if missing:
            raise UserError(
                f"template {self.name} writes {', '.join(missing)}, and the model's tokenizer has no such "
                "control token; name the template the model was trained with by --template_config: "
                f"one of {', '.join(built_in_names())}, or the path of a YAML file"
            )

    def stop_ids(self, tokenizer: Tokenizer) -> set[int]:
        """The tokens that end a reply."""
        self.check(tokenizer)
        return {tokenizer.control[tokenizer.named.get(_NAMED.get(token, ""), token)] for token in self.stop}

    def named(self, pieces: list[Piece], tokenizer: Tokenizer) -> list[Piece]:
        """The pieces with the tokenizer's own BOS and EOS; a BOS that it has not is left out."""
        if len(self.control) == len(self.file.control):
            return pieces
        own = {token: tokenizer.named.get(name) for token, name in _NAMED.items()}
        named = (
            piece._replace(text=own[piece.text] or "") if piece.control and piece.text in own else piece
            for piece in pieces
        )
        return [piece for piece in named if piece.text]


def reply_fault(messages: Messages, *, reply: bool) -> str | None:
    """Why no reply can be asked for after these messages, or None."""
    if not reply or messages[-1]["role"] in ("user", "tool"):
        return None
    last = with_article(messages[-1]["role"])
    return f"a reply is asked for after {last} message; user or tool is wanted"


EOS = "$eos"
_NAMED = {"$bos": "bos_token", EOS: "eos_token"}  # how a template file calls what each tokenizer spells
