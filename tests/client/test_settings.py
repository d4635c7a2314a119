"""node.toml: read with precise errors, and changed by commands without harm to what a person wrote there."""

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.client.join_cli import _TEMPLATE as TEMPLATE
from privet.client.operator_cli import allow, distrust, trust
from privet.client.peer_cli import distrust_peer, trust_peer
from privet.client.settings import (
    SETTINGS_BYTES,
    HeldSettings,
    NodeSettings,
    allow_app,
    pin,
    pin_peer,
    unpin,
    unpin_peer,
)
from privet.privacy.errors import UsageError

KEY, OTHER = "ab" * 32, "0123456789abcdef" * 4
TEXT = f"""\
# The node of St Mary's. Ask Bea before you change it.
[operators]
# heard on the telephone, 3 March
alice = "{KEY}"  # the coordinator

[apps.quickstart]  # for the students
client-app = "quickstart.client_app:app"
config = {{ partition-id = 0, path = "/data/students" }}

[node]
threads = 4
device = "cuda:0"
memory-limit = "8 GiB"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.toml"


def problem(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        NodeSettings.read(path)
    assert str(path) in caught.value.remedy
    return caught.value.message.replace(str(path), "node.toml")


def test_settings_read(path: Path) -> None:
    path.write_text(TEXT)
    settings = NodeSettings.read(path)
    assert settings.operators == {"alice": KEY}
    assert settings.apps["quickstart"].client_app == "quickstart.client_app:app"
    assert settings.apps["quickstart"].config == {"partition-id": 0, "path": "/data/students"}
    assert (settings.node.threads, settings.node.device, settings.node.memory_bytes) == (4, "cuda:0", 8 * 2**30)


def test_missing_or_empty_file_pins_nobody_and_allows_nothing(path: Path) -> None:
    for text in (None, "", "# nothing yet\n", "[operators]\n[node]\n"):
        if text is not None:
            path.write_text(text)
        settings = NodeSettings.read(path)
        assert (settings.operators, settings.apps) == ({}, {})
        assert (settings.node.threads, settings.node.device, settings.node.memory_bytes) == (1, "auto", None)


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("[operators]", "[operator]", "node.toml:2: operator: unknown section; did you mean operators?"),
        ("threads", "thread", "node.toml:11: node.thread: unknown key; did you mean threads?"),
        ("client-app", "client_app", "node.toml:7: apps.quickstart.client_app: unknown key; did you mean client-app?"),
        ("[apps.quickstart]", "[apps.Quickstart]", "node.toml:6: apps.Quickstart: string should match pattern"),
        (KEY, KEY.upper(), "node.toml:4: operators.alice: string should match pattern"),
        (KEY, KEY[1:], "node.toml:4: operators.alice: string should match pattern"),
        ("alice =", '"al ice" =', "node.toml:4: operators.al ice: string should match pattern"),
        ("threads = 4", "threads = 0", "node.toml:11: node.threads: input should be greater than or equal to 1, got 0"),
        ('"cuda:0"', '"cuda:0; rm"', "node.toml:12: node.device: string should match pattern"),
        ('"8 GiB"', '"8 GB"', "node.toml:13: node.memory-limit: string should match pattern"),
        ('"8 GiB"', '"0 GiB"', "node.toml:13: node.memory-limit: string should match pattern"),
        ("quickstart.client_app:app", "os.system", "node.toml:7: apps.quickstart.client-app: string should match"),
        ("quickstart.client_app:app", "a:b:c", "node.toml:7: apps.quickstart.client-app: string should match"),
        (
            'path = "/data/students"',
            "path = [1]",
            "node.toml:8: apps.quickstart.config.path: an option is true or false",
        ),
        ("[node]", "[node]\nthreads = 4", "node.toml: not TOML: Cannot overwrite a value"),
        ("[node]", "[[node]]", "node.toml:10: node: input should be a valid dictionary"),
    ],
)
def test_a_problem_is_told_with_line_and_nearest_key(path: Path, was: str, becomes: str, told: str) -> None:
    assert was in TEXT
    found = problem(path, TEXT.replace(was, becomes, 1))
    assert found.startswith(told)


def test_a_file_that_is_not_settings_is_refused(path: Path) -> None:
    assert "larger than" in problem(path, "#" * (SETTINGS_BYTES + 1))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        NodeSettings.read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        NodeSettings.read(path)


def test_pin_changes_one_line(path: Path) -> None:
    path.write_text(TEXT)
    pin(path, "bob", OTHER)
    assert path.read_text() == TEXT.replace("# the coordinator\n", f'# the coordinator\nbob = "{OTHER}"\n')
    pin(path, "alice", OTHER)
    assert NodeSettings.read(path).operators == {"alice": OTHER, "bob": OTHER}
    assert path.stat().st_mode & 0o777 == 0o600


def test_unpin_takes_one_line_away(path: Path) -> None:
    path.write_text(TEXT)
    pin(path, "bob", OTHER)
    unpin(path, "bob")
    assert path.read_text() == TEXT
    with pytest.raises(UsageError, match="'bob' is not pinned; pinned: alice"):
        unpin(path, "bob")
    assert path.read_text() == TEXT


def test_first_pin_makes_the_file(path: Path) -> None:
    pin(path, "alice", KEY)
    assert path.read_text() == f'[operators]\nalice = "{KEY}"\n'
    allow_app(path, "quickstart", "quickstart.client_app:app")
    assert path.read_text() == (
        f'[operators]\nalice = "{KEY}"\n\n[apps.quickstart]\nclient-app = "quickstart.client_app:app"\n'
    )


def test_file_without_a_newline_at_its_end(path: Path) -> None:
    path.write_text("[operators]")
    pin(path, "alice", KEY)
    assert NodeSettings.read(path).operators == {"alice": KEY}
    path.write_text("[node]\nthreads = 2")
    pin(path, "alice", KEY)
    assert (NodeSettings.read(path).operators, NodeSettings.read(path).node.threads) == ({"alice": KEY}, 2)


def test_app_that_is_allowed_again_keeps_its_config(path: Path) -> None:
    path.write_text(TEXT)
    allow_app(path, "quickstart", "newer.client_app:app")
    assert path.read_text() == TEXT.replace("quickstart.client_app", "newer.client_app")
    allow_app(path, "vision", "vision.client_app:app")
    assert set(NodeSettings.read(path).apps) == {"quickstart", "vision"}


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("Alice", KEY),
        ("", KEY),
        ("a b", KEY),
        ('x"\n[node]', KEY),
        ("alice", KEY.upper()),
        ("alice", f"{KEY}\n"),
        ("alice", ""),
    ],
)
def test_pin_that_is_none(path: Path, name: str, fingerprint: str) -> None:
    path.write_text(TEXT)
    with pytest.raises(UsageError, match=r"an operator's name has|a fingerprint has"):
        pin(path, name, fingerprint)
    assert path.read_text() == TEXT


@pytest.mark.parametrize(
    ("name", "app"), [("Quick", "a:b"), ("quick", "a"), ("quick", 'a:b"\nx = "'), ("quick", "a:b\n")]
)
def test_app_that_is_none(path: Path, name: str, app: str) -> None:
    with pytest.raises(UsageError):
        allow_app(path, name, app)
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    [
        f'operators = {{ alice = "{KEY}" }}\n',
        f'operators.alice = "{KEY}"\n',
        f'["operators"]\nalice = """\\\n{KEY}"""\n',
        f'[apps.x]\nclient-app = "a:b"\nconfig = {{ text = "[operators]" }}\n[operators]\n"alice" = "{KEY}"\n',
    ],
)
def test_file_that_lines_do_not_tell_is_changed_rightly_or_not_at_all(path: Path, text: str) -> None:
    path.write_text(text)
    before = NodeSettings.read(path)
    for change in (lambda: pin(path, "alice", OTHER), lambda: unpin(path, "alice")):
        path.write_text(text)
        with contextlib.suppress(UsageError):
            change()
        assert path.read_text() == text or NodeSettings.read(path).operators in ({"alice": OTHER}, {})
        assert NodeSettings.read(path).apps == before.apps


def test_edit_by_lines_that_says_something_else_is_not_written(path: Path) -> None:
    path.write_text(f'operators.alice = "{KEY}"\n')
    with pytest.raises(UsageError, match="cannot change") as caught:
        unpin(path, "alice")
    assert "by hand" in caught.value.remedy


def test_broken_file_is_not_changed(path: Path) -> None:
    path.write_text(TEXT + "[oops]\n")
    with pytest.raises(UsageError, match="oops: unknown section"):
        pin(path, "bob", KEY)
    assert path.read_text() == TEXT + "[oops]\n"


NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(NAMES, st.booleans()), max_size=8))
def test_any_pins_come_and_go_beside_what_stands_there(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, bool]]
) -> None:
    path = tmp_path_factory.mktemp("home") / "node.toml"
    path.write_text(TEXT)
    expected = {"alice": KEY}
    for name, is_pinned in changes:
        if is_pinned:
            pin(path, name, OTHER)
            expected[name] = OTHER
        elif name in expected:
            unpin(path, name)
            del expected[name]
    found = NodeSettings.read(path)
    assert found.operators == expected
    assert found.apps["quickstart"].config == {"partition-id": 0, "path": "/data/students"}
    assert "# heard on the telephone, 3 March" in path.read_text()


def test_commands_say_who_is_listened_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path))
    trust("alice", KEY.upper())
    assert capsys.readouterr().out == "operator alice pinned\nlistened to: alice\n"
    trust("alice", OTHER)
    assert capsys.readouterr().out == f"operator alice pinned, in place of key {KEY}\nlistened to: alice\n"
    distrust("alice")
    assert capsys.readouterr().out.endswith("listened to: any operator that the coordinator names\n")
    allow("quickstart", "quickstart.client_app:app")
    assert "what it reads is not accounted for" in capsys.readouterr().out
    assert NodeSettings.read(tmp_path / "node.toml").apps["quickstart"].client_app == "quickstart.client_app:app"


def test_commands_say_which_peers_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path))
    counted = "only parties pinned by the institution count"
    trust_peer("st-marys", KEY.upper())
    assert capsys.readouterr().out == f"peer st-marys pinned\n{counted}: st-marys\n"
    trust_peer("st-marys", OTHER)
    assert capsys.readouterr().out == f"peer st-marys pinned, in place of key {KEY}\n{counted}: st-marys\n"
    distrust_peer("st-marys")
    assert capsys.readouterr().out == "peer st-marys is not pinned any more\ncoordinator trusted to name parties\n"
    with pytest.raises(UsageError, match="peer 'st-marys' is not pinned; pinned: nobody"):
        distrust_peer("st-marys")


def test_peers_and_operators_are_pinned_apart(tmp_path: Path) -> None:
    """In the file that `privet join` writes, whose sections of peers and policy are comments."""
    path = tmp_path / "node.toml"
    path.write_bytes(TEMPLATE.read_bytes())
    assert NodeSettings.read(path) == NodeSettings()
    pin(path, "alice", KEY)
    pin_peer(path, "alice", OTHER)
    assert NodeSettings.read(path).operators == {"alice": KEY}
    assert NodeSettings.read(path).peers == {"alice": OTHER}
    unpin(path, "alice")
    assert NodeSettings.read(path).peers == {"alice": OTHER}
    unpin_peer(path, "alice")
    assert NodeSettings.read(path) == NodeSettings()
    with pytest.raises(UsageError, match="a peer's name has"):
        pin_peer(path, "St Mary's", KEY)
    with pytest.raises(UsageError, match="a fingerprint has"):
        pin_peer(path, "st-marys", KEY[:-1])


def test_sections_of_the_template_are_what_a_node_reads(tmp_path: Path) -> None:
    """Each commented line that is TOML, taken in."""
    path = tmp_path / "node.toml"
    text = re.sub(r"(?m)^# (\[.+\]|[a-z-]+ = .+)$", r"\1", TEMPLATE.read_text())
    path.write_text(text.replace("0123456789abcdef...", KEY))
    found = NodeSettings.read(path)
    assert (found.operators, found.peers) == ({"alice": KEY}, {"st-marys": KEY})
    assert (found.policy.disclose, found.policy.time_zone, found.node.threads) == ("rule", "Europe/Berlin", 4)


def test_config_of_an_app_is_written_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    config = {"partition-id": 0, "folder": 'a "b" \\ é', "is-large": True, "share": 0.5}
    allow_app(path, "quickstart", "a:app", config)
    assert NodeSettings.read(path).apps["quickstart"].config == config
    allow_app(path, "quickstart", "b:app")
    assert NodeSettings.read(path).apps["quickstart"].config == config
    allow_app(path, "quickstart", "b:app", {"partition-id": 1})
    assert NodeSettings.read(path).apps["quickstart"].config == {"partition-id": 1}
    allow_app(path, "quickstart", "b:app", {})
    assert NodeSettings.read(path).apps["quickstart"].config == {}


@pytest.mark.parametrize("config", [{"a b": 1}, {"key": "two\nlines"}, {"key": [1]}, {"key": float("nan")}])
def test_config_that_no_plan_could_hold_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="config"):
        allow_app(tmp_path / "node.toml", "quickstart", "a:app", config)
    assert not (tmp_path / "node.toml").exists()


PINS = f'[operators]\nalice = "{KEY}"\n[peers]\nst-marys = "{OTHER}"\n'


def test_settings_hold_where_the_file_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(PINS)
    settings = HeldSettings(path)
    pinned = settings.look()
    path.unlink()
    assert settings.look() == settings.look() == pinned


@pytest.mark.parametrize("left", ["", f'[peers]\nst-marys = "{OTHER}"\n', f'[operators]\nalice = "{KEY}"\n'])
def test_pins_are_gone_when_the_file_says_so_twice(tmp_path: Path, left: str) -> None:
    """An editor that writes in place empties the file first, and a node that looks then must not let everybody in."""
    path = tmp_path / "node.toml"
    path.write_text(PINS)
    settings = HeldSettings(path)
    pinned = settings.look()
    path.write_text(left)
    assert settings.look() == pinned
    assert settings.look() == NodeSettings.read(path) != pinned
    path.write_text(PINS)
    assert settings.look() == pinned


def test_pin_that_is_changed_holds_at_once(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(PINS)
    settings = HeldSettings(path)
    settings.look()
    pin(path, "alice", OTHER)
    assert settings.look().operators == {"alice": OTHER}
