"""privet_pb2.py is what privet.proto makes, and every call in it is known here."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from privet.privacy.channel import privet_pb2 as pb

protoc = pytest.importorskip("grpc_tools.protoc")
ROOM = Path(pb.__file__).parent

# Who may make each call is tested where it is served. A call that is not listed has no such test.
CALLS = {
    "Nodes": ["Connect", "Model"],
    "Control": ["Submit", "Runs", "Run", "Watch", "Stop", "Resume", "Model", "ListNodes", "Witness"],
    "Enrolment": ["Join", "Challenge", "Return"],
    "Membership": ["Renew", "Leave"],
}


def compiled(folder: Path, out: str) -> int:
    proto = ROOM / "privet.proto"
    return int(protoc.main(["protoc", f"--proto_path={ROOM}", f"--{out}={folder}", str(proto)]))


@pytest.mark.parametrize(("out", "name"), [("python_out", "privet_pb2.py"), ("pyi_out", "privet_pb2.pyi")])
def test_generated_files_are_what_the_protocol_makes(tmp_path: Path, out: str, name: str) -> None:
    assert compiled(tmp_path, out) == 0
    assert described(tmp_path / name) == described(ROOM / name)


def described(path: Path) -> list[str]:
    """Its lines without comments, which name the compiler's version."""
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def test_every_call_is_known() -> None:
    services = pb.DESCRIPTOR.services_by_name
    assert {name: [call.name for call in service.methods] for name, service in services.items()} == CALLS


def test_a_frame_carries_one_of_the_known_kinds() -> None:
    assert [field.name for field in pb.Frame.DESCRIPTOR.oneofs_by_name["kind"].fields] == [
        "hello",
        "welcome",
        "presence",
        "header",
        "chunk",
        "end",
        "grant",
        "taken",
        "dropped",
        "denied",
    ]
    assert pb.Frame.DESCRIPTOR.fields_by_name["chunk"].number == 5


def test_no_message_nests_itself() -> None:
    """The strict reader walks as deep as the schema: a message within itself would let a peer choose the depth."""
    described = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(described)
    inside = {
        message.name: {field.type_name.rsplit(".")[-1] for field in message.field if field.type_name}
        for message in described.message_type
    }

    def below(name: str, path: tuple[str, ...]) -> None:
        assert name not in path
        for inner in inside[name]:
            below(inner, (*path, name))

    for name in inside:
        below(name, ())
