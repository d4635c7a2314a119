import pytest
from google.protobuf.descriptor_pb2 import FieldOptions
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.wire import read_varint, schema_of
from privet.privacy.errors import ChannelError


def test_a_schema_knows_fields_and_the_messages_in_them() -> None:
    assert schema_of(pb.End) == {0x0A: None}
    assert schema_of(pb.Hello)[0x21] is None  # a double
    assert schema_of(pb.Arrays) == {0x0A: schema_of(pb.ArrayHead)}
    assert set(schema_of(pb.ArrayHead)) == {0x0A, 0x12, 0x1A, 0x22, 0x28, 0x30}  # shape: packed


def test_a_field_that_takes_two_bytes_is_a_mistake_of_ours() -> None:
    """protobuf's own options are numbered up to 999."""
    with pytest.raises(ValueError, match="more than one byte"):
        schema_of(FieldOptions)


@pytest.mark.parametrize(
    ("data", "value"), [(b"\x00", 0), (b"\x7f", 127), (b"\x80\x01", 128), (b"\xff" * 9 + b"\x01", 2**64 - 1)]
)
def test_a_number_and_where_it_ends(data: bytes, value: int) -> None:
    assert read_varint(b"\x2a" + data + b"\xff", 1, len(data) + 1) == (value, len(data) + 1)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 10, b"\xff" * 10 + b"\x01"])
def test_a_number_that_does_not_end(data: bytes) -> None:
    with pytest.raises(ChannelError):
        read_varint(data, 0, len(data))
