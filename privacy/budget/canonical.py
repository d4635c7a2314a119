"""Canonical JSON (RFC 8785, the JSON canonicalisation scheme), quickly where a text is what nearly every entry is.

A list of strings, or strings by names that are ASCII, needs two of the scheme's rules alone: how a string is written
(section 3.2.2.2), which is how Python's `json` writes it without escaping what is not ASCII, and the order of names by
UTF-16 units (3.2.3), which of ASCII is that of characters. Anything else, and any text that is none (a lone
surrogate), goes to `rfc8785`, whose word counts: both give the same bytes, or the same error.
"""

from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring as _quoted
from typing import Any

import rfc8785


def canonical(content: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """The canonical bytes; raises rfc8785.CanonicalizationError, a ValueError, for what has none.

    >>> canonical({"b": "1", "a": "2"})
    b'{"a":"2","b":"1"}'
    """
    text = _of_names(content) if type(content) is dict else _of_list(content) if type(content) is list else None
    if text is not None:
        try:
            return text.encode()
        except UnicodeEncodeError:  # a lone surrogate: said in the words of the scheme
            pass
    return rfc8785.dumps(content)  # it says itself what it takes


def _of_names(content: dict[Any, Any]) -> str | None:
    for name, value in content.items():
        if type(name) is not str or type(value) is not str or not name.isascii():
            return None
    return "{" + ",".join([f"{_quoted(name)}:{_quoted(content[name])}" for name in sorted(content)]) + "}"


def _of_list(content: list[Any]) -> str | None:
    for value in content:
        if type(value) is not str:
            return None
    return "[" + ",".join(map(_quoted, content)) + "]"
