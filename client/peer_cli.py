"""`privet node trust-peer | distrust-peer`: which other institutions' nodes count towards a cohort here."""

import os
from typing import Annotated

import typer

from ..privacy.attendance import COUNTED_IN_WORDS
from ..privacy.home import Home
from .settings import NodeSettings, pin_peer, unpin_peer

PeerName = Annotated[str, typer.Argument(help="The other institution's name in the federation.", metavar="NAME")]


def trust_peer(
    name: PeerName,
    fingerprint: Annotated[
        str, typer.Argument(help="Its node's key fingerprint, 64 digits, heard from that institution.")
    ],
) -> None:
    """Pin another institution's key: from the first pin on, only pinned peers and this node count in a cohort."""
    path, fingerprint = Home.of(os.environ).settings, fingerprint.strip().lower()
    was = NodeSettings.read(path).peers.get(name)
    pin_peer(path, name, fingerprint)
    print(f"peer {name} pinned" + (f", in place of key {was}" if was not in (None, fingerprint) else ""))
    print(_counted(NodeSettings.read(path)))


def distrust_peer(name: PeerName) -> None:
    """Take a peer's pin away: it counts no longer, from the next round on."""
    path = Home.of(os.environ).settings
    unpin_peer(path, name)
    print(f"peer {name} is not pinned any more")
    print(_counted(NodeSettings.read(path)))


def _counted(settings: NodeSettings) -> str:
    pinned = ", ".join(sorted(settings.peers))
    return f"{COUNTED_IN_WORDS[True]}: {pinned}" if pinned else COUNTED_IN_WORDS[False]
