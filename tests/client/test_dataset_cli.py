"""`privet dataset` as an institution, and as a hostile one, uses it: in this process, through the one door."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from institution import TERMS, rows, write_digits
from privet.__main__ import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "node"))
    monkeypatch.delenv("PRIVET_PASSPHRASE", raising=False)
    write_digits(tmp_path / "ward7.csv")
    return tmp_path / "node"


def add(name: str = "ward7", path: str = "ward7.csv", size: int | str = 120, task: str = "digits") -> list[str]:
    return ["dataset", "add", name, "--path", path, "--task", task, "--declared-size", str(size)]


def told(capsys: Capture, *arguments: str) -> str:
    assert run(list(arguments)) == 0
    captured = capsys.readouterr()
    assert not captured.err, captured.err
    return captured.out


def refused(capsys: Capture, *arguments: str, code: int = 2) -> str:
    """What stands behind `error:`; there is exactly one such line, and one `try:`."""
    assert run(list(arguments)) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "try"], lines
    return lines[0].removeprefix("error: ")


def checked(capsys: Capture, name: str = "ward7") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(capsys, "dataset", "check", name, "--json"))
    return found


def test_data_set_opens_its_account(home: Path, capsys: Capture, tmp_path: Path) -> None:
    lines = told(capsys, *add(), *TERMS).splitlines()
    assert lines[0] == (
        "opened account ward7: epsilon 10 at delta 1e-4 (unit: record, add-or-remove-one), additive filter"
    )
    assert lines[1] == f"declared data set ward7: 120 records of task digits, {tmp_path / 'ward7.csv'}"
    assert [row[2] for row in rows(home)] == ["opened", "account", "dataset"]


def test_data_sets_join_an_account(capsys: Capture, tmp_path: Path) -> None:
    write_digits(tmp_path / "ward8.csv", 50)
    told(capsys, "budget", "open", "clinic", *TERMS)
    told(capsys, *add(), "--account", "clinic")
    added = json.loads(told(capsys, *add("ward8", "ward8.csv", 50), "--account", "clinic", "--json"))
    assert added["account_opened"] is False
    listed = json.loads(told(capsys, "dataset", "list", "--json"))
    assert [(found["name"], found["account"], found["declared_size"]) for found in listed] == [
        ("ward7", "clinic", 120),
        ("ward8", "clinic", 50),
    ]


def test_new_account_may_have_another_name(capsys: Capture) -> None:
    assert "opened account clinic" in told(capsys, *add(), *TERMS, "--account", "clinic", "--unit", "record")


@pytest.mark.parametrize("through", ["symlink", "folder", "dots", "second-name"])
def test_one_file_has_one_account_whatever_it_is_called(
    home: Path, capsys: Capture, tmp_path: Path, through: str
) -> None:
    told(capsys, *add(), *TERMS)
    (tmp_path / "link.csv").symlink_to(tmp_path / "ward7.csv")
    (tmp_path / "folder").symlink_to(tmp_path)
    paths = {
        "symlink": "link.csv",
        "folder": "folder/ward7.csv",
        "dots": "node/../ward7.csv",
        "second-name": "ward7.csv",
    }
    before = rows(home)
    assert "belongs to account ward7 at unit record, for good" in refused(capsys, *add("fresh", paths[through]), *TERMS)
    assert rows(home) == before, "the account of the refused data set must not stay behind"


def test_removed_data_set_keeps_its_account(home: Path, capsys: Capture) -> None:
    told(capsys, *add(), *TERMS)
    assert "account ward7 keeps what was spent" in told(capsys, "dataset", "remove", "ward7")
    assert json.loads(told(capsys, "dataset", "list", "--json")) == []
    assert "belongs to account ward7" in refused(capsys, *add("fresh"), *TERMS)
    told(capsys, *add("fresh"), "--account", "ward7")


def test_check_finds_a_clean_file_clean_and_says_not_to_send_it(capsys: Capture) -> None:
    told(capsys, *add(), *TERMS)
    found = checked(capsys)
    assert (found["records"], found["declared_size"], found["cells_empty"]) == (120, 120, 0)
    assert (found["cells_outside"], found["labels"], found["problems"]) == ({}, [0, 9], [])
    assert "not to be sent" in found["note"]
    assert told(capsys, "dataset", "check", "ward7").splitlines()[0] == found["note"]


def test_check_counts_what_deviates(capsys: Capture, tmp_path: Path) -> None:
    lines = (tmp_path / "ward7.csv").read_text().splitlines()
    cells = [line.split(",") for line in lines]
    cells[1][0], cells[2][0], cells[2][5] = "", "99", "-1"
    cells[3][0] = "16.5"
    (tmp_path / "ward7.csv").write_text("\n".join(",".join(row) for row in cells) + "\n")
    told(capsys, *add(size=100), *TERMS)
    found = checked(capsys)
    assert (found["records"], found["declared_size"]) == (120, 100)
    assert (found["cells_empty"], found["records_with_empty_cells"]) == (1, 1)
    assert found["cells_outside"] == {"pixel_0": 2, "pixel_5": 1}
    assert len(found["problems"]) == 3
    out = told(capsys, "dataset", "check", "ward7")
    assert "records: 120, declared 100" in out
    assert "column pixel_0: 2 cells outside its range" in out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no column 'pixel_0'"),
        ("a,b\n1,2\n", "no column 'pixel_0'"),
        (",".join([*(f"pixel_{i}" for i in range(64)), "label"]) + "\n" + "1," * 64 + "12\n", "label outside 0 to 9"),
        (",".join([*(f"pixel_{i}" for i in range(64)), "label"]) + "\n" + "x," * 64 + "1\n", "line 2 has a cell"),
        ("\x00\x00", "no column"),
    ],
)
def test_check_says_why_a_file_cannot_be_loaded(capsys: Capture, tmp_path: Path, content: str, reason: str) -> None:
    told(capsys, *add(), *TERMS)
    (tmp_path / "ward7.csv").write_text(content)
    assert reason in refused(capsys, "dataset", "check", "ward7")


def test_check_of_a_table_without_records_counts_none(capsys: Capture, tmp_path: Path) -> None:
    told(capsys, *add(), *TERMS)
    (tmp_path / "ward7.csv").write_text(",".join([*(f"pixel_{i}" for i in range(64)), "label"]) + "\n")
    assert (checked(capsys)["records"], checked(capsys)["labels"]) == (0, None)


def test_check_of_a_file_that_is_gone_says_so(capsys: Capture, tmp_path: Path) -> None:
    told(capsys, *add(), *TERMS)
    (tmp_path / "ward7.csv").unlink()
    assert "no such file any more" in refused(capsys, "dataset", "check", "ward7")


@pytest.mark.parametrize(("task", "columns"), [("breast-cancer", 30), ("synthetic", 3)])
def test_every_shipped_task_can_be_checked(capsys: Capture, tmp_path: Path, task: str, columns: int) -> None:
    from privet.client.tasks.registry import load_task
    from privet.client.tasks.table import Tabular

    loaded = load_task(task)
    assert isinstance(loaded, Tabular)
    names = list(loaded.columns([f"x_{i}" for i in range(columns)]))
    assert len(names) == columns
    rows_ = [",".join([*names, "label"]), ",".join(["1e9"] * columns + ["1"]), ",".join(["0"] * columns + ["0"])]
    (tmp_path / "table.csv").write_text("\n".join(rows_) + "\n")
    told(capsys, *add("table", "table.csv", 2, task), *TERMS)
    found = checked(capsys, "table")
    assert found["records"] == 2
    assert set(found["cells_outside"]) == set(names)


BAD = [
    ([*add(path="no-such.csv"), *TERMS], "--path no-such.csv: cannot be found"),
    ([*add(path="."), *TERMS], "--path .: not a file"),
    ([*add(path=""), *TERMS], "not a file"),
    ([*add(path="/dev/null"), *TERMS], "--path /dev/null: not a file"),
    ([*add(path="ward7.csv/below"), *TERMS], "cannot be found"),
    ([*add(path="loop"), *TERMS], "cannot be found"),
    ([*add(size=0), *TERMS], "declared size 0, allowed are 1 to 2^40"),
    ([*add(size=-120), *TERMS], "declared size -120, allowed"),
    ([*add(size=2**41), *TERMS], "declared size"),
    ([*add(size="many"), *TERMS], "--declared-size"),
    ([*add("a/b"), *TERMS], "data set 'a/b': a name has"),
    ([*add("../a"), *TERMS], "a name has"),
    ([*add(), *TERMS, "--account", "A/B"], "account 'A/B': a name has"),
    ([*add(task="digitz"), *TERMS], "unknown task 'digitz'; did you mean digits?"),
    ([*add()], "--epsilon is missing"),
    ([*add(), "--epsilon", "10"], "--delta is missing"),
    ([*add(), "--epsilon", "0", "--delta", "1e-4"], "epsilon 0, allowed"),
    ([*add(), "--epsilon", "10", "--delta", "2"], "delta 2, allowed"),
    ([*add(), "--epsilon", "nan", "--delta", "1e-4"], "'nan' is not a number"),
    ([*add(), *TERMS, "--unit", "none"], "unit 'none' is not one of"),
    ([*add(), *TERMS, "--filter", "renyi"], "needs a typical plan"),
    ([*add(), "--account", "clinic", "--epsilon", "10"], "--epsilon opens an account, together with"),
    ([*add(), "--account", "clinic", "--allow-none"], "--allow-none opens an account"),
    ([*add(), "--account", "clinic", "--unit", "node"], "--unit opens an account"),
    ([*add(), "--account", "clinic"], "no account was opened here"),
]


@pytest.mark.parametrize(("arguments", "reason"), BAD)
def test_bad_declaration_makes_nothing(
    home: Path, capsys: Capture, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert reason in refused(capsys, *arguments)
    assert not home.exists()


def test_bad_change_leaves_the_ledger_alone(home: Path, capsys: Capture, tmp_path: Path) -> None:
    write_digits(tmp_path / "ward8.csv", 10)
    told(capsys, *add(), *TERMS)
    before = rows(home)
    assert "declared already" in refused(capsys, *add(), "--account", "ward7")
    assert "open already" in refused(capsys, *add("ward8", "ward8.csv"), "--account", "ward7", *TERMS)
    assert "no account nobody; open: ward7" in refused(capsys, *add("ward8", "ward8.csv"), "--account", "nobody")
    assert "no data set ward9" in refused(capsys, "dataset", "remove", "ward9")
    assert "no data set ward9; declared: ward7" in refused(capsys, "dataset", "check", "ward9")
    assert rows(home) == before


def test_path_that_is_no_text_is_refused(home: Path, capsys: Capture, tmp_path: Path) -> None:
    name = os.fsdecode(b"ward-\xff.csv")
    (tmp_path / name).write_text("x")
    assert "printable" in refused(capsys, *add(path=name), *TERMS)
    assert not home.exists()
