"""A template file as Jinja, for other programs: transformers and vLLM render what we render, token by token.

`{% generation %}` stands around what is learned, so that transformers' `return_assistant_tokens_mask` gives
our weights. Nothing of it is written by hand: it is made of what the YAML says."""

import re
from collections.abc import Iterable

from tutelage.text.pieces import Piece
from tutelage.text.template_parts import Calls, Into, TemplateFile, Tools, Turn

_CALL = {"$name": "function['name']", "$arguments": "arguments", "$id": "call['id']"}
_RESULT = {
    "$id": "message['tool_call_id'] | default('', true)",
    "$name": "message['name'] | default('', true)",
}
_USERS = """\
{%- set users = namespace(first=-1, last=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- if users.first < 0 -%}{%- set users.first = loop.index0 -%}{%- endif -%}
{%- set users.last = loop.index0 -%}
{%- endif -%}
{%- endfor -%}
"""
_QUESTION = """\
{%- set asked = namespace(found=false, last=messages | length - 1) -%}
{%- for message in messages[::-1] -%}
{%- if not asked.found and message['role'] == 'user' and not \
(message['content'].startswith('<tool_response>') and message['content'].endswith('</tool_response>')) -%}
{%- set asked.found = true -%}{%- set asked.last = messages | length - 1 - loop.index0 -%}
{%- endif -%}
{%- endfor -%}
"""
_REASONING = """\
{%- set reasoning = message['reasoning_content'] | default('', true) -%}
{%- if not reasoning and '</think>' in content -%}
{%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- set words = content -%}
{%- if loop.index0 > asked.last and (loop.last or reasoning) -%}
{%- set content = OPEN + reasoning.strip('\\n') + CLOSE + content.lstrip('\\n') -%}
{%- endif -%}
"""
_RESULT_AS_VALUE = """\
{%- if content[:1] in ['{', '[', '"'] or content in ['true', 'false', 'null'] \
or (content[:1] in '-0123456789' and content | float(default=none) is not none) -%}
{{- content -}}
{%- else -%}
{{- content | tojson -}}
{%- endif -%}
"""


def jinja_of(file: TemplateFile) -> str:
    """The Jinja source of a template."""
    source = "{%- if tools is not defined -%}{%- set tools = none -%}{%- endif -%}\n" if file.tools else ""
    source += _system(file)
    if file.into is not None or (file.tools and file.tools.into != "system"):
        source += _USERS
    if file.turns["assistant"].thinking is not None:
        source += _QUESTION
    source += _written(file.bos) + "{%- for message in messages -%}\n"
    source += "{%- set content = message['content'] | default('', true) -%}\n"
    branch = "if"
    for role, turn in file.turns.items():
        source += f"{{%- {branch} message['role'] == '{role}' -%}}\n" + _turn(file, role, turn)
        branch = "elif"
    known = ", ".join(file.turns)
    source += f"{{%- else -%}}\n{{{{- raise_exception('the roles of this template are {known}') -}}}}\n"
    source += "{%- endif -%}\n{%- endfor -%}\n"
    return (source + _ending(file)).rstrip("\n")


def _system(file: TemplateFile) -> str:
    """Gives `messages` the system message that is not there, or takes the one that is to be put elsewhere."""
    absent, source = "messages[0]['role'] != 'system'", ""
    if file.tools and file.tools.into == "system" and file.default_system is None:
        source += "{%- set told = messages[0]['role'] == 'system' -%}\n"
        source += "{%- if tools and not told -%}" + _prepended("") + "{%- endif -%}\n"
    if file.default_system is not None:
        source += f"{{%- if {absent} -%}}" + _prepended(file.default_system) + "{%- endif -%}\n"
    if file.into is not None:
        text = "messages[0]['content']" + (" | trim" if file.into.strip else "")
        opening = " + ".join([quoted(file.into.lead), text, quoted(file.into.separator)])
        source += f"{{%- if {absent} -%}}{{%- set opening = '' -%}}{{%- else -%}}\n"
        source += f"{{%- set opening = {opening} -%}}{{%- set messages = messages[1:] -%}}{{%- endif -%}}\n"
    return source


