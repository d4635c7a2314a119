"""node.toml: what an institution wrote for its node: pinned keys, allowed Flower apps, what training may use.

The file is the institution's own: commands change single lines of it, keep its comments, and write it whole or not at
all. Unknown keys are errors: a misspelt pin must not be a pin that is missing.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
)

from ..privacy.channel.files import OWNER_ONLY, write_whole
from ..privacy.errors import UsageError
from ..privacy.plan import MOST_OPTIONS, NAME_PATTERN, Name, OptionName, OptionValue, Section
from ..privacy.plan_app import REFERENCE_PATTERN, Reference
from ..privacy.policy.moments import zone_of
from ..privacy.toml_file import key_text, problems_of, with_key

# A page of text; anything larger was not written by a person.
SETTINGS_BYTES = 64 * 1024
MOST_THREADS = 1024
_MEMORY = re.compile(r"([1-9]\d{0,6}) ?(MiB|GiB)", re.ASCII)
_UNITS = {"MiB": 2**20, "GiB": 2**30}


def _known_zone(name: str) -> str:
    try:
        zone_of(name)
    except UsageError as error:
        raise ValueError(error.message) from None
    return name


Pinned = Literal["operators", "peers"]
_ONE: Mapping[Pinned, str] = {"operators": "an operator", "peers": "a peer"}
Fingerprint = Annotated[StrictStr, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class AppSettings(Section):
    """A Flower app that may be run: where its ClientApp is installed, and the node's own config for it."""

    client_app: Reference
    config: Annotated[dict[OptionName, OptionValue], Field(max_length=MOST_OPTIONS, default_factory=dict)]


class NodeSection(Section):
    """What a process that trains may use. `memory-limit`: such as "8 GiB"; none where it is not given."""

    threads: Annotated[StrictInt, Field(ge=1, le=MOST_THREADS)] = 1
    device: Annotated[StrictStr, StringConstraints(pattern=r"^[a-z]{1,16}(:[0-9]{1,3})?$")] = "auto"
    memory_limit: Annotated[StrictStr, StringConstraints(pattern=rf"^{_MEMORY.pattern}$")] | None = None

    @property
    def memory_bytes(self) -> int | None:
        """The limit in bytes."""
        found = _MEMORY.fullmatch(self.memory_limit or "")
        return int(found[1]) * _UNITS[found[2]] if found else None


class PolicySection(Section):
    """How the policy is asked (policy.cedar). `disclose`: what an operator is told of a denial beside its code.

    `time-zone`: of the weekday and the hour that a rule may speak of; the machine's own where it is not given.
    """

    disclose: Literal["full", "rule", "none"] = "rule"
    time_zone: Annotated[StrictStr, Field(max_length=64), AfterValidator(_known_zone)] | None = None


class NodeSettings(BaseModel):
    """What node.toml says. `operators`, `peers`: the fingerprint of each pinned key, by name.

    `peers`: the other institutions whose nodes count towards a cohort.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    operators: dict[Name, Fingerprint] = Field(default_factory=dict)
    peers: dict[Name, Fingerprint] = Field(default_factory=dict)
    apps: dict[Name, AppSettings] = Field(default_factory=dict)
    node: NodeSection = NodeSection()
    policy: PolicySection = PolicySection()

    @classmethod
    def read(cls, path: Path) -> Self:
        """The settings in a file, the defaults where there is none; raise UsageError with what is wrong, and where."""
        return cls._parsed(_text_of(path), path)

    @classmethod
    def _parsed(cls, text: str, path: Path) -> Self:
        try:
            return cls.model_validate(tomllib.loads(text))
        except ValidationError as error:
            raise UsageError("; ".join(problems_of(error, cls, text, str(path))), f"mend {path}") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path}: not TOML: {error}", f"mend {path}") from None


class HeldSettings:
    """The settings as they hold for a node that runs. What they bound is not let go of by an accident.

    A file in TOML that is missing or cut short is a file without pins. So one that is gone changes nothing, and pins
    that are all gone are gone when the file says so twice: an editor may be writing it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: NodeSettings | None = None
        self._doubted: NodeSettings | None = None

    def look(self) -> NodeSettings:
        """The settings now; raise UsageError with what is wrong. Call it now and then."""
        if self._held is not None and not self._path.exists():
            return self._held
        read, held = NodeSettings.read(self._path), self._held
        has_lost = held is not None and any(
            before and not after for before, after in ((held.operators, read.operators), (held.peers, read.peers))
        )
        if has_lost and read != self._doubted:
            self._doubted = read
        else:
            self._held, self._doubted = read, None
        assert self._held is not None, "the first look holds what it reads"
        return self._held


