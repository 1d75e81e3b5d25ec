"""HTML as the text that a reader sees: paragraphs, lists, and code with its lines as they are."""

import re
from html.parser import HTMLParser

_PARAGRAPHS = {"p", "div", "blockquote", "table", "dl", "h1", "h2", "h3", "h4", "h5", "h6"}
_LINES = {"tr", "dt", "dd"}
_UNSEEN = {"script", "style"}
_SPACE = re.compile(r"\s+")


def text_of(html: str) -> str:
    """The text of a piece of HTML, whatever state its tags are in; code blocks stand between lines of ```."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.text()


class _Reader(HTMLParser):
    """Collects text; line ends are written once there is something below them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._out: list[str] = []
        self._line_ends = 0  # before what comes next
        self._marker = ""  # of the list item that has nothing in it yet
        self._lists: list[int] = []  # of each list around: the next item's number, 0 where it has bullets
        self._code: list[str] | None = None  # the code block that is being read
        self._unseen = 0  # elements around that nobody sees

    def text(self) -> str:
        self._end_code()
        return "".join(self._out).strip()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _UNSEEN:
            self._unseen += 1
        elif self._code is not None:
            self._code.append("\n" if tag == "br" else "")
        elif tag == "pre":
            self._break(2)
            self._code = []
        elif tag in ("br", "hr"):
            self._break(min(2, self._line_ends + 1))
        elif tag in ("ul", "ol"):
            self._break(1 if self._lists else 2)
            self._lists.append(int(tag == "ol"))
        elif tag == "li":
            self._break(1)
            self._marker = self._next_marker()
        elif tag in ("td", "th") and not self._line_ends:
            self._write(" | ")
        else:
            self._boundary(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _UNSEEN:
            self._unseen = max(0, self._unseen - 1)
        elif tag == "pre":
            self._end_code()
        elif self._code is not None:
            return
        elif tag in ("ul", "ol"):
            if self._lists:
                self._lists.pop()
            self._break(1 if self._lists else 2)
        elif tag == "li":
            self._break(1)
            self._marker = ""
        else:
            self._boundary(tag)

    def handle_data(self, data: str) -> None:
        if self._unseen:
            return
        if self._code is not None:
            self._code.append(data)
        else:
            self._write(_SPACE.sub(" ", data))

    def _boundary(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._break(2)
        elif tag in _LINES:
            self._break(1)

    def _break(self, line_ends: int) -> None:
        """At least so many line ends before what comes next."""
        self._line_ends = max(self._line_ends, line_ends)
        if self._out:
            self._out[-1] = self._out[-1].rstrip(" ")

    def _write(self, text: str) -> None:
        if self._line_ends or not self._out or self._out[-1].endswith(" "):
            text = text.lstrip(" ")
        if text:
            self._out += ["\n" * self._line_ends if self._out else "", self._marker, text]
            self._line_ends, self._marker = 0, ""

    def _next_marker(self) -> str:
        indent = "  " * (len(self._lists) - 1)
        if not self._lists or not self._lists[-1]:
            return f"{indent}- "
        self._lists[-1] += 1
        return f"{indent}{self._lists[-1] - 1}. "

    def _end_code(self) -> None:
        if self._code is None:
            return
        code, self._code = "".join(self._code).strip("\n").rstrip(), None
        if code:
            self._write(f"```\n{code}\n```")
            self._break(2)