def _prepended(system: str) -> str:
    return f"{{%- set messages = [{{'role': 'system', 'content': {quoted(system)}}}] + messages -%}}"


def _turn(file: TemplateFile, role: str, turn: Turn) -> str:
    tools, slots = file.tools, _RESULT if role == "tool" else None
    start = _written(turn.start, slots)
    if role == "system" and tools and tools.system_start is not None:
        other = _written(tools.system_start)
        start = f"{{%- if tools -%}}{other}{{%- else -%}}{start}{{%- endif -%}}\n"
    lead, end = _written(turn.lead, slots), _written(turn.end, slots)
    body = (lead if turn.calls is None else _lead(turn.calls, lead)) + _body(file, role, turn) + end
    source = start + (_marked(body) if turn.learned else body) + _written(turn.after)
    if turn.open or turn.close:
        source = _at_edge("first", "-", role, turn.open) + source + _at_edge("last", "+", role, turn.close)
    if turn.between:
        source += "{%- if not loop.last -%}" + _written(turn.between) + "{%- endif -%}\n"
    if role == "user" and tools and tools.into == "before_last_user":
        told = _tools(tools)
        source = f"{{%- if tools and loop.index0 == users.last -%}}\n{told}{{%- endif -%}}\n" + source
    if turn.omit_empty:
        source = "{%- if content -%}" + source + "{%- endif -%}\n"
    return (_thinking(turn) if turn.thinking else "") + source


def _at_edge(edge: str, sign: str, role: str, pieces: Iterable[Piece]) -> str:
    """What stands before the first, or after the last, of several messages of one role in a row."""
    other = f"messages[loop.index0 {sign} 1]['role'] != '{role}'"
    return f"{{%- if loop.{edge} or {other} -%}}" + _written(pieces) + "{%- endif -%}\n"


def _lead(calls: Calls, lead: str) -> str:
    return "{%- if not message['tool_calls'] -%}" + lead + "{%- endif -%}\n" if calls.alone and lead else lead


def _body(file: TemplateFile, role: str, turn: Turn) -> str:
    tools, into = file.tools, file.into
    source, after = "", ""
    if role == "user" and tools and tools.into == "first_user":
        source = "{%- if tools and loop.index0 == users.first -%}\n" + _tools(tools) + "{%- endif -%}\n"
    if role == "system" and tools and tools.into == "system":
        separator = _separator(tools, always=file.default_system is not None)
        after = "{%- if tools -%}\n" + separator + _tools(tools) + "{%- endif -%}\n"
    if role == "assistant" and turn.calls is not None:
        after = "{%- if message['tool_calls'] -%}\n" + _calls(turn.calls, turn) + "{%- endif -%}\n"
    if turn.form == "value":
        return source + _RESULT_AS_VALUE + after
    content = "content" + (" | trim" if turn.strip else "") + (" | tojson" if turn.form == "json" else "")
    if role == "user" and into is not None:
        content = _with_opening(into, content)
    return source + f"{{{{- {content} -}}}}\n" + after


def _with_opening(into: Into, content: str) -> str:
    opening = f"(opening if loop.index0 == users.{into.user.removesuffix('_user')} else '')"
    return f"({opening} + content) | trim" if into.strip_joined else f"{opening} + {content}"


def _thinking(turn: Turn) -> str:
    assert turn.thinking is not None
    source = _REASONING.replace("OPEN", quoted(turn.thinking.open))
    return source.replace("CLOSE", quoted(turn.thinking.close))


def _separator(tools: Tools, *, always: bool) -> str:
    if not tools.separator:
        return ""
    written = f"{{{{- {quoted(tools.separator)} -}}}}"
    return written + "\n" if always else "{%- if told -%}" + written + "{%- endif -%}\n"


