"""Log lines: one record is one line, whatever comes from outside, and no secret is ever among them."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from parties import make_federation
from privet.__main__ import run
from privet.privacy.channel.files import OWNER_ONLY
from privet.privacy.channel.token import Token
from privet.privacy.log_lines import LogLevel, write_logs

FORGED = "lost\n2027-01-31T12:00:00Z info server: all is well\r\x1b[31m\x00\u2028end"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (info|warning|error) [a-z.]+: .*")


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """What was written to standard error since; the loggers are as they were in the end."""
    loggers = [logging.getLogger(name) for name in ("", "privet", "flwr")]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    yield lambda: capsys.readouterr().err
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def failed(text: str) -> None:
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("privet.node").exception("no answer could be made")


def test_what_comes_from_outside_begins_no_line(logged: Callable[[], str]) -> None:
    write_logs(as_json=False)
    logging.getLogger("privet.server").warning("node %s: %s", "st-marys", FORGED)
    line = logged().removesuffix("\n")
    assert LINE.fullmatch(line)
    assert line.isprintable()


def test_traceback_cannot_look_like_a_record(logged: Callable[[], str]) -> None:
    write_logs(as_json=False)
    failed(FORGED)
    first, *below = logged().removesuffix("\n").split("\n")
    assert LINE.fullmatch(first)
    assert any("ValueError: lost" in line for line in below)
    assert all(line.startswith("    ") and line.isprintable() for line in below)


def test_json_is_one_object_a_line_with_its_traceback_inside(logged: Callable[[], str]) -> None:
    write_logs(as_json=True)
    logging.getLogger("privet.server").error("%s", FORGED)
    failed(FORGED)
    written = logged()
    told = [json.loads(line) for line in written.splitlines()]
    assert [set(one) for one in told] == [
        {"time", "level", "logger", "message"},
        {"time", "level", "logger", "message", "traceback"},
    ]
    assert told[0]["message"].isprintable()
    assert "ValueError: lost" in told[1]["traceback"]
    assert written.isascii()


@pytest.mark.parametrize("as_json", [False, True])
def test_endless_texts_are_cut(logged: Callable[[], str], as_json: bool) -> None:
    write_logs(as_json)
    logging.getLogger("privet.server").error("x" * 1_000_000)
    failed("y" * 1_000_000)
    assert len(logged()) < 30_000


def test_level_is_of_privets_own_loggers(logged: Callable[[], str]) -> None:
    write_logs(as_json=False, level=LogLevel.WARNING)
    logging.getLogger("privet.server").info("not asked for")
    logging.getLogger("privet.server").warning("asked for")
    write_logs(as_json=False, level=LogLevel.DEBUG)
    logging.getLogger("privet.server").debug("every detail")
    logging.getLogger("some.library").info("of no interest")
    assert [line.split(": ")[1] for line in logged().splitlines()] == ["asked for", "every detail"]


def test_no_log_at_any_level_holds_a_secret(
    tmp_path: Path, logged: Callable[[], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invite, join, join again, come with an altered token: at level debug, with every library's logger open."""
    write_logs(as_json=True, level=LogLevel.DEBUG)
    logging.getLogger().setLevel(logging.DEBUG)
    federation = make_federation(tmp_path / "coordinator")
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "coordinator"))
    passphrase = "a passphrase that nobody guesses"
    (tmp_path / "passphrase").write_text(passphrase)
    (tmp_path / "passphrase").chmod(OWNER_ONLY)
    with federation.serving():
        assert run(["invite", "st-marys"]) == 0
        token, said = capsys.readouterr()
        token = token.strip()
        altered = federation.token("charite")
        for name, text in (("one", token), ("one", token), ("two", token), ("three", altered.text()[:-1] + "a")):
            monkeypatch.setenv("PRIVET_HOME", str(tmp_path / name))
            run(["join", text, "--yes", "--passphrase-file", str(tmp_path / "passphrase")])
    said += capsys.readouterr().err
    assert "certified spiffe://hearts/node/st-marys" in said
    assert "used by another key" in said
    raw = [Token.of(token).secret, altered.secret]
    secrets = {token, altered.text(), passphrase, *map(bytes.hex, raw), *(repr(one)[2:-1] for one in raw)}
    for key in tmp_path.rglob("*key.pem"):
        secrets |= {line for line in key.read_text().splitlines() if not line.startswith("-----")}
    assert len(secrets) > 10
    assert not [secret for secret in secrets if secret in said]
