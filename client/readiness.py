"""`privet node --check`: could this node run now? One line a check, and nothing is changed."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..privacy.channel.dial import bring_up_to_date
from ..privacy.channel.member import Member
from ..privacy.errors import PrivetError
from ..privacy.home import Home, closed_after
from .offers import Offers
from .preflight import Check, place
from .settings import NodeSettings


def readiness(home: Home, member: Member, passphrase: bytes | None) -> Iterator[Check]:
    """Look at settings, certificate, ledger, data sets, tasks, machine and server."""
    try:
        settings = NodeSettings.read(home.settings)
        yield Check("settings", True, f"{home.settings}: {_pinned(settings)}")
    except PrivetError as error:
        yield Check("settings", False, error.message)
    try:
        bring_up_to_date(member)
        yield Check("certificate", True, f"good until {member.certificate.not_after:%Y-%m-%d %H:%M} UTC, then renewed")
    except PrivetError as error:
        yield Check("certificate", False, error.message)
    yield from _data(home, passphrase)
    yield from place(member, home.root)


def _data(home: Home, passphrase: bytes | None) -> Iterator[Check]:
    if not home.has_ledger():
        yield Check("ledger", False, "nothing is declared; next: privet dataset add")
        return
    try:
        with closed_after(home.open_book(passphrase)) as accounts:
            datasets = list(accounts.book.datasets.values())
        yield Check("ledger", True, f"{home.ledger}: verified")
        versions = Offers().versions(sorted({dataset.task for dataset in datasets}))
    except PrivetError as error:
        yield Check("ledger", False, error.message)
        return
    for dataset in datasets:
        is_there = os.access(Path(dataset.path), os.R_OK)
        version = versions.get(dataset.task)
        told = f"{dataset.path}, task {dataset.task} {version or 'not installed'}"
        yield Check(f"data set {dataset.name}", is_there and version is not None, told if is_there else f"{told}: gone")


def _pinned(settings: NodeSettings) -> str:
    if settings.operators:
        return f"operators pinned: {', '.join(sorted(settings.operators))}"
    return "no operator is pinned: the coordinator is trusted to name them"
