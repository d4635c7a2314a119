"""Projects: which operators and nodes belong together, in the database and on the command line."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from parties import make_federation
from privet.__main__ import run
from privet.privacy.channel.identities import Role
from privet.privacy.errors import DatabaseError, UsageError
from privet.server.database import open_database
from privet.server.projects import Projects
from privet.server.run_book import RunBook
from sqlalchemy import create_engine, text

NOW = datetime(2027, 6, 30, 12, 0, tzinfo=UTC)


@pytest.fixture(name="projects")
def _projects(tmp_path: Path) -> Projects:
    return Projects(open_database(f"sqlite:///{tmp_path / 'server.sqlite'}"))


def test_members_come_and_go(projects: Projects) -> None:
    made = projects.add("hearts", NOW, ["bob", "alice"], ["st-marys"])
    assert (made.operators, made.nodes, made.created) == (("alice", "bob"), ("st-marys",), "2027-06-30T12:00:00+00:00")
    projects.add("lungs", NOW, nodes=["st-marys", "mercy"])
    assert projects.of("st-marys") == ("hearts", "lungs")
    assert projects.of("nobody") == ()
    assert projects.of_nodes() == {"st-marys": ("hearts", "lungs"), "mercy": ("lungs",)}
    assert projects.remove_members("hearts", ["bob", "st-marys"]).operators == ("alice",)
    assert projects.of("st-marys") == ("lungs",)


def test_adding_again_changes_nothing(projects: Projects) -> None:
    made = projects.add("hearts", NOW, ["alice"])
    assert projects.add("hearts", datetime.now(UTC), ["alice"]) == made
    assert projects.all() == (made,)


def test_project_that_has_ended_leaves_nobody_in_it(projects: Projects) -> None:
    projects.add("hearts", NOW, ["alice"], ["st-marys"])
    projects.remove("hearts")
    assert (projects.all(), projects.of("alice"), projects.of_nodes()) == ((), (), {})
    assert projects.add("hearts", NOW).operators == ()


def test_unknown_names_are_errors_that_name_the_nearest(projects: Projects) -> None:
    projects.add("heart-failure", NOW, ["alice"])
    for ask in (projects.check, projects.remove, lambda name: projects.remove_members(name, ["alice"])):
        with pytest.raises(UsageError, match=r"no project heart-failures; did you mean heart-failure\?"):
            ask("heart-failures")
    with pytest.raises(UsageError, match=r"alicia is not in project heart-failure; did you mean alice\?"):
        projects.remove_members("heart-failure", ["alice", "alicia"])
    assert projects.of("alice") == ("heart-failure",)


def test_database_that_is_away_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError):
        Projects(create_engine(f"sqlite:///{tmp_path / 'nowhere' / 'server.sqlite'}")).of("alice")


def test_database_from_before_there_were_projects_gets_their_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'server.sqlite'}"
    with open_database(url).begin() as connection:
        for table in ("project_members", "projects", "run_projects"):
            connection.execute(text(f"DROP TABLE {table}"))
        connection.execute(
            text(
                "INSERT INTO runs (run_id, name, kind, operator, state, submission, signature, certificates, created,"
                " round, standing, events) VALUES ('run-1', 'digits', 'training', 'alice', 'finished', '', '', '',"
                " '2026-01-01T00:00:00.000Z', 4, '{}', 1)"
            )
        )
    engine = open_database(url)
    assert [record.project for record in RunBook(engine).records()] == [None]
    assert Projects(engine).add("hearts", NOW, ["alice"]).operators == ("alice",)


# ---- on the command line ----


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's home with two operators and two nodes; one of these was only invited."""
    folder = tmp_path_factory.mktemp("example")
    federation = make_federation(folder / "home")
    for name, role in (("alice", Role.OPERATOR), ("bob", Role.OPERATOR), ("st-marys", Role.NODE)):
        federation.member(name, folder / name, role)
    federation.token("mercy")
    return folder / "home"


@pytest.fixture(name="home")
def _home(tmp_path: Path, example: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "home"))
    shutil.copytree(example, tmp_path / "home")
    return tmp_path / "home"


def typed(line: str) -> int:
    return run(["federation", "project", *line.split()])


def test_coordinator_groups_members(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("list") == 0
    assert "there is no project" in capsys.readouterr().out
    assert typed("add hearts --operator alice --node st-marys --node mercy") == 0
    assert capsys.readouterr().out == "project hearts: operators alice; nodes mercy, st-marys\n"
    assert typed("add hearts --operator bob") == 0
    assert typed("remove hearts --node mercy --operator alice") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "project hearts: operators bob; nodes st-marys"
    assert typed("list --json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["name"], told["operators"], told["nodes"]) == ("hearts", ["bob"], ["st-marys"])


def test_project_ends_only_where_that_is_meant(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed("add hearts --operator alice")
    assert typed("remove hearts") == 2
    assert "privet federation project remove hearts --yes" in capsys.readouterr().err
    assert typed("remove heart --yes") == 2
    assert "did you mean hearts?" in capsys.readouterr().err
    assert typed("remove hearts --yes") == 0
    typed("list")
    assert "there is no project" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("add hearts --operator alic", "there is no operator alic; did you mean alice?"),
        ("add hearts --node alice", "there is no node alice"),
        ("add hearts --node st-mary", "did you mean st-marys?"),
        ("add Hearts", "'Hearts' names no project"),
        ("add ../hearts", "names no project"),
    ],
)
def test_what_cannot_be_meant_changes_nothing(
    home: Path, line: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(line) == 2
    assert why in capsys.readouterr().err
    typed("list")
    assert "there is no project" in capsys.readouterr().out
