"""Where the replies are in what a stranger's template wrote, and whether it wrote what was said at all."""

from dataclasses import dataclass

from tutelage.text.jinja_spans import WORDS_END, clean, has_words
from tutelage.text.messages import Message
from tutelage.text.template import Messages

_HELP = "put {% generation %} around what the model writes, or name another template by --template_config"


@dataclass(frozen=True)
class Written:
    """A conversation as the template wrote it, marked; or why it cannot be used."""

    text: str = ""
    spans: tuple[tuple[int, int], ...] = ()  # of the replies, in the marked text
    fault: str | None = None


def replies_of(messages: Messages, text: str, cuts: list[str | None]) -> Written:
    """The spans of the replies, each between what stands before it and what stands with it."""
    spans = []
    places = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    for place, before, behind in zip(places, cuts[::2], cuts[1::2], strict=False):
        if before is None or behind is None:
            what = "refuses the conversation up to it"
        elif not text.startswith(before):
            what = "writes what stands before it otherwise once it is there"
        elif not (text.startswith(behind) and behind.startswith(before)):
            what = "writes it otherwise once more messages follow"
        else:
            spans.append((len(before), len(behind)))
            continue
        return Written(text, fault=f"message {place + 1}: the model's own chat template {what}; {_HELP}")
    if len(cuts) % 2 and cuts[-1] is not None and not _ends_alike(text, cuts[-1], spans[-1][0]):
        return Written(
            text,
            fault=f"message {len(messages)}: the model's own chat template ends a conversation otherwise "
            f"than a reply behind which a question follows; {_HELP}",
        )
    return Written(text, tuple(spans))


def unsaid(messages: Messages, written: Written, *, reply: bool) -> str | None:
    """Whose words a marked text lacks: all that is said in it, or what replies say; None if none."""
    if any(_has_words(message) for message in messages) and not has_words(written.text):
        return "the messages"
    replies = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    said = [has_words(written.text[start:end]) for start, end in written.spans]
    if len(said) == len(replies):
        for place, is_said in zip(replies, said, strict=True):
            if _has_words(messages[place]) and not is_said:
                return f"message {place + 1}, an answer, has to"
    elif not reply and not any(said) and any(_has_words(messages[place]) for place in replies):
        return "the replies, where it marks them,"
    return None


def _has_words(message: Message) -> bool:
    return bool(told_of(message)["content"].strip())


def _ends_alike(text: str, followed: str, start: int) -> bool:
    """Whether the last reply, which begins at `start`, ends as it does where a question follows it."""
    if text.rfind(WORDS_END) < start or WORDS_END not in followed:
        return followed.startswith(text)  # a reply without words
    return followed.rpartition(WORDS_END)[2].startswith(text.rpartition(WORDS_END)[2])


def told_of(message: Message) -> Message:
    """A message as the template is given it: a content of parts joined, and without the tools."""
    message = clean({key: value for key, value in message.items() if key != "tools"})
    if isinstance(message.get("content"), list):
        message["content"] = "".join(part["text"] for part in message["content"])
    return message if message.get("content") is not None else {**message, "content": ""}
