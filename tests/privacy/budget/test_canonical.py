"""Canonical JSON by the quick way and by `rfc8785`: the same bytes, or the same error."""

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from privet.privacy.budget.canonical import canonical

# Control characters, quotes, both sides of the surrogates' range: UTF-16 puts U+10000 before U+FFFF, characters do not.
ODD = '\x00\x07\b\t\n\f\r\x1f "\\/\x7f\x80\u2028\u2029é\ud7ff\ue000\ufffe\uffff\U00010000\U0010ffff'
TEXTS = st.text() | st.text(alphabet=ODD)
NESTED = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)


@given(st.dictionaries(TEXTS, TEXTS) | st.lists(TEXTS))
def test_flat_texts_are_written_as_the_scheme_writes_them(content: "dict[str, str] | list[str]") -> None:
    assert canonical(content) == rfc8785.dumps(content)


@given(st.dictionaries(st.text(alphabet='abz_-."\\\n'), TEXTS))
def test_names_in_ascii_are_written_as_the_scheme_writes_them(content: dict[str, str]) -> None:
    assert canonical(content) == rfc8785.dumps(content)


@given(NESTED)
def test_whatever_else_there_is_gives_the_same_bytes_or_the_same_error(value: object) -> None:
    for content in ({"a": value}, [value, "b"]):
        try:
            expected = rfc8785.dumps(content)  # type: ignore[arg-type]
        except rfc8785.CanonicalizationError as error:
            with pytest.raises(type(error)):
                canonical(content)
        else:
            assert canonical(content) == expected


@pytest.mark.parametrize("content", [{"a": "\ud800"}, {"\ud800": "a"}, ["\udfff"], {1: "a"}, {"a": object()}])
def test_what_has_no_canonical_form_is_refused(content: "dict[str, str] | list[str]") -> None:
    with pytest.raises(ValueError, match=r"utf-16|UTF-8|strings|unsupported"):
        canonical(content)


def test_names_beyond_ascii_are_ordered_by_utf_16() -> None:
    content = {"\uffff": "2", "\U00010000": "1"}
    assert canonical(content) == '{"\U00010000":"1","\uffff":"2"}'.encode()