def pin(path: Path, name: str, fingerprint: str) -> None:
    """Listen to this operator, with this key and no other; where it was pinned with another, that is replaced."""
    _pin(path, "operators", name, fingerprint)


def unpin(path: Path, name: str) -> None:
    """Take an operator's pin away; raise UsageError where it has none."""
    _unpin(path, "operators", name)


def pin_peer(path: Path, name: str, fingerprint: str) -> None:
    """Let this institution's node count towards a cohort, with this key and no other, in place of what was pinned."""
    _pin(path, "peers", name, fingerprint)


def unpin_peer(path: Path, name: str) -> None:
    """Take a peer's pin away; raise UsageError where it has none."""
    _unpin(path, "peers", name)


def allow_app(path: Path, name: str, client_app: str, config: Mapping[str, object] | None = None) -> None:
    """Let a Flower app be run for the federation, under this name. `config`: the node's own for it; None keeps it."""
    _check(name, NAME_PATTERN, "an app's name has lower-case letters, digits, dots and dashes")
    _check(client_app, REFERENCE_PATTERN, "give the app's ClientApp as MODULE:OBJECT")
    before = NodeSettings.read(path)
    kept: Mapping[str, object] = before.apps[name].config if name in before.apps else {}
    app = _app_of(client_app, kept if config is None else config)
    text = with_key(_text_of(path), ("apps", name), "client-app", f'"{client_app}"')
    if config is not None:
        spelled = ", ".join(f"{key_text(key)} = {_value_text(value)}" for key, value in app.config.items())
        text = with_key(text, ("apps", name), "config", f"{{ {spelled} }}" if spelled else None)
    _write(path, text, before.model_copy(update={"apps": {**before.apps, name: app}}))


def _pin(path: Path, section: Pinned, name: str, fingerprint: str) -> None:
    _check(name, NAME_PATTERN, f"{_ONE[section]}'s name has lower-case letters, digits, dots and dashes")
    _check(fingerprint, r"[0-9a-f]{64}", "a fingerprint has 64 hexadecimal digits, in lower case")
    before = NodeSettings.read(path)
    text = with_key(_text_of(path), (section,), name, f'"{fingerprint}"')
    _write(path, text, before.model_copy(update={section: {**getattr(before, section), name: fingerprint}}))


def _unpin(path: Path, section: Pinned, name: str) -> None:
    before = NodeSettings.read(path)
    pinned: Mapping[str, str] = getattr(before, section)
    if name not in pinned:
        told = ", ".join(pinned) or "nobody"
        raise UsageError(f"{_ONE[section].split()[1]} {name!r} is not pinned; pinned: {told}", "privet node status")
    text = with_key(_text_of(path), (section,), name, None)
    left = {known: key for known, key in pinned.items() if known != name}
    _write(path, text, before.model_copy(update={section: left}))


def _app_of(client_app: str, config: Mapping[str, object]) -> AppSettings:
    try:
        return AppSettings.model_validate({"client-app": client_app, "config": config})
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UsageError(f"an app's config that cannot be kept: {told}", "--set KEY=VALUE") from None


def _value_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # of flags, numbers and printable text the same as TOML's


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(SETTINGS_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "make it a file that can be read") from None
    if len(content) > SETTINGS_BYTES:
        raise UsageError(f"{path}: larger than {SETTINGS_BYTES} bytes", f"mend {path}")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not TOML: it is not UTF-8 text", f"mend {path}") from None


def _write(path: Path, text: str, meant: NodeSettings) -> None:
    """Write the text, if it says what was meant: a file can be spelled in ways that an edit by lines does not see."""
    try:
        is_meant = NodeSettings.model_validate(tomllib.loads(text)) == meant
    except ValueError:
        is_meant = False
    if not is_meant:
        raise UsageError(f"{path}: spelled in a way that this command cannot change", f"change {path} by hand")
    write_whole(path, text.encode(), OWNER_ONLY)


def _check(given: str, pattern: str, rule: str) -> None:
    if not re.fullmatch(pattern, given, re.ASCII):
        raise UsageError(f"{given[:200]!r}: {rule}", "privet node --help")
