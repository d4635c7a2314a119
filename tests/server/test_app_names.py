"""federation/apps.toml: written by a command, read at each run."""

from pathlib import Path

import pytest
from privet.privacy.errors import UsageError
from privet.server.app_names import allow_server_app, read_apps


def test_no_file_allows_nothing(tmp_path: Path) -> None:
    assert read_apps(tmp_path / "apps.toml") == {}


def test_command_changes_one_line_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    allow_server_app(path, "first", "first.server_app:app")
    path.write_text("# mine\n" + path.read_text() + "# also mine\n")
    allow_server_app(path, "second.2", "second.server_app:app")
    allow_server_app(path, "first", "other:app")
    assert read_apps(path) == {"first": "other:app", "second.2": "second.server_app:app"}
    assert path.read_text().startswith("# mine\n[apps]\n")
    assert "# also mine\n" in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "reference", "why"),
    [
        ("Big", "app:app", "'Big': an app's name has"),
        ("a b", "app:app", "an app's name has"),
        ("app", "app", "give the app's ServerApp as MODULE:OBJECT"),
        ("app", "../app:app", "MODULE:OBJECT"),
        ("app", 'app:app"\nx = "y', "MODULE:OBJECT"),
    ],
)
def test_attack_name_or_reference_that_is_none(tmp_path: Path, name: str, reference: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        allow_server_app(tmp_path / "apps.toml", name, reference)
    assert not (tmp_path / "apps.toml").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[apps", "not TOML"),
        ("[app]\nquickstart = 'a:b'\n", "unknown section; did you mean apps"),
        ("[apps]\nquickstart = 'a'\n", "apps.toml:2: apps.quickstart: "),
        ("[apps]\nquickstart = 1\n", "apps.toml:2: apps.quickstart: "),
        ("# " + "x" * 70_000, "larger than 65536 bytes"),
    ],
)
def test_file_that_cannot_be_meant_is_named_with_its_line(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "apps.toml"
    path.write_text(content)
    for use in (read_apps, lambda file: allow_server_app(file, "quickstart", "a:b")):
        with pytest.raises(UsageError, match=why):
            use(path)
    assert path.read_text() == content


def test_file_of_another_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_apps(path)


def test_spelling_that_a_line_does_not_show_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "apps.toml"
    path.write_text("apps = { first = 'a:b' }\n")
    with pytest.raises(UsageError, match="cannot change"):
        allow_server_app(path, "second", "a:b")
    assert read_apps(path) == {"first": "a:b"}
