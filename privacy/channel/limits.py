"""How large anything on the channel may be, and how gRPC is set up at both ends.

A limit is looked at before memory is given. What a peer announces above one is refused, never cut.
"""

from dataclasses import dataclass

from ..parameters import LONGEST_NAME, MOST_ARRAYS

KIB, MIB, GIB = 2**10, 2**20, 2**30

# Measured (benchmarks/channel.py): smaller pieces cost calls, larger ones cost caches.
CHUNK_BYTES = MIB
# A frame is a chunk with its tag and length, or a control message, none of which comes near.
FRAME_BYTES = CHUNK_BYTES + 16
# A body up to this size is sent at once: a Grant would cost it a round trip, and a thousand of them fit in memory.
INLINE_BYTES = 256 * KIB
MESSAGE_ID_BYTES = 16
DIGEST_BYTES = 32

# A silently cut network is noticed within 30 s. Also while data flows: gRPC's own ping, which measures the line and may
# wait 60 s by default, keeps those of keepalive back. The server takes pings as often as a node may send them (else it
# says `too_many_pings` and hangs up), and the windows of HTTP/2 are gRPC's own.
GRPC_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", FRAME_BYTES),
    ("grpc.max_receive_message_length", FRAME_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one message may hold. Bytes are counted as they travel, before and after unpacking."""

    records_bytes: int = 32 * MIB  # names, shapes, configs, metrics
    payload_bytes: int = 4 * GIB  # the arrays: the largest model that is asked for, four times over
    arrays: int = MOST_ARRAYS
    fields: int = 2**18  # of the records' protobuf: a tiny field costs its parser some hundred bytes
    list_values: int = 2**22  # in all lists together: each becomes a Python object
    dimensions: int = 64  # numpy's own
    length: int = 2**63 - 1  # of a dimension: numpy's own
    name_characters: int = LONGEST_NAME
    word_characters: int = 64  # a dtype, a kind of serialization
    reason_bytes: int = KIB  # why an app failed, in its own words


LIMITS = Limits()
