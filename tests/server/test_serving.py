"""What the server keeps of a run beside its book."""

from pathlib import Path

from privet.server.serving import _keep, _kept


def test_task_version_is_kept_whole_and_an_empty_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "run-1" / "task-version"
    assert _kept(path) is None
    _keep(path, "digits-2")
    assert _kept(path) == "digits-2"
    assert [found.name for found in path.parent.iterdir()] == ["task-version"]
    path.write_bytes(b"")  # as a power cut may leave what was not written whole
    assert _kept(path) is None
