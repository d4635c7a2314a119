"""Flower's records <-> `Records` of privet.proto: everything of a message but the bytes of its arrays.

The order of names is kept and every value comes back as it was. What comes from outside is checked against the schema
and the limits before it is parsed, and again before it becomes Flower's.
"""

from collections.abc import Callable, Iterator, Sequence

from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, MetricRecord, RecordDict
from google.protobuf.message import DecodeError

from . import privet_pb2 as pb
from .limits import Limits
from .payload import Piece
from .wire import check_fields, malformed, schema_of

_METRIC_KINDS = frozenset({"integer", "number", "integers", "numbers"})
_SCALARS: tuple[tuple[type, str], ...] = (
    (bool, "flag"),  # before int, of which it is one
    (int, "integer"),
    (float, "number"),
    (str, "text"),
    (bytes, "raw"),
)
_LISTS = {"flag": "flags", "integer": "integers", "number": "numbers", "text": "texts", "raw": "raws"}
_SCHEMA = schema_of(pb.Records)


def serialize(content: RecordDict, pieces: Sequence[Piece], limits: Limits) -> bytes:
    """The records of a message; `pieces` says how each array travels.

    Raises ChannelError where a value cannot be sent, or where the other end would refuse the whole.
    """
    ahead = iter(pieces)
    try:
        records = pb.Records(records=[_record(name, record, ahead) for name, record in content.items()])
    except (TypeError, ValueError) as error:
        raise malformed(f"a value that cannot be sent ({type(error).__name__})") from None
    _check(records, limits)
    serialized = records.SerializeToString()
    check_fields(serialized, _SCHEMA, limits.fields)
    return serialized


def parse(data: bytes, limits: Limits) -> tuple[pb.Records, list[pb.ArrayHead]]:
    """The records and the heads of their arrays, in order. Raises ChannelError for anything that breaks a rule."""
    check_fields(data, _SCHEMA, limits.fields)
    try:
        records = pb.Records.FromString(data)
    except DecodeError:
        raise malformed("records that are no protobuf") from None
    _check(records, limits)
    return records, [head for record in records.records for head in record.arrays.arrays]


def from_proto(records: pb.Records, arrays: Sequence[bytes]) -> RecordDict:
    """Flower's records, from checked ones and the arrays' bytes."""
    ahead = iter(arrays)
    content = RecordDict()
    for record in records.records:
        if record.HasField("arrays"):
            content[record.name] = ArrayRecord({head.name: _array(head, next(ahead)) for head in record.arrays.arrays})
        elif record.HasField("metrics"):
            values = {value.name: _plain(value) for value in record.metrics.values}
            content[record.name] = MetricRecord(values)  # type: ignore[arg-type]  # _check let only metrics through
        else:
            content[record.name] = ConfigRecord({value.name: _plain(value) for value in record.config.values})
    return content


def check_text(text: str, what: str, most: int) -> None:
    """Raise ChannelError for a name that is too long, or that would forge lines where it is printed."""
    if len(text) > most or not text.isprintable():
        raise malformed(f"a {what} of {len(text)} characters, allowed are {most} printable ones")


def _record(name: str, record: ArrayRecord | MetricRecord | ConfigRecord, ahead: Iterator[Piece]) -> pb.Record:
    if isinstance(record, ArrayRecord):
        heads = [_head(key, array, next(ahead)) for key, array in record.items()]
        return pb.Record(name=name, arrays=pb.Arrays(arrays=heads))
    values = pb.Values(values=[_value(key, value) for key, value in record.items()])
    return (
        pb.Record(name=name, metrics=values)
        if isinstance(record, MetricRecord)
        else pb.Record(name=name, config=values)
    )


def _head(name: str, array: Array, piece: Piece) -> pb.ArrayHead:
    return pb.ArrayHead(
        name=name,
        dtype=array.dtype,
        shape=array.shape,
        stype=array.stype,
        bytes=piece.size,
        is_bfloat16=piece.is_bfloat16,
    )


def _value(name: str, value: ConfigRecordValues) -> pb.Value:
    if not isinstance(value, list):
        return pb.Value(name=name, **{_kind(value): value})  # type: ignore[arg-type]  # by the table of kinds
    kind = _LISTS[_kind(value[0]) if value else "number"]
    message = _LIST_MESSAGES[kind](values=value)
    return pb.Value(name=name, **{kind: message})  # type: ignore[arg-type]  # by the table of kinds


_LIST_MESSAGES: dict[str, Callable[..., object]] = {
    "flags": pb.Flags,
    "integers": pb.Integers,
    "numbers": pb.Numbers,
    "texts": pb.Texts,
    "raws": pb.Raws,
}


def _kind(value: object) -> str:
    for kind, word in _SCALARS:
        if isinstance(value, kind):
            return word
    raise TypeError(type(value).__name__)


def _plain(value: pb.Value) -> ConfigRecordValues:
    kind = value.WhichOneof("kind")
    held = getattr(value, str(kind))
    plain: ConfigRecordValues = list(held.values) if kind in _LIST_MESSAGES else held
    return plain


def _array(head: pb.ArrayHead, data: bytes) -> Array:
    return Array(dtype=head.dtype, shape=tuple(head.shape), stype=head.stype, data=data)


def _check(records: pb.Records, limits: Limits) -> None:
    _check_names([record.name for record in records.records], limits)
    arrays = list_values = 0
    for record in records.records:
        kind = record.WhichOneof("kind")
        if kind is None:
            raise malformed("a record of no known kind")
        if kind == "arrays":
            arrays += len(record.arrays.arrays)
            _check_heads(record.arrays, limits)
        else:
            values = record.metrics if kind == "metrics" else record.config
            list_values += _check_values(values, kind == "metrics", limits)
    if arrays > limits.arrays or list_values > limits.list_values:
        raise malformed(
            f"{arrays} arrays and {list_values} values in lists, allowed are {limits.arrays} and {limits.list_values}"
        )


def _check_names(names: Sequence[str], limits: Limits) -> None:
    for name in names:
        check_text(name, "name", limits.name_characters)
    if len(set(names)) != len(names):
        raise malformed("a name that stands twice")


def _check_heads(arrays: pb.Arrays, limits: Limits) -> None:
    _check_names([head.name for head in arrays.arrays], limits)
    for head in arrays.arrays:
        check_text(head.dtype, "dtype", limits.word_characters)
        check_text(head.stype, "kind of serialization", limits.word_characters)
        if len(head.shape) > limits.dimensions or any(length > limits.length for length in head.shape):
            raise malformed(f"a shape of {len(head.shape)} dimensions, allowed are {limits.dimensions}")


def _check_values(values: pb.Values, are_metrics: bool, limits: Limits) -> int:
    """How many values its lists hold."""
    _check_names([value.name for value in values.values], limits)
    count = 0
    for value in values.values:
        kind = value.WhichOneof("kind")
        if kind is None or (are_metrics and kind not in _METRIC_KINDS):
            raise malformed("a value of a kind that its record does not hold")
        if kind in _LIST_MESSAGES:
            count += len(getattr(value, kind).values)
    return count
