"""Depth: how deeply a policy's text is nested, before Cedar reads it.

Cedar's reader recurses, and a text that is nested too deeply ends the whole process: some 600 brackets, or a chain of
some ten thousand operators. A policy may come from a ledger that somebody else wrote.
"""

import re

MOST_NESTED = 100  # brackets within one another; a rule that a person wrote has five
MOST_WORDS = 4000  # words and signs of one rule: a chain of operators nests as well

_TOKEN = re.compile(r'//[^\n]*|"(?:[^"\\]|\\.)*"|[^\W\d]\w*|\d+|\S', re.DOTALL)
_OPENS, _CLOSES = frozenset("([{"), frozenset(")]}")


def problem_of_depth(text: str) -> str | None:
    """Why Cedar must not be given the text; None where it may.

    >>> problem_of_depth('@id("a") permit (principal, action, resource);')
    >>> problem_of_depth("(" * 101)
    'brackets are nested more than 100 deep'
    """
    depth = words = 0
    for found in _TOKEN.finditer(text):
        token = found[0]
        if token.startswith("//"):
            continue
        depth += (token in _OPENS) - (token in _CLOSES)
        words = 0 if token == ";" else words + 1
        if depth > MOST_NESTED:
            return f"brackets are nested more than {MOST_NESTED} deep"
        if words > MOST_WORDS:
            return f"a rule has more than {MOST_WORDS} words and signs"
    return None
