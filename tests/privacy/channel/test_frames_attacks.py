"""Whatever comes, the only answer is ChannelError, and no more memory than what was announced and allowed."""

import hashlib
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from framing import MESSAGE_ID, frames_of, header_of, message_of, received
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.frames import CHUNK_BYTES, FRAME_BYTES, LIMITS, Incoming, Limits, encode, read_frame
from privet.privacy.channel.incoming import total_digest
from privet.privacy.channel.packing import packed, unpacked
from privet.privacy.channel.payload import chunk_frame
from privet.privacy.errors import ChannelError

SENT = frames_of(
    message_of(
        RecordDict(
            {
                "config": ConfigRecord({"n": 1, "text": "t", "list": [1.5, 2.5]}),
                "metrics": MetricRecord({"loss": 0.5}),
                "arrays": ArrayRecord({"w": Array(np.arange(CHUNK_BYTES // 2, dtype="f4")), "b": Array(np.ones(3))}),
            }
        )
    )
)
HEAD = pb.ArrayHead(name="w", dtype="float32", shape=[1], stype="numpy.ndarray", bytes=4)


def arrays(*heads: pb.ArrayHead, name: str = "a") -> pb.Record:
    return pb.Record(name=name, arrays=pb.Arrays(arrays=heads))


def offered(records: pb.Records | bytes, payload: bytes = b"", limits: Limits = LIMITS) -> None:
    """Send these records and this payload as an honest sender would frame them, digest and all."""
    body = records if isinstance(records, bytes) else records.SerializeToString()
    header = header_of(body, len(payload))
    incoming = Incoming(header, limits)
    for part in (body, payload):
        for start in range(0, len(part), CHUNK_BYTES):
            incoming.add(part[start : start + CHUNK_BYTES])
    digest = total_digest(header, hashlib.sha256(body).digest(), hashlib.sha256(payload).digest())
    incoming.finish(pb.End(sha256=digest))


def test_what_is_sent_whole_arrives() -> None:
    """The control of all that follows."""
    assert len(SENT) == 6
    assert received(SENT).content is not None
    offered(pb.Records(records=[arrays(HEAD)]), b"1234")


@pytest.mark.parametrize("missing", range(len(SENT)))
def test_a_missing_frame(missing: int) -> None:
    with pytest.raises(ChannelError):
        received(SENT[:missing] + SENT[missing + 1 :])


@pytest.mark.parametrize("twice", range(len(SENT) - 1))
def test_a_replayed_frame(twice: int) -> None:
    with pytest.raises(ChannelError):
        received([*SENT[: twice + 1], *SENT[twice:]])


@given(st.permutations(range(len(SENT))).filter(lambda order: order != sorted(order)))
@settings(max_examples=50, deadline=None)
def test_frames_in_another_order(order: list[int]) -> None:
    with pytest.raises(ChannelError):
        received([SENT[index] for index in order])


@given(st.integers(0, len(SENT) - 1), st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=300, deadline=None)
def test_a_corrupted_byte(index: int, where: float, change: int) -> None:
    damaged = bytearray(SENT[index])
    damaged[int(where * len(damaged))] ^= change
    with pytest.raises(ChannelError):
        received([*SENT[:index], bytes(damaged), *SENT[index + 1 :]])


@given(st.integers(0, len(SENT) - 1), st.floats(0, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_a_truncated_frame(index: int, where: float) -> None:
    with pytest.raises(ChannelError):
        received([*SENT[:index], SENT[index][: int(where * len(SENT[index]))], *SENT[index + 1 :]])


@given(st.lists(st.binary(max_size=200), max_size=6), st.integers(0, len(SENT) - 1))
@settings(max_examples=300, deadline=None)
def test_random_frames_after_an_honest_beginning(frames: list[bytes], honest: int) -> None:
    with pytest.raises(ChannelError):
        received([*SENT[:honest], *frames])


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_random_bytes_as_a_frame(data: bytes) -> None:
    try:
        frame = read_frame(data)
    except ChannelError:
        return
    assert isinstance(frame, memoryview) or frame.WhichOneof("kind") not in (None, "chunk")


@given(st.binary(min_size=1, max_size=300), st.binary(max_size=20))
@settings(max_examples=500, deadline=None)
def test_random_bytes_as_records(records: bytes, payload: bytes) -> None:
    try:
        offered(records, payload)
    except ChannelError as error:
        assert error.remedy  # noqa: PT017  (most are refused, and nothing else may be raised)


FIELDS = st.recursive(
    st.binary(max_size=6),
    lambda inner: st.lists(
        st.tuples(st.sampled_from(b"\x0a\x12\x1a\x22\x2a\x10\x11\x28\x30\x32\x52\x5a"), inner), max_size=4
    ).map(lambda fields: b"".join(bytes([tag, len(content) & 0x7F]) + content for tag, content in fields)),
    max_leaves=8,
)


@given(FIELDS, st.binary(max_size=8))
@settings(max_examples=500, deadline=None)
def test_bytes_that_look_like_records(records: bytes, payload: bytes) -> None:
    try:
        offered(records, payload)
    except ChannelError as error:
        assert error.message  # noqa: PT017  (as above)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x2a",
        b"\x2a\x80",
        b"\x2a" + b"\x80" * 20 + b"\x01",
        b"\x2a\x05abcd",
        b"\x2a\x03abcd",
        b"\x2a" + b"\xff" * 9 + b"\x01",
        chunk_frame([b"abc"]) + pb.Frame(end=pb.End()).SerializeToString(),
        pb.Frame(end=pb.End()).SerializeToString() + chunk_frame([b"abc"]),
        b"\xfa\x01\x00",
        b"\x32\x02\x0a",
        pb.Frame(end=pb.End()).SerializeToString() + b"\x0a\x04\x12\x02\xff\xfe",
    ],
)
def test_a_frame_that_is_none(data: bytes) -> None:
    with pytest.raises(ChannelError):
        read_frame(data)


def test_a_frame_above_the_limit_is_not_parsed() -> None:
    most = pb.Frame(end=pb.End(sha256=bytes(FRAME_BYTES - 8))).SerializeToString()
    assert len(most) == FRAME_BYTES
    assert isinstance(read_frame(most), pb.Frame)
    with pytest.raises(ChannelError, match=str(FRAME_BYTES)):
        read_frame(most + b"\x00")


@pytest.mark.parametrize(
    "fields",
    [
        {"message_id": b""},
        {"message_id": bytes(15)},
        {"message_id": bytes(17)},
        {"reply_to": bytes(15)},
        {"reply_to": bytes(17)},
        {"type": "exec"},
        {"type": ""},
        {"type": "query.a b"},
        {"type": "query." + "a" * 251},
        {"run_id": "r" * 257},
        {"run_id": "run\n1"},
        {"group_id": "g" * 257},
        {"group_id": "\x1b[2J"},
        {"created_at": math.nan},
        {"created_at": math.inf},
        {"ttl": math.nan},
        {"ttl": -math.inf},
        {"records_bytes": LIMITS.records_bytes + 1},
        {"records_bytes": 1, "payload_bytes": LIMITS.payload_bytes + 1},
        {"records_bytes": 1, "payload_bytes": 2**64 - 1},
        {"payload_bytes": 1},
        {"failure": pb.Failure(code=1), "records_bytes": 1},
        {"failure": pb.Failure(code=1), "records_bytes": 1, "payload_bytes": 1},
        {"failure": pb.Failure(code=1, reason="r" * 1025)},
        {"failure": pb.Failure(code=1, reason="é" * 513)},
    ],
)
def test_a_header_that_no_sender_writes(fields: dict[str, object]) -> None:
    with pytest.raises(ChannelError):
        Incoming(header_of(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "query." + "a" * 250},
        {"reply_to": MESSAGE_ID, "ttl": -5.0},
        {"records_bytes": LIMITS.records_bytes, "payload_bytes": LIMITS.payload_bytes},
        {"failure": pb.Failure(code=-1, reason="r" * 1024)},
        {"run_id": "r" * 256, "group_id": "g" * 256},
    ],
)
def test_a_header_at_the_limits_passes_and_costs_nothing(fields: dict[str, object]) -> None:
    header = header_of(**fields)
    tracemalloc.start()
    Incoming(header)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("records", "payload"),
    [
        ([pb.Record(name="a")], b""),
        ([pb.Record(name="a", config=pb.Values(values=[pb.Value(name="x")]))], b""),
        ([pb.Record(name="a", metrics=pb.Values(values=[pb.Value(name="x", text="t")]))], b""),
        ([pb.Record(name="a", metrics=pb.Values(values=[pb.Value(name="x", raw=b"t")]))], b""),
        ([pb.Record(name="a", metrics=pb.Values(values=[pb.Value(name="x", flag=True)]))], b""),
        ([pb.Record(name="a", metrics=pb.Values(values=[pb.Value(name="x", flags=pb.Flags())]))], b""),
        ([pb.Record(name="a", metrics=pb.Values(values=[pb.Value(name="x", texts=pb.Texts())]))], b""),
        ([pb.Record(name="a", metrics=pb.Values(values=[pb.Value(name="x", raws=pb.Raws())]))], b""),
        ([pb.Record(name="a", config=pb.Values(values=[pb.Value(name="x", flag=True)] * 2))], b""),
        ([arrays(), arrays()], b""),
        ([arrays(HEAD, HEAD)], b"12345678"),
        ([arrays(name="a\tb")], b""),
        ([arrays(name="n" * 257)], b""),
        ([arrays(pb.ArrayHead(name="\u202e"))], b""),
        ([arrays(pb.ArrayHead(dtype="f" * 65))], b""),
        ([arrays(pb.ArrayHead(dtype="\n"))], b""),
        ([arrays(pb.ArrayHead(stype="s" * 65))], b""),
        ([arrays(pb.ArrayHead(stype="\x00"))], b""),
        ([arrays(pb.ArrayHead(shape=[1] * 65))], b""),
        ([arrays(pb.ArrayHead(shape=[2**63]))], b""),
        ([arrays(HEAD)], b""),
        ([arrays(HEAD)], b"123"),
        ([arrays(HEAD)], b"12345"),
        ([arrays(pb.ArrayHead(bytes=2**64 - 1), name="a"), arrays(pb.ArrayHead(bytes=5), name="b")], b"1234"),
        ([arrays(pb.ArrayHead(bytes=4, is_bfloat16=True))], b"1234"),
        ([arrays(pb.ArrayHead(is_bfloat16=True))], b""),
    ],
)
def test_records_that_no_sender_writes(records: list[pb.Record], payload: bytes) -> None:
    with pytest.raises(ChannelError):
        offered(pb.Records(records=records), payload)


@pytest.mark.parametrize(
    "records",
    [
        b"\x12\x00",  # a field that Records does not have
        b"\x0a\x02\x2a\x00",  # a field that Record does not have
        b"\x08\x01",  # a number where a message is due
        b"\x0a\x05ab",  # longer than what is left
        b"\x0a",
        b"\x0b\x0c",  # a group
        b"\x0a\x06\x0a\x01a\x12\x04\x0a\x00",
        b"\x0a\x08\x0a\x02\xff\xfe\x12\x02\x0a\x00",  # a name that is no UTF-8
        b"\x0a\x0e\x0a\x01a\x22\x09\x0a\x07\x19\x00\x00\x00\x00\x00\x00",  # a double that is cut short
    ],
)
def test_bytes_that_are_not_the_schema(records: bytes) -> None:
    with pytest.raises(ChannelError):
        offered(records)


def numbers(count: int) -> pb.Value:
    return pb.Value(name=str(count), numbers=pb.Numbers(values=[0.5] * count))


@pytest.mark.parametrize(
    ("limits", "records"),
    [
        (Limits(arrays=2), [arrays(HEAD), arrays(HEAD, pb.ArrayHead(name="x"), name="b")]),
        (Limits(list_values=5), [pb.Record(name="c", config=pb.Values(values=[numbers(2), numbers(4)]))]),
        (Limits(list_values=5), [pb.Record(name="m", metrics=pb.Values(values=[numbers(2), numbers(4)]))]),
        (Limits(fields=17), [arrays(HEAD), arrays(HEAD, name="b")]),
    ],
)
def test_more_than_a_message_may_hold(limits: Limits, records: list[pb.Record]) -> None:
    payload = b"1234" * sum(len(record.arrays.arrays) for record in records if record.HasField("arrays"))
    payload = payload[: sum(head.bytes for record in records for head in record.arrays.arrays)]
    offered(pb.Records(records=records), payload)
    with pytest.raises(ChannelError):
        offered(pb.Records(records=records), payload, limits)


@pytest.mark.parametrize(
    ("limits", "record"),
    [
        (Limits(list_values=6), pb.Record(name="c", config=pb.Values(values=[numbers(2), numbers(4)]))),
        (Limits(arrays=1), arrays(pb.ArrayHead(shape=[1] * 64))),
        (LIMITS, arrays(pb.ArrayHead(shape=[2**63 - 1, 0], dtype="f" * 64, stype="s" * 64))),
        (LIMITS, arrays(name="n" * 256)),
    ],
)
def test_as_much_as_a_message_may_hold(limits: Limits, record: pb.Record) -> None:
    offered(pb.Records(records=[record]), limits=limits)


def test_as_many_fields_as_allowed() -> None:
    """Two records with name and arrays; in each a head with name, dtype, shape, kind and size."""
    records = pb.Records(records=[arrays(HEAD), arrays(HEAD, name="b")])
    offered(records, b"12345678", Limits(fields=2 * (1 + 2 + 1 + 5)))


@pytest.mark.parametrize(
    "records",
    [
        b"\x0a\x00" * 2**20,  # a million records
        b"\x0a\x82\x80\x80\x01\x12\xfe\xff\x7f" + b"\x0a\x00" * (2**20 - 1),  # a million arrays
        b"\x0a\x82\x80\x80\x01\x22\xfe\xff\x7f" + b"\x0a\x00" * (2**20 - 1),  # a million values
    ],
)
def test_a_million_tiny_fields_are_refused_before_they_are_parsed(records: bytes) -> None:
    with pytest.raises(ChannelError, match="more fields"):
        offered(records)


def test_packed_values_must_not_unpack_above_the_limit() -> None:
    data = b"".join(packed(Array(np.ones(100, "f4")).data) or ())
    records = pb.Records(records=[arrays(pb.ArrayHead(bytes=len(data), is_bfloat16=True))])
    offered(records, data, Limits(payload_bytes=2 * len(data)))
    with pytest.raises(ChannelError, match="unpack"):
        offered(records, data, Limits(payload_bytes=2 * len(data) - 1))


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_random_bytes_as_packed_values(data: bytes) -> None:
    with pytest.raises(ChannelError):
        unpacked(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data.replace(b"<f4", b"<f8"),
        lambda data: data.replace(b"<f4", b">f4"),
        lambda data: data.replace(b"False", b"True "),
        lambda data: data.replace(b"NUMPY\x01", b"NUMPY\x02"),
        lambda data: data[:8] + b"\x74" + data[9:],
        lambda data: data.replace(b"  \n", b" \n "),
        lambda data: data[:8] + b"\xff\xff" + data[10:],
    ],
)
def test_packed_values_behind_another_header(spoil: Callable[[bytes], bytes]) -> None:
    data = b"".join(packed(Array(np.ones(10, "f4")).data) or ())
    assert unpacked(data) == Array(np.ones(10, "f4")).data
    with pytest.raises(ChannelError):
        unpacked(spoil(data))


def test_an_endless_chunk_stream_ends_at_what_was_announced() -> None:
    incoming = Incoming(header_of(records_bytes=3 * CHUNK_BYTES))
    chunk = b"\x0a\x00" * (CHUNK_BYTES // 2)
    incoming.add(chunk)
    incoming.add(chunk)
    with pytest.raises(ChannelError, match="fields"):
        incoming.add(chunk)  # completes the records, which are none
    with pytest.raises(ChannelError, match="due"):
        incoming.add(chunk)


@pytest.mark.parametrize("sizes", [[5], [3], [CHUNK_BYTES + 4], [2, 2], [0], [4, 0], [4, 1]])
def test_chunks_that_are_not_full(sizes: list[int]) -> None:
    """Of records with 4 bytes only one cut is right: many tiny or empty chunks would cost more than they carry."""
    incoming = Incoming(header_of(records_bytes=4))

    def add_all() -> None:
        for size in sizes:
            incoming.add((b"\x0a\x02\x1a\x00" + bytes(CHUNK_BYTES))[:size])

    with pytest.raises(ChannelError, match="due"):
        add_all()


def test_a_message_without_a_body_takes_no_chunk() -> None:
    for chunk in (b"", b"a"):
        with pytest.raises(ChannelError):
            Incoming(header_of()).add(chunk)


def test_an_array_is_given_memory_when_it_begins_not_when_it_is_announced() -> None:
    heads = [pb.ArrayHead(name=str(n), bytes=2**30) for n in range(4)]
    records = pb.Records(records=[arrays(*heads)]).SerializeToString()
    incoming = Incoming(header_of(records, 2**32))
    tracemalloc.start()
    incoming.add(records)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 2**30 + 2**20


def test_an_end_before_all_bytes_are_there() -> None:
    """Even one whose digest is right for what came so far."""
    records = pb.Records(records=[arrays(HEAD)]).SerializeToString()
    nothing = hashlib.sha256().digest()
    for header, comes, digests in (
        (header_of(records, 4), (), (nothing, nothing)),
        (header_of(records, 4), (records,), (hashlib.sha256(records).digest(), nothing)),
        (header_of(b"\x0a\x00"), (), (nothing, nothing)),
    ):
        incoming = Incoming(header)
        for chunk in comes:
            incoming.add(chunk)
        assert not incoming.is_complete
        with pytest.raises(ChannelError, match="missing"):
            incoming.finish(pb.End(sha256=total_digest(header, *digests)))


def test_an_error_ends_a_message_for_good() -> None:
    records = pb.Records(records=[arrays(HEAD)]).SerializeToString()
    header = header_of(records, 4)
    incoming = Incoming(header)
    incoming.add(records)
    with pytest.raises(ChannelError):
        incoming.add(b"12345")
    with pytest.raises(ChannelError):
        incoming.add(b"1234")
    digest = total_digest(header, hashlib.sha256(records).digest(), hashlib.sha256(b"1234").digest())
    with pytest.raises(ChannelError):
        incoming.finish(pb.End(sha256=digest))


def test_a_message_is_handed_out_once() -> None:
    outgoing = encode(message_of(RecordDict()), message_id=MESSAGE_ID, run_id="r")
    (end,) = [read_frame(frame).end for frame in outgoing.body_frames()]
    incoming = Incoming(read_frame(outgoing.header_frame).header)
    assert incoming.finish(end).content == RecordDict()
    with pytest.raises(ChannelError):
        incoming.finish(end)


@pytest.mark.parametrize("digest", [b"", bytes(32), bytes(31), bytes(33)])
def test_another_digest(digest: bytes) -> None:
    with pytest.raises(ChannelError, match="SHA-256"):
        received([*SENT[:-1], pb.Frame(end=pb.End(sha256=digest)).SerializeToString()])


def test_a_digest_covers_the_header() -> None:
    other = pb.Frame.FromString(SENT[0])
    other.header.run_id = "run-2"
    with pytest.raises(ChannelError, match="SHA-256"):
        received([other.SerializeToString(), *SENT[1:]])


def test_digest_is_what_the_protocol_says() -> None:
    """Against hashlib alone, over what is on the wire."""
    header = SENT[0][3 if SENT[0][1] > 0x7F else 2 :]
    chunks = [bytes(read_frame(frame)) for frame in SENT[1:-1]]
    parts = header, chunks[0], b"".join(chunks[1:])
    expected = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
    assert read_frame(SENT[-1]).end.sha256 == expected
