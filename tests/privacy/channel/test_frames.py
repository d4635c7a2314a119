"""Round trips: what Flower gives comes out as it was."""

import math
import struct
import threading

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from framing import MESSAGE_ID, frames_of, message_of, received
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.privacy.channel.frames import (
    CHUNK_BYTES,
    INLINE_BYTES,
    Incoming,
    Limits,
    Payload,
    PayloadMemory,
    encode,
    read_frame,
    to_message,
)
from privet.privacy.errors import ChannelError

NAMES = st.text(st.characters(codec="utf-8"), max_size=12).filter(str.isprintable)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(width=64)
METRICS = st.one_of(INTEGERS, FLOATS, st.lists(INTEGERS, max_size=4), st.lists(FLOATS, max_size=4))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
CONFIGS = st.one_of(
    METRICS,
    st.booleans(),
    TEXTS,
    st.binary(max_size=8),
    st.lists(st.booleans(), max_size=4),
    st.lists(TEXTS, max_size=4),
    st.lists(st.binary(max_size=8), max_size=4),
)
ARRAYS = st.builds(
    Array,
    st.sampled_from(["float32", "int8", "complex128", "a kind of its own"]),
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    st.sampled_from(["numpy.ndarray", "other"]),
    st.binary(max_size=70),
)
RECORDS = st.one_of(
    st.dictionaries(NAMES, ARRAYS, max_size=4).map(ArrayRecord),
    st.dictionaries(NAMES, METRICS, max_size=4).map(MetricRecord),
    st.dictionaries(NAMES, CONFIGS, max_size=4).map(ConfigRecord),
)
CONTENTS = st.dictionaries(NAMES, RECORDS, max_size=4).map(RecordDict)


def bits(value: object) -> object:
    """A value such that only the very same is equal: by type and, of floats, by bits."""
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    if isinstance(value, list):
        return [bits(member) for member in value]
    return type(value).__name__, value


def told(content: RecordDict | None) -> object:
    """All of a content, in order, by bits."""
    assert content is not None
    plain = []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            fields = [(k, a.dtype, a.shape, a.stype, bytes(a.data)) for k, a in record.items()]
        else:
            fields = [(key, bits(value)) for key, value in record.items()]
        plain.append((name, type(record).__name__, fields))
    return plain


def bfloat16(count: int) -> np.ndarray:
    values = np.random.default_rng(count).standard_normal(count).astype("<f4")
    return (values.view("<u4") & 0xFFFF0000).view("<f4")


def content_of(*arrays: np.ndarray) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({str(i): Array(array) for i, array in enumerate(arrays)})})


@given(CONTENTS, st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_content_comes_out_as_it_went_in(content: RecordDict, pack: bool) -> None:
    assert told(received(frames_of(message_of(content), pack=pack)).content) == told(content)


@pytest.mark.parametrize("value", [math.nan, -math.inf, -0.0, 5e-324, 2**63 - 1, -(2**63), [], [math.nan, -0.0], True])
def test_values_at_the_edges_come_out_as_they_went_in(value: object) -> None:
    content = RecordDict({"config": ConfigRecord({"value": value})})
    assert told(received(frames_of(message_of(content))).content) == told(content)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES + 7])
