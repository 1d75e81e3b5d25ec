"""Writes a conversation as a template file says: a list of pieces, each with its role."""

import json
from typing import Any

from tutelage.text.messages import Message, with_article
from tutelage.text.pieces import Piece
from tutelage.text.roles import ROLE_IDS
from tutelage.text.template_parts import Calls, TemplateFile, Turn

SYSTEM, ASSISTANT = ROLE_IDS["system"], ROLE_IDS["assistant"]


def write(file: TemplateFile, messages: list[Message], *, reply: bool, learned_last: int) -> list[Piece]:
    """The pieces of a conversation in its plain form; see `Template.render`."""
    tools = messages[0].get("tools")
    told = messages[0]["role"] == "system" or file.default_system is not None
    messages = _with_system(file, messages, tools)
    opening: list[Piece] = []
    if file.into is not None and messages[0]["role"] == "system":
        opening, messages = _opening(file, messages[0]["content"]), messages[1:]
    roles = [message["role"] for message in messages]
    users = [place for place, role in enumerate(roles) if role == "user"]
    asked = _last_question(messages)
    pieces = list(file.bos)
    for place, message in enumerate(messages):
        role = roles[place]
        turn, start = file.turns[role], file.turns[role].start
        body = _body(turn, message, ends=place > asked, last=place == len(roles) - 1)
        lead = _lead(turn, message)
        if role == "system" and turn.omit_empty and not body:
            continue
        if file.into is not None and place == users[0 if file.into.user == "first_user" else -1] and opening:
            if file.into.strip_joined:
                body = _stripped([*opening, Piece(message["content"], ROLE_IDS[role], turn.learned)])
            else:
                body = [*opening, *body]
            lead = tuple(piece._replace(role=SYSTEM, learned=False) for piece in lead)
        if tools and file.tools is not None:
            if role == "system" and file.tools.system_start is not None:
                start = file.tools.system_start
            if file.tools.into == role:
                separator = [Piece(file.tools.separator, SYSTEM)] if told else []
                body = [*body, *separator, *_tools(file, tools)]
            elif file.tools.into == "first_user" and place == users[0]:
                body = [*_tools(file, tools), *body]
            elif file.tools.into == "before_last_user" and place == users[-1]:
                pieces += _tools(file, tools)
        first = place == 0 or roles[place - 1] != role
        last = place == len(roles) - 1 or roles[place + 1] != role
        written = [*(turn.open if first else ()), *_filled(start, message), *lead, *body]
        written += _filled(turn.end, message)
        written += [*turn.after, *(turn.close if last else ())]
        written += turn.between if place < len(roles) - 1 else ()
        kept = len(messages) - place <= learned_last
        pieces += written if kept else [piece._replace(learned=False) for piece in written]
    if reply:
        return [*pieces, *file.reply]
    learned = learned_last > 0 and file.turns[roles[-1]].learned
    return [*pieces, *(piece._replace(role=ROLE_IDS[roles[-1]], learned=learned) for piece in file.eos)]


def _with_system(file: TemplateFile, messages: list[Message], tools: Any) -> list[Message]:
    """The messages behind the system message that a template writes where a conversation has none."""
    if messages[0]["role"] == "system":
        return messages
    if file.default_system is not None:
        return [{"role": "system", "content": file.default_system}, *messages]
    if tools and file.tools is not None and file.tools.into == "system":
        return [{"role": "system", "content": ""}, *messages]
    return messages


def _opening(file: TemplateFile, system: str) -> list[Piece]:
    """A system text that opens a user message."""
    into = file.into
    assert into is not None
    text = system.strip() if into.strip else system
    return [Piece(into.lead + text + into.separator, SYSTEM)]


def _lead(turn: Turn, message: Message) -> tuple[Piece, ...]:
    if turn.calls is not None and turn.calls.alone and message.get("tool_calls"):
        return ()
    return _filled(turn.lead, message)


def _body(turn: Turn, message: Message, *, ends: bool, last: bool) -> list[Piece]:
    """What a message says; `ends`: it is a reply after the last question, `last`: the last of all."""
    role, content = ROLE_IDS[message["role"]], message["content"]
    reasoning = ""
    if turn.thinking is not None:
        reasoning, content = reasoning_of(message)
        if ends and (last or reasoning):
            block = turn.thinking.open + reasoning.strip("\n") + turn.thinking.close
            content = block + content.lstrip("\n")
    content = content.strip() if turn.strip else content
    if turn.form != "text":
        content = _as_json(content, turn.form)
    body = [Piece(content, role, turn.learned)] if content else []
    calls = message.get("tool_calls")
    if calls and turn.calls is not None:
        worded = reasoning_of(message)[1] if turn.thinking is not None else content
        body += _calls(turn.calls, calls, role, turn.learned, after_words=bool(worded))
    return body


