"""What a node says of itself, checked: protocol, clock, versions, offers. Who it is stands in its certificate alone."""

from .. import __version__
from ..privacy.channel import privet_pb2 as pb
from ..privacy.errors import ChannelError

PROTOCOL = 1
INSTANCE_BYTES = 16
LARGEST_CLOCK_DIFFERENCE = 300.0  # seconds; certificates and submissions are judged by the clock
_MOST_OFFERS = 1000  # tasks, apps
_LONGEST_NAME = 200  # characters of anything that a node says of itself


def check_hello(hello: pb.Hello, name: str, now: float) -> None:
    """Raise ChannelError for a hello that the server `now` (Unix seconds) cannot take from the node `name`."""
    if hello.protocol != PROTOCOL:
        raise ChannelError(
            f"{name} speaks protocol {hello.protocol} (privet {hello.version!r:.40}), this server {PROTOCOL}",
            f"install privet {__version__} at the node",
        )
    if len(hello.instance) != INSTANCE_BYTES:
        raise ChannelError(f"{name} does not say which process it is", "update the node")
    difference = hello.clock - now
    if not abs(difference) <= LARGEST_CLOCK_DIFFERENCE:
        raise ChannelError(
            f"the clock of {name} differs from the server's by {difference:.0f} s; "
            f"allowed are {LARGEST_CLOCK_DIFFERENCE:.0f} s",
            "set both clocks by NTP",
        )
    longest = max(len(hello.version), len(hello.python))
    if longest > _LONGEST_NAME:
        raise ChannelError(f"{name} says a version of {longest} characters", "update the node")
    check_presence(hello.presence, name)


def check_presence(presence: pb.Presence, name: str) -> None:
    """Raise ChannelError for offers that are too many, or that nobody could print."""
    texts = [*presence.apps, *(part for task in presence.tasks for part in (task.name, task.version))]
    if len(texts) > 2 * _MOST_OFFERS or not all(_is_fit(text) for text in (*texts, presence.revision)):
        raise ChannelError(f"{name} offers what cannot be read", "update the node")


def _is_fit(text: str) -> bool:
    return len(text) <= _LONGEST_NAME and text.isprintable()
