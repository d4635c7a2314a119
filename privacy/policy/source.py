"""Where each rule stands in a policy's text. Cedar's own messages name no line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(r'//[^\n]*|"(?:\\.|[^"\\])*"|;|[^\s/";]+|[/"]', re.DOTALL)
_ID = re.compile(r'@id\s*\(\s*"([^"]*)"\s*\)')


@dataclass(frozen=True, slots=True)
class Place:
    """A rule's place. `start` to `end`: with the comment right above it, and its semicolon. `line`: where it begins."""

    id: str
    line: int
    start: int
    end: int
    text: str


def places(text: str) -> tuple[Place, ...]:
    """The place of each rule, in order; what follows the last semicolon is one too where it is not a comment.

    >>> [(one.id, one.line) for one in places('// why\\n@id("a") permit (principal, action, resource);')]
    [('a', 2)]
    """
    return tuple(_places(text))


def _places(text: str) -> Iterator[Place]:
    begin: int | None = None
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token.startswith("//"):
            continue
        if begin is None:
            begin = found.start()
        if token == ";":
            yield _place(text, begin, found.end())
            begin = None
    if begin is not None:
        yield _place(text, begin, len(text))


def _place(text: str, begin: int, end: int) -> Place:
    rule = text[begin:end]
    named = _ID.search(rule)
    return Place(named[1] if named else "", text.count("\n", 0, begin) + 1, _with_comment(text, begin), end, rule)


def _with_comment(text: str, begin: int) -> int:
    """Where the comment begins that stands right above, without an empty line between."""
    start = text.rfind("\n", 0, begin) + 1
    if text[start:begin].strip():
        return begin  # another rule stands on the same line
    while start:
        above = text.rfind("\n", 0, start - 1) + 1
        if not text[above:start].lstrip().startswith("//"):
            break
        start = above
    return start