def _tools(tools: Tools) -> str:
    form = "tool | tojson" if tools.indent is None else f"tool | tojson(indent={tools.indent})"
    each = _filled(tools.each, {"$tool": form})
    listed = f"{{%- for tool in tools -%}}\n{_between(tools.between)}{{{{- {each} -}}}}\n{{%- endfor -%}}\n"
    return _written(tools.lead) + listed + _written(tools.end)


def _calls(calls: Calls, turn: Turn) -> str:
    source = "{%- set calls = message['tool_calls'] -%}\n"
    if calls.single:
        source += (
            "{%- if calls | length > 1 -%}{{- raise_exception('one tool call in a message, no more') -}}"
        )
        source += "{%- endif -%}\n"
    if calls.separator:
        words = "words" if turn.thinking else "content"
        source += f"{{%- if {words} -%}}{{{{- {quoted(calls.separator)} -}}}}{{%- endif -%}}\n"
    source += _written(calls.open) + "{%- for call in calls -%}\n"
    if calls.id_length is not None:
        source += f"{{%- if call['id'] is not defined or call['id'] | length != {calls.id_length} -%}}"
        source += f"{{{{- raise_exception('a tool call needs an id of {calls.id_length} letters and digits')"
        source += " -}}{%- endif -%}\n"
    source += "{%- set function = call['function'] if call['function'] is defined else call -%}\n"
    source += "{%- set arguments = function['arguments'] -%}\n"
    source += "{%- if arguments is not string -%}{%- set arguments = arguments | tojson -%}{%- endif -%}\n"
    source += _between(calls.between) + f"{{{{- {_filled(calls.each, _CALL)} -}}}}\n"
    return source + "{%- endfor -%}\n" + _written(calls.close)


def _between(text: str) -> str:
    return f"{{%- if not loop.first -%}}{{{{- {quoted(text)} -}}}}{{%- endif -%}}\n" if text else ""


def _ending(file: TemplateFile) -> str:
    reply = "{%- if add_generation_prompt -%}\n" + _written(file.reply) if file.reply else ""
    if not file.eos:
        return reply + "{%- endif -%}\n" if reply else ""
    learned = ", ".join(f"'{role}'" for role, turn in file.turns.items() if turn.learned)
    eos = _written(file.eos)
    last = f"{{%- if messages[-1]['role'] in [{learned}] -%}}\n" + _marked(eos)
    last += "{%- else -%}\n" + eos + "{%- endif -%}"
    otherwise = "{%- else -%}\n" if reply else "{%- if not add_generation_prompt -%}\n"
    return reply + otherwise + last + "\n{%- endif -%}\n"


def _marked(source: str) -> str:
    return "{%- generation -%}\n" + source + "{%- endgeneration -%}\n" if source else ""


def _written(pieces: Iterable[Piece], slots: dict[str, str] | None = None) -> str:
    """What writes these texts; BOS and EOS are those that the program's tokenizer has."""
    source, text = "", ""
    for piece in pieces:
        if piece.control and piece.text in ("$bos", "$eos"):
            source += _output(text, slots) + f"{{{{- {piece.text[1:]}_token -}}}}\n"
            text = ""
        else:
            text += piece.text
    return source + _output(text, slots)


def _output(text: str, slots: dict[str, str] | None) -> str:
    return f"{{{{- {_filled(text, slots or {})} -}}}}\n" if text else ""


def _filled(text: str, slots: dict[str, str]) -> str:
    """A Jinja expression for a text with slots."""
    cut = re.split("(" + "|".join(map(re.escape, slots)) + ")", text) if slots else [text]
    parts = [f"({slots[part]})" if part in slots else quoted(part) for part in cut if part]
    return " + ".join(parts) or "''"


def quoted(text: str) -> str:
    """A text as a string of Jinja."""
    for character, escaped in (("\\", "\\\\"), ("'", "\\'"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(character, escaped)
    return f"'{text}'"
