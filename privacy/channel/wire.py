"""A strict look at a serialized protobuf message before its parser sees it.

The parser gives a two-byte field a hundred bytes of memory and keeps what it does not know. So the fields are counted
first, and a field that the schema does not have ends the reading.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from ..errors import ChannelError

_VARINT, _FIXED64, _DELIMITED = 0, 1, 2
_LONGEST_VARINT = 10

# The first byte of each field that may stand in a message -> the fields of the message in it, or None.
Schema = dict[int, "Schema | None"]


def schema_of(message: type[Message]) -> Schema:
    """The fields of a message whose numbers are below 16, so that each begins with one byte. Lists are packed."""
    return _schema(message.DESCRIPTOR.fields)


def check_fields(data: bytes, schema: Schema, most: int) -> None:
    """Raise ChannelError where a field, also of a message within, is unknown, cut short, or one above `most`."""
    _walk(data, 0, len(data), schema, most)


def read_varint(data: bytes | memoryview, position: int, end: int) -> tuple[int, int]:
    """A length and where it ends. Raises ChannelError where it does not end, or is longer than protobuf allows."""
    value = 0
    for index in range(position, min(end, position + _LONGEST_VARINT)):
        byte = data[index]
        value |= (byte & 0x7F) << 7 * (index - position)
        if byte < 0x80:
            return value, index + 1
    raise malformed("a number that does not end")


def malformed(why: str) -> ChannelError:
    """The error for a message that is not one."""
    return ChannelError(f"malformed message: {why}", "run the same version of privet at both ends")


def _schema(fields: Iterable[FieldDescriptor]) -> Schema:
    schema: Schema = {}
    for field in fields:
        if field.number >= 16:
            raise ValueError(f"field {field.full_name} takes more than one byte")
        inner = field.message_type
        schema[field.number << 3 | _wire_type(field)] = _schema(inner.fields) if inner else None
    return schema


def _walk(data: bytes, position: int, end: int, schema: Schema, left: int) -> int:
    while position < end:
        left -= 1
        if left < 0:
            raise malformed("more fields than allowed")
        tag = data[position]
        if tag not in schema:
            raise malformed(f"an unknown field (tag {tag})")
        position += 1
        if tag & 7 == _FIXED64:
            position += 8
            continue
        value, position = read_varint(data, position, end)
        if tag & 7 == _DELIMITED:
            if value > end - position:
                raise malformed(f"a field of {value} bytes where {end - position} are left")
            inner = schema[tag]
            if inner is not None:
                left = _walk(data, position, position + value, inner, left)
            position += value
    if position != end:
        raise malformed("a field that is cut short")
    return left


def _wire_type(field: FieldDescriptor) -> int:
    if field.is_repeated or field.type in (
        FieldDescriptor.TYPE_STRING,
        FieldDescriptor.TYPE_BYTES,
        FieldDescriptor.TYPE_MESSAGE,
    ):
        return _DELIMITED
    return _FIXED64 if field.type == FieldDescriptor.TYPE_DOUBLE else _VARINT
