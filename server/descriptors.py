"""How many connections the server takes, so that strangers who connect and say nothing leave it files of its own.

Every connection is an open file, and a stranger's is one until its handshake has failed. A server whose files have run
out can open neither its database nor a checkpoint. So the limit is raised as far as the system lets it, a part is
kept back, and each port takes no more than its share: one above it is closed at once. Streams that are open stay.
"""

import resource

_KEPT_BACK = 256  # for the database, checkpoints, ledgers' heads and models; at most a quarter
_MOST = 2**20  # where the system sets no limit
# Whoever connects and says nothing is let go: gRPC's own 120 s let one stranger hold a thousand files with little.
_HANDSHAKE = ("grpc.server_handshake_timeout_ms", 20_000)


def raised_limit() -> int:
    """How many files this process may have open, from now on: as many as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):  # some systems allow less than they say
            return soft
    return min(wanted, _MOST)


def shares(limit: int) -> tuple[int, int]:
    """How many connections the main port and the enrolment port take, of so many open files.

    >>> shares(65536)
    (48960, 16320)
    """
    left = limit - min(_KEPT_BACK, limit // 4)
    return left - left // 4, left // 4


def connection_options(most: int) -> tuple[tuple[str, int], ...]:
    """A port's options for gRPC."""
    return (_HANDSHAKE, ("grpc.max_allowed_incoming_connections", most))
