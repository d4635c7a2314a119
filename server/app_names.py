"""federation/apps.toml: the Flower apps that the coordinator lets run in the server, by name.

The file is the coordinator's own: the command changes single lines of it, and writes it whole or not at all.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..privacy.channel.files import OWNER_ONLY, write_whole
from ..privacy.errors import UsageError
from ..privacy.plan import NAME_PATTERN, Name
from ..privacy.plan_app import REFERENCE_PATTERN, Reference
from ..privacy.toml_file import problems_of, with_key

APPS = "apps.toml"  # in the federation's folder
_APPS_BYTES = 64 * 1024  # a page of text; anything larger was not written by a person


class _Apps(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    apps: dict[Name, Reference] = Field(default_factory=dict)


def read_apps(path: Path) -> Mapping[str, str]:
    """The app's module and object by name; nothing where there is no file. Raises UsageError with what is wrong."""
    return _parsed(_text_of(path), path)


def allow_server_app(path: Path, name: str, server_app: str) -> None:
    """Let this ServerApp be run in the server, under this name; where the name meant another, that is replaced."""
    if not re.fullmatch(NAME_PATTERN, name, re.ASCII):
        raise UsageError(f"{name[:200]!r}: an app's name has lower-case letters, digits, dots and dashes", _HELP)
    if not re.fullmatch(REFERENCE_PATTERN, server_app, re.ASCII):
        raise UsageError(f"{server_app[:200]!r}: give the app's ServerApp as MODULE:OBJECT", _HELP)
    meant = {**read_apps(path), name: server_app}
    text = with_key(_text_of(path), ("apps",), name, f'"{server_app}"')
    try:
        is_meant = _parsed(text, path) == meant
    except UsageError:
        is_meant = False
    if not is_meant:  # a file can be spelled in ways that an edit by lines does not see
        raise UsageError(f"{path}: spelled in a way that this command cannot change", f"change {path} by hand")
    write_whole(path, text.encode(), OWNER_ONLY)


_HELP = "privet federation allow-app --help"


def _parsed(text: str, path: Path) -> Mapping[str, str]:
    try:
        return _Apps.model_validate(tomllib.loads(text)).apps
    except ValidationError as error:
        raise UsageError("; ".join(problems_of(error, _Apps, text, str(path))), f"mend {path}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}", f"mend {path}") from None


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_APPS_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "make it a file that can be read") from None
    if len(content) > _APPS_BYTES:
        raise UsageError(f"{path}: larger than {_APPS_BYTES} bytes", f"mend {path}")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not TOML: it is not UTF-8 text", f"mend {path}") from None