def _calls(form: Calls, calls: list[Message], role: int, learned: bool, *, after_words: bool) -> list[Piece]:
    texts = [fill(form.each, _slots_of_call(call)) for call in calls]
    separator = form.separator if after_words else ""
    text = Piece(form.between.join(texts), role, learned)
    return [Piece(separator, role, learned), *form.open, text, *form.close]


def _slots_of_call(call: Message) -> dict[str, str]:
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    return {"$name": call["name"], "$arguments": arguments, "$id": call["id"] or ""}


def _tools(file: TemplateFile, tools: list[Any]) -> list[Piece]:
    form = file.tools
    assert form is not None
    each = [
        fill(form.each, {"$tool": json.dumps(tool, ensure_ascii=False, indent=form.indent)}) for tool in tools
    ]
    return [*form.lead, Piece(form.between.join(each), SYSTEM), *form.end]


def _filled(pieces: tuple[Piece, ...], message: Message) -> tuple[Piece, ...]:
    """The texts around a tool's result, which may have its id."""
    if message["role"] != "tool":
        return pieces
    slots = {"$id": message.get("tool_call_id", ""), "$name": message.get("name", "")}
    return tuple(piece if piece.control else piece._replace(text=fill(piece.text, slots)) for piece in pieces)


def fill(text: str, slots: dict[str, str]) -> str:
    """A text with something in each of its slots; what is put in is not looked into."""
    for slot in slots:
        if slot in text:
            before, _, after = text.partition(slot)
            return fill(before, slots) + slots[slot] + fill(after, slots)
    return text


def reasoning_of(message: Message) -> tuple[str, str]:
    """(reasoning, words) of a reply, as Qwen 3 tells them apart."""
    content = message["content"]
    if "reasoning_content" in message:
        return message["reasoning_content"], content
    if "</think>" not in content:
        return "", content
    reasoning = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
    return reasoning, content.split("</think>")[-1].lstrip("\n")


def _last_question(messages: list[Message]) -> int:
    """The place of the last user message that is not the result of a tool, written out by a template."""
    for place in range(len(messages) - 1, -1, -1):
        content = messages[place]["content"]
        posed = content.startswith("<tool_response>") and content.endswith("</tool_response>")
        if messages[place]["role"] == "user" and not posed:
            return place
    return len(messages) - 1


def _as_json(content: str, form: str) -> str:
    """A tool's result as JSON: a string, or with form `value` what it says if it is JSON itself."""
    value: Any = content
    if form == "value":
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = content
    return json.dumps(value, ensure_ascii=False)


def _stripped(pieces: list[Piece]) -> list[Piece]:
    """The pieces without the white space at both ends of them all."""
    while pieces and not pieces[0].text.strip():
        pieces = pieces[1:]
    while pieces and not pieces[-1].text.strip():
        pieces = pieces[:-1]
    if pieces:
        pieces[0] = pieces[0]._replace(text=pieces[0].text.lstrip())
        pieces[-1] = pieces[-1]._replace(text=pieces[-1].text.rstrip())
    return pieces


def form_fault(file: TemplateFile, name: str, messages: list[Message]) -> str | None:
    """What of a faultless conversation a template has no form for, in a few words, or None."""
    if messages[0].get("tools") and file.tools is None:
        return f"the conversation lists tools, for which template {name} has no form"
    calls = file.turns["assistant"].calls
    for number, message in enumerate(messages, start=1):
        role = message["role"]
        if role not in file.turns and not (role == "system" and file.into is not None):
            return f"message {number} is {with_article(role)} message, for which template {name} has no form"
        if calls and role == "tool" and not _fits(message.get("tool_call_id"), calls.id_length):
            wanted = f"{calls.id_length} letters and digits"
            return f"message {number} has no tool_call_id of {wanted}, as template {name} wants"
        if len(message) > 2 and (fault := _form_fault_of_one(file, name, message, calls)):
            return f"message {number} {fault}"
    return None


def _form_fault_of_one(file: TemplateFile, name: str, message: Message, calls: Calls | None) -> str | None:
    made = message.get("tool_calls")
    if made and calls is None:
        return f"has tool_calls, for which template {name} has no form"
    if message.get("reasoning_content") and file.turns["assistant"].thinking is None:
        return f"has reasoning_content, for which template {name} has no form"
    if made and calls is not None:
        if calls.single and len(made) > 1:
            return f"has {len(made)} tool_calls; template {name} writes one in a message"
        if calls.alone and message["content"].strip():
            return f"has words and tool_calls; template {name} writes one or the other in a message"
        if any(not _fits(call["id"], calls.id_length) for call in made):
            return f"has a tool call whose id is not {calls.id_length} letters and digits, as {name} wants"
    return None


def _fits(name: str | None, length: int | None) -> bool:
    """Whether the id of a call is as a template wants it."""
    return length is None or (name is not None and len(name) == length and name.isalnum())
