"""The token: whole or refused, and its secret in no repr."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from privet.privacy.channel.identities import Role
from privet.privacy.channel.token import PREFIX, Token, checked_address, host_and_port, new_secret, secret_hash
from privet.privacy.errors import EnrolmentError

SECRET = bytes(range(16))
TOKEN = Token("hearts", Role.NODE, "st-marys", "fl.example.org:9443", "fl.example.org:9444", b"r" * 16, SECRET)


def test_token_survives_the_way() -> None:
    assert Token.of(TOKEN.text()) == TOKEN


@pytest.mark.parametrize(
    "change", [str.upper, lambda t: f"  {t}\n", lambda t: "\r\n".join([t[:70], t[70:140], t[140:]])]
)
def test_token_survives_a_mail_program(change: "type[str]") -> None:
    assert Token.of(change(TOKEN.text())) == TOKEN


@given(st.integers(len(PREFIX), len(TOKEN.text()) - 1), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_altered_token(place: int, letter: str) -> None:
    """A letter that was copied wrong is found before anything is sent."""
    text = TOKEN.text()
    altered = text[:place] + letter + text[place + 1 :]
    if altered == text:
        return
    try:
        found = Token.of(altered)
    except EnrolmentError:
        return
    assert found == TOKEN  # the last letter holds spare bits


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_token_that_was_cut_short(cut: int) -> None:
    with pytest.raises(EnrolmentError, match="not copied right"):
        Token.of(TOKEN.text()[:-cut])


@given(st.text(max_size=300))
def test_text_that_is_no_token(text: str) -> None:
    for candidate in (text, PREFIX + text):
        with pytest.raises(EnrolmentError):
            Token.of(candidate)


def test_secret_is_in_no_repr_and_no_error() -> None:
    assert str(SECRET) not in repr(TOKEN)
    assert SECRET.hex() not in repr(TOKEN)
    with pytest.raises(EnrolmentError) as caught:
        Token.of(TOKEN.text()[:-1] + "!")
    assert TOKEN.text()[20:60] not in caught.value.message + caught.value.remedy


def test_secrets_are_fresh_and_what_the_server_keeps_is_not_the_secret() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert SECRET.hex() not in secret_hash(SECRET)
    assert secret_hash(SECRET) != secret_hash(b"x" * 16)


@pytest.mark.parametrize(
    "address",
    ["fl.example.org", ":9443", "a:0", "a:65536", "a:-1", "a b:1", "a:1:", "a/b:80", "ä:80", "a:٣", "a" * 254 + ":1"],
)
def test_text_that_is_no_address(address: str) -> None:
    with pytest.raises(EnrolmentError, match="not an address"):
        checked_address(address)


def test_address_in_two_parts() -> None:
    assert host_and_port("fl.example.org:9443") == ("fl.example.org", 9443)
    assert host_and_port("[::1]:9443") == ("::1", 9443)


def test_token_that_names_an_address_that_is_none() -> None:
    with pytest.raises(EnrolmentError, match="of a kind"):
        Token.of(Token("hearts", Role.NODE, "a", "x y", "b:1", b"r" * 16, SECRET).text())