def test_sizes_around_a_chunk_and_in_pages_of_their_own(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    records = {
        "a": Array("u1", (1,), "x", b"a"),
        "b": Array("u1", (size,), "x", data),
        "c": Array("u1", (0,), "x", b""),
    }
    frames = frames_of(message_of(RecordDict({"arrays": ArrayRecord(records)})))
    arrived = received(frames).content
    assert arrived is not None
    assert [type(array.data) for array in arrived["arrays"].values()] == [bytes] * 3
    assert [array.data for array in arrived["arrays"].values()] == [b"a", data, b""]
    assert max(map(len, frames)) <= CHUNK_BYTES + 8


def test_records_above_a_chunk_are_cut_too() -> None:
    content = RecordDict({"config": ConfigRecord({"raw": bytes(range(256)) * 2**13, "numbers": [0.5] * 2**17})})
    frames = frames_of(message_of(content))
    assert len(frames) == 1 + 4 + 1
    assert told(received(frames).content) == told(content)


def test_a_request_reaches_a_node_with_what_flowers_apps_read() -> None:
    sent = message_of(RecordDict(), group_id="round 3", ttl=2.5)
    metadata = to_message(received(frames_of(sent)), run_id=99, src_node_id=1, dst_node_id=5).metadata
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (99, 1, 5)
    assert (metadata.message_id, metadata.reply_to_message_id) == (MESSAGE_ID.hex(), "")
    assert (metadata.group_id, metadata.message_type) == ("round 3", "train")
    assert (metadata.created_at, metadata.ttl) == (sent.metadata.created_at, 2.5)


def test_an_app_can_answer_what_arrived() -> None:
    request = to_message(received(frames_of(message_of(RecordDict()))), run_id=99, src_node_id=1, dst_node_id=5)
    answer = Message(RecordDict(), reply_to=request)
    assert (answer.metadata.dst_node_id, answer.metadata.src_node_id, answer.metadata.run_id) == (1, 5, 99)
    assert answer.metadata.reply_to_message_id == MESSAGE_ID.hex()


def test_of_a_reply_the_request_says_what_it_answers() -> None:
    request = message_of(RecordDict(), group_id="asked")
    request.metadata.__dict__["_message_id"] = "41"
    reply = message_of(RecordDict({"m": MetricRecord({"loss": 1.5})}), group_id="claimed")
    arrived = to_message(received(frames_of(reply)), run_id=7, src_node_id=5, dst_node_id=1, reply_to=request.metadata)
    assert (arrived.metadata.reply_to_message_id, arrived.metadata.group_id) == ("41", "asked")
    assert (arrived.metadata.src_node_id, arrived.metadata.dst_node_id) == (5, 1)
    assert arrived.content["m"]["loss"] == 1.5


def test_an_answer_names_the_request_on_the_wire() -> None:
    outgoing = encode(message_of(RecordDict()), message_id=bytes(16), reply_to=MESSAGE_ID, run_id="run-1")
    header = read_frame(outgoing.header_frame).header
    assert (header.reply_to, header.run_id) == (MESSAGE_ID, "run-1")
    parts = received([outgoing.header_frame, *outgoing.body_frames()])
    assert to_message(parts, run_id=1, src_node_id=5, dst_node_id=1).metadata.reply_to_message_id == MESSAGE_ID.hex()


@pytest.mark.parametrize("error", [Error(1000, "budget-exhausted"), Error(-(2**31), None), Error(2**31 - 1, "é\n")])
def test_an_error_is_a_header_and_an_end(error: Error) -> None:
    frames = frames_of(message_of(error))
    arrived = to_message(received(frames), run_id=7, src_node_id=5, dst_node_id=1)
    assert len(frames) == 2
    assert arrived.has_error()
    assert not arrived.has_content()
    assert (arrived.error.code, arrived.error.reason) == (error.code, error.reason)


def test_a_long_reason_is_cut_between_characters() -> None:
    arrived = received(frames_of(message_of(Error(2, "a" + "é" * 2000)))).error
    assert arrived is not None
    assert arrived.reason == "a" + "é" * 511


@pytest.mark.parametrize("count", [0, 1, 100, 2**20, 2**20 + 3])
def test_rounded_arrays_travel_as_half_and_come_out_exactly(count: int) -> None:
    message = message_of(content_of(bfloat16(count)))
    whole, half = (encode(message, message_id=MESSAGE_ID, run_id="r", pack=pack) for pack in (False, True))
    assert whole.payload.size - half.payload.size == 2 * count
    assert told(received(frames_of(message, pack=True)).content) == told(message.content)


def test_an_array_that_would_lose_a_bit_travels_whole() -> None:
    last, middle, first = bfloat16(2**20 + 5), bfloat16(2**20), bfloat16(9)
    last.view("<u4")[-1] |= 1
    middle.view("<u4")[3 * 2**18] |= 1
    first.view("<u4")[0] |= 0x8000
    others = np.zeros(8, "<f8"), np.zeros(8, ">f4"), np.zeros((2, 3), "<f4", order="F"), np.zeros(4, "<u4")
    content = content_of(last, bfloat16(4), first, middle, *others)
    payload = Payload.of([array.data for array in content["arrays"].values()], pack=True)
    assert [piece.is_bfloat16 for piece in payload.pieces] == [False, True] + [False] * 6
    assert told(received(frames_of(message_of(content), pack=True)).content) == told(content)


@pytest.mark.parametrize("more", [1, 2, 3])
def test_bytes_behind_the_values_are_not_lost_by_packing(more: int) -> None:
    array = Array(bfloat16(3))
    array.data += bytes(more)
    content = RecordDict({"arrays": record_with(array)})
    assert told(received(frames_of(message_of(content), pack=True)).content) == told(content)


@pytest.mark.parametrize("before", [1, 2, CHUNK_BYTES - 1])
def test_an_array_that_ends_just_before_a_chunk_does(before: int) -> None:
    sizes = [CHUNK_BYTES - before, before + 3]
    records = {str(size): Array("u1", (size,), "x", bytes(size)) for size in sizes}
    arrived = received(frames_of(message_of(RecordDict({"arrays": ArrayRecord(records)})))).content
    assert arrived is not None
    assert [len(array.data) for array in arrived["arrays"].values()] == sizes


def test_special_values_survive_packing() -> None:
    values = np.array([0x7FC00000, 0x7F800000, 0xFF800000, 0x80000000, 0x00010000], "<u4").view("<f4")
    content = content_of(values)
    assert told(received(frames_of(message_of(content), pack=True)).content) == told(content)


def test_a_small_body_goes_at_once() -> None:
    at, above = (
        encode(message_of(RecordDict({"c": ConfigRecord({"raw": bytes(size)})})), message_id=MESSAGE_ID, run_id="r")
        for size in (INLINE_BYTES - 24, INLINE_BYTES - 23)
    )
    assert (at.size, above.size) == (INLINE_BYTES, INLINE_BYTES + 1)
    assert (at.is_inline, above.is_inline) == (True, False)


def test_the_same_arrays_are_framed_once_however_many_receive_them() -> None:
    memory, arrays = PayloadMemory(), content_of(np.ones(10**6, "f4"))["arrays"]
    messages = [message_of(RecordDict({"arrays": arrays, "c": ConfigRecord({"n": n})})) for n in range(3)]
    sent = [frames_of(message, payloads=memory) for message in messages]
    assert sent[0][2] is sent[1][2] is sent[2][2]
    assert [received(frames).content["c"]["n"] for frames in sent] == [0, 1, 2]


def test_other_arrays_of_the_same_value_or_packing_are_another_payload() -> None:
    memory = PayloadMemory()
    one, other = message_of(content_of(bfloat16(50))), message_of(content_of(bfloat16(50)))
    assert memory.of(one) is memory.of(one)
    assert memory.of(one) is not memory.of(other)
    assert memory.of(one) is not memory.of(one, pack=True)
    assert memory.of(one, pack=True).size < memory.of(one).size


def test_memory_holds_two_payloads_and_forgets_when_told() -> None:
    memory = PayloadMemory()
    messages = [message_of(content_of(np.full(9, n, "f4"))) for n in range(3)]
    first, second = memory.of(messages[0]), memory.of(messages[1])
    assert memory.of(messages[0]) is first
    memory.of(messages[2])  # the second was used longest ago
    assert memory.of(messages[0]) is first
    assert memory.of(messages[1]) is not second
    memory.forget()
    assert memory.of(messages[0]) is not first


def test_threads_that_read_one_payload_get_the_same_frames() -> None:
    payload = Payload.of([np.random.default_rng(0).bytes(CHUNK_BYTES * 6 + 5)])
    together, got = threading.Barrier(4), [list[bytes]() for _ in range(4)]

    def read(into: list[bytes]) -> None:
        together.wait(30)
        into += payload.frames()

    threads = [threading.Thread(target=read, args=(into,)) for into in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [len(frames) for frames in got] == [7] * 4
    assert all(a is b for frames in got for a, b in zip(frames, got[0], strict=True))


def test_digest_of_a_payload_is_at_hand_before_and_after_its_frames() -> None:
    data = np.random.default_rng(0).bytes(CHUNK_BYTES * 2 + 5)
    kept, passing = Payload.of([data]), Payload.of([data], keep=False)
    early = kept.digest
    assert early == passing.digest == Payload.of([data[:7], data[7:]]).digest
    assert list(kept.frames()) == list(passing.frames())
    assert (kept.digest, passing.digest) == (early, early)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({"c": ConfigRecord({"n": 2**63})}),
        RecordDict({"c": ConfigRecord({"n": [-(2**63) - 1]})}),
        RecordDict({"c": ConfigRecord({"text": "\ud800"})}),
        RecordDict({"a name\nerror: forged": ConfigRecord()}),
        RecordDict({"c": ConfigRecord({"\x1b[31m": 1})}),
        RecordDict({"c": MetricRecord({"n" * 257: 1})}),
        RecordDict({"a": ArrayRecord({"w": Array("float32", (1,) * 65, "x", b"")})}),
        RecordDict({"a": ArrayRecord({"w": Array("float32", (2**63,), "x", b"")})}),
        RecordDict({"a": ArrayRecord({"w": Array("float32", (-1,), "x", b"")})}),
        RecordDict({"a": ArrayRecord({"w": Array("f" * 65, (1,), "x", b"")})}),
        RecordDict({"a": ArrayRecord({"w": Array("f", (1,), "x" * 65, b"")})}),
        Error(2**31, "code"),
    ],
    ids=lambda content: repr(content)[:40].replace("\n", " "),
)
def test_what_cannot_travel_is_refused_by_the_sender(content: RecordDict | Error) -> None:
    with pytest.raises(ChannelError):
        frames_of(message_of(content))


