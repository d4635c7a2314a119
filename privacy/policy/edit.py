"""A policy's file as people change it: nothing that does not validate takes the place of what does."""

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ..channel.files import OWNER_ONLY, write_whole
from ..errors import PolicyError, UsageError
from .policy_file import read_rules
from .rules import Rules


def text_at(path: Path, default: str) -> str:
    """The policy's text as it is, valid or not; the one that ships where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return default
    except UnicodeDecodeError:
        raise PolicyError([f"{path}: it is not UTF-8 text"], "privet policy edit --file FILE, with another") from None


def replaced(path: Path, text: str) -> Rules:
    """Write a policy, whole; raise PolicyError, and write nothing, where it does not validate."""
    rules = Rules.of_bytes(text.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text.encode(), _mode_of(path))
    return rules


def replaced_by_file(path: Path, file: Path) -> Rules:
    """Write what another file has; raise PolicyError, and write nothing, where that does not validate."""
    return replaced(path, read_rules(file).text)


def draft_of(path: Path) -> Path:
    """Where an edit is kept until it is valid."""
    return path.with_name("policy-draft.cedar")


def edited(path: Path, default: str, environment: Mapping[str, str]) -> Rules | None:
    """Open the policy, or the draft that an earlier edit left, in an editor, and write it when it is valid.

    Gives None where nothing was changed. Raises PolicyError where it is not valid: the draft is kept.
    """
    editor = environment.get("VISUAL") or environment.get("EDITOR")
    if not editor:
        raise UsageError("no editor is named: $VISUAL and $EDITOR are empty", "EDITOR=nano, or --file FILE")
    before, draft = text_at(path, default), draft_of(path)
    if draft.exists():
        _check_newer(draft, path)
    else:
        draft.parent.mkdir(parents=True, exist_ok=True)
        write_whole(draft, before.encode(), OWNER_ONLY)
    _open(editor, draft)
    if draft.read_bytes() == before.encode() and path.exists():
        draft.unlink()
        return None
    if text_at(path, default) != before:
        raise UsageError(f"{path} was changed meanwhile; yours is in {draft}", "compare both, then: privet policy edit")
    try:
        rules = replaced_by_file(path, draft)
    except PolicyError as error:
        raise PolicyError(error.problems, f"privet policy edit goes on with {draft}; nothing was changed") from None
    draft.unlink()
    return rules


def _mode_of(path: Path) -> int:
    """Who may read it stays as it is."""
    return path.stat().st_mode & 0o777 if path.exists() else OWNER_ONLY


def _check_newer(draft: Path, path: Path) -> None:
    """A draft that is older than the policy would undo what was written since."""
    if path.exists() and path.stat().st_mtime_ns > draft.stat().st_mtime_ns:
        raise UsageError(
            f"{path} was changed since the draft {draft} was left",
            f"privet policy edit --file {draft} takes the draft; remove it to begin anew",
        )


def _open(editor: str, draft: Path) -> None:
    try:
        code = subprocess.run([*shlex.split(editor), os.fspath(draft)], check=False).returncode
    except (OSError, ValueError) as error:
        raise UsageError(f"the editor {editor!r} cannot be run: {error}", "EDITOR=nano, or --file FILE") from None
    if code:
        raise UsageError(f"the editor ended with {code}; nothing was changed, {draft} is kept", "privet policy edit")
