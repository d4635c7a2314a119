"""Home: where an institution's state lives, `$PRIVET_HOME` or ~/.privet: its ledger, its key, its kept answers.

The rules:
1. Key and ledger are made together, on the first change, never by looking. A ledger without its key is an error: a new
   key would sign a history that is not its own.
2. The passphrase comes from a file or from `$PRIVET_PASSPHRASE`; it is never asked for, printed or logged.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .budget.accounts import AccountBook
from .budget.keys import SigningKey
from .budget.ledger import Clock, Ledger, system_clock
from .errors import BudgetError, LedgerError, UsageError

HOME, PASSPHRASE = "PRIVET_HOME", "PRIVET_PASSPHRASE"  # variables of the environment
OWNER = "institution"  # whose ledger it is, until the institution joins a federation
_OWNER_ONLY = 0o700
_PASSPHRASE_BYTES = 1024  # a longer file is not a passphrase


@dataclass(frozen=True, slots=True)
class Home:
    """An institution's folder. Nothing is made before `create_book`."""

    root: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """The home that the environment names."""
        return cls(Path(environment.get(HOME) or "~/.privet").expanduser())

    @property
    def ledger(self) -> Path:
        """The institution's ledger."""
        return self.root / "ledger.sqlite"

    @property
    def key(self) -> Path:
        """The key that signs it."""
        return self.root / "key.pem"

    @property
    def answers(self) -> Path:
        """Answers that are kept until a server has acknowledged them."""
        return self.root / "answers"

    @property
    def settings(self) -> Path:
        """What the institution wrote for its node: pinned operators, allowed apps."""
        return self.root / "node.toml"

    @property
    def policy(self) -> Path:
        """What it lets be done with its data."""
        return self.root / "policy.cedar"

    @property
    def orders(self) -> Path:
        """What it told the node by commands: paused, withdrawn runs."""
        return self.root / "node-orders.json"

    @property
    def status(self) -> Path:
        """What the node says of itself, while it runs."""
        return self.root / "node-status.json"

    @property
    def logs(self) -> Path:
        """Local logs of what runs in processes of their own."""
        return self.root / "logs"

    def has_ledger(self) -> bool:
        """Whether anything was declared here."""
        return self.ledger.exists()

    def signing_key(self, passphrase: bytes | None) -> SigningKey:
        """The institution's key, which must be there."""
        return SigningKey.load(self.key, passphrase)

    def open_book(self, passphrase: bytes | None, clock: Clock = system_clock) -> AccountBook:
        """The institution's accounts, which must be there; raise BudgetError where nothing was declared."""
        if not self.has_ledger():
            raise BudgetError(
                f"{self.root}: no account was opened here", f"privet dataset add, or ${HOME} with another folder"
            )
        key = self.signing_key(passphrase)
        with self._alone():
            return self._book(key, clock)

    def create_book(self, passphrase: bytes | None, clock: Clock = system_clock) -> AccountBook:
        """The institution's accounts; folder (mode 0700), key (0600) and ledger are made if there are none."""
        if not self.has_ledger():
            try:
                self.root.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
            except OSError as error:
                raise LedgerError(
                    f"{self.root}: cannot be made: {error.strerror}", f"${HOME} with a folder that can be written"
                ) from None
            with self._alone():
                if not self.has_ledger():
                    return self._book(self._made_key(passphrase), clock)
        return self.open_book(passphrase, clock)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process opens this home meanwhile: SQLite cannot begin one file from two sides."""
        try:
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise LedgerError(
                f"{self.root}: cannot be written: {error.strerror}", f"${HOME} with a folder that can be written"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _made_key(self, passphrase: bytes | None) -> SigningKey:
        """The key, made if there is none. It appears whole or not at all, whoever makes it at the same moment."""
        if not self.key.exists():
            fresh = self.root / f".key-{secrets.token_hex(8)}.pem"
            try:
                SigningKey.load_or_create(fresh, passphrase)
                with contextlib.suppress(FileExistsError):
                    self.key.hardlink_to(fresh)
            finally:
                fresh.unlink(missing_ok=True)
        return self.signing_key(passphrase)

    def _book(self, key: SigningKey, clock: Clock) -> AccountBook:
        ledger = Ledger.open(self.ledger, purpose="deployment", owner=OWNER, key=key, clock=clock)
        try:
            return AccountBook(ledger)
        except BaseException:
            ledger.close()
            raise


@contextlib.contextmanager
def closed_after(accounts: AccountBook) -> Iterator[AccountBook]:
    """The accounts, whose ledger is closed in the end."""
    try:
        yield accounts
    finally:
        accounts.ledger.close()


def passphrase_from(file: Path | None, environment: Mapping[str, str]) -> bytes | None:
    """The passphrase in a file (without the newline at its end), else in the environment, else none."""
    if file is None:
        return environment.get(PASSPHRASE, "").encode(errors="surrogateescape") or None
    try:
        with file.open("rb") as opened:
            content = opened.read(_PASSPHRASE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}", "--passphrase-file FILE") from None
    passphrase = content.removesuffix(b"\n").removesuffix(b"\r")
    if not passphrase or len(content) > _PASSPHRASE_BYTES:
        raise UsageError(
            f"{file}: not a passphrase of 1 to {_PASSPHRASE_BYTES} bytes", "a file that holds the passphrase alone"
        )
    return passphrase