def test_data_that_is_no_bytes_is_refused_by_the_sender() -> None:
    array = Array("float32", (1,), "x", b"")
    array.data = "text"
    with pytest.raises(ChannelError, match="str"):
        frames_of(message_of(RecordDict({"a": record_with(array)})))


def record_with(array: Array) -> ArrayRecord:
    record = ArrayRecord()
    record["w"] = array
    return record


@pytest.mark.parametrize(
    "limits", [Limits(records_bytes=40), Limits(payload_bytes=40), Limits(fields=6), Limits(arrays=1)]
)
def test_more_than_the_limits_is_refused_by_the_sender(limits: Limits) -> None:
    message = message_of(content_of(np.zeros(1, "f4"), np.zeros(1, "f4")))
    with pytest.raises(ChannelError):
        encode(message, message_id=MESSAGE_ID, run_id="r", limits=limits)


def test_as_much_as_the_limits_is_sent() -> None:
    message = message_of(content_of(np.zeros(1, "f4"), np.zeros(1, "f4")))
    sent = encode(message, message_id=MESSAGE_ID, run_id="r")
    limits = Limits(records_bytes=len(sent.records), payload_bytes=sent.payload.size, arrays=2)
    assert encode(message, message_id=MESSAGE_ID, run_id="r", limits=limits).size == sent.size


def test_header_says_how_much_follows() -> None:
    outgoing = encode(message_of(content_of(np.zeros(99, "f4"))), message_id=MESSAGE_ID, run_id="r")
    header = read_frame(outgoing.header_frame).header
    incoming = Incoming(header)
    assert header.records_bytes + header.payload_bytes == outgoing.size
    assert not incoming.is_complete
    for frame in list(outgoing.body_frames())[:-1]:
        incoming.add(read_frame(frame))
    assert incoming.is_complete
