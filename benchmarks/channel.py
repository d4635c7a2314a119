"""A 100 MB update through the channel, each way: from one ArrayRecord to the other, by frames over mutual TLS.

Peers, in the same run and interleaved: Python's own TLS 1.3 socket with the same certificates and cipher, which moves
bytes from memory to memory and does nothing else; and what Flower's objects cost before and after its network (made
and put together again in one process: its HTTP cannot be faster). Both ends are processes of their own. Prints MB/s
(medians) and ratios. Issue: 0.8 or more of the raw socket, each way.

    .venv/bin/python benchmarks/channel.py [--megabytes 100] [--arrays 10] [--repeats 9]
"""

import argparse
import asyncio
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.authority import RootAuthority
from privet.privacy.channel.credentials import Presented, server_credentials
from privet.privacy.channel.frames import GRPC_OPTIONS, Incoming, encode, read_frame, to_message
from privet.privacy.channel.identities import Identity, IdentityKey, Role
from privet.privacy.channel.memory import keep_chunks

import grpc  # isort: skip  (after the credentials, which say what TLS it may speak)
import grpc.aio  # isort: skip

MB = 10**6
METHOD = "/privet.v1.Nodes/Connect"
UP, DOWN = b"up", b"down"

Write = Callable[[bytes], Awaitable[Any]]
Read = Callable[[], Awaitable[Any]]


def update(size: int, arrays: int) -> Message:
    drawn = np.random.default_rng(1)
    record = ArrayRecord(
        {f"layer {n}": Array(drawn.random(size // 4 // arrays, dtype=np.float32)) for n in range(arrays)}
    )
    return Message(RecordDict({"arrays": record}), metadata=Metadata(1, "", 1, 5, "", "", 0.0, 60.0, "train"))


# ---- the channel ----


async def send(write: Write, message: Message) -> None:
    """As a link does: nothing was framed or hashed before."""
    outgoing = encode(message, message_id=os.urandom(16), run_id="run")
    await write(outgoing.header_frame)
    for frame in outgoing.body_frames():
        await write(frame)


async def receive(read: Read) -> Message:
    incoming = Incoming(read_frame(await read()).header)  # type: ignore[union-attr]
    while True:
        frame = read_frame(await read())
        if isinstance(frame, pb.Frame):
            return to_message(incoming.finish(frame.end), run_id=1, src_node_id=5, dst_node_id=1)
        incoming.add(frame)


async def serve_channel(folder: Path, message: Message) -> None:
    async def connect(_: Any, context: Any) -> None:
        while (asked := await context.read()) is not grpc.aio.EOF:
            if asked == DOWN:
                await send(context.write, message)
            else:
                await receive(context.read)
                await context.write(b"taken")

    _, service, name = METHOD.split("/")
    handler = grpc.stream_stream_rpc_method_handler(connect)
    server = grpc.aio.server(options=GRPC_OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    presented = Presented(*(_read(folder, "server", part) for part in ("key", "chain")), _read(folder, "root", "pem"))
    port = server.add_secure_port("localhost:0", server_credentials(lambda: presented))
    await server.start()
    print(json.dumps({"channel": port}), flush=True)
    await server.wait_for_termination()


# ---- a raw TLS 1.3 socket ----


def context_of(folder: Path, end: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if end == "server" else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder / f"{end}.chain", folder / f"{end}.key")
    context.load_verify_locations(folder / "root.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def received(connection: ssl.SSLSocket, size: int) -> bytearray:
    """So many bytes, in memory of their own: an update is kept, so its place is not the last one's."""
    content = bytearray(size)
    rest = memoryview(content)
    while len(rest):
        rest = rest[connection.recv_into(rest) :]
    return content


def serve_raw(folder: Path, size: int) -> None:
    listening = socket.create_server(("localhost", 0))
    print(json.dumps({"raw": listening.getsockname()[1]}), flush=True)
    connection = context_of(folder, "server").wrap_socket(listening.accept()[0], server_side=True)
    content = os.urandom(size)
    while asked := connection.recv(4):
        if asked == DOWN:
            connection.sendall(content)
        else:
            received(connection, size)
            connection.sendall(b"taken")


def raw(connection: ssl.SSLSocket, content: bytes, way: bytes) -> float:
    started = time.perf_counter()
    connection.sendall(way)
    if way == UP:
        connection.sendall(content)
        connection.recv(5)
    else:
        received(connection, len(content))
    return time.perf_counter() - started


# ---- Flower's own encoding ----


def flowers(message: Message) -> float:
    """Seconds for the objects that Flower would push and pull, without pushing and pulling them."""
    fresh = {name: Array(a.dtype, a.shape, a.stype, a.data) for name, a in message.content["arrays"].items()}
    sent = RecordDict({"arrays": ArrayRecord(fresh)})
    started = time.perf_counter()
    objects = {name: item.deflate() for name, item in get_all_nested_objects(sent).items()}
    inflate_object_from_contents(sent.object_id, objects)
    return time.perf_counter() - started


# ---- the measurement ----


def certify(folder: Path) -> None:
    now = datetime.now(UTC)
    root = RootAuthority.create("bench", now)
    issuer = root.issuer(now)
    (folder / "root.pem").write_bytes(root.pem)
    for role, hosts in ((Role.SERVER, ("localhost",)), (Role.NODE, ())):
        key = IdentityKey.generate()
        chain = issuer.issue(Identity("bench", role, str(role)), key.csr(), now, hosts=hosts)
        (folder / f"{role}.key").write_bytes(key.pem())
        (folder / f"{role}.chain").write_bytes(chain)


def _read(folder: Path, who: str, what: str) -> bytes:
    return (folder / f"{who}.{what}").read_bytes()


async def measure(folder: Path, ports: dict[str, int], message: Message, size: int, repeats: int) -> None:
    credentials = grpc.ssl_channel_credentials(
        _read(folder, "root", "pem"), _read(folder, "node", "key"), _read(folder, "node", "chain")
    )
    connection = context_of(folder, "node").wrap_socket(
        socket.create_connection(("localhost", ports["raw"])), server_hostname="localhost"
    )
    content = os.urandom(size)
    seconds: dict[str, list[float]] = {name: [] for name in ("up", "raw up", "down", "raw down", "flower")}
    async with grpc.aio.secure_channel(f"localhost:{ports['channel']}", credentials, GRPC_OPTIONS) as channel:
        call = channel.stream_stream(METHOD)()
        for _ in range(repeats + 1):
            for way in (UP, DOWN):
                name = way.decode()
                started = time.perf_counter()
                await call.write(way)
                if way == UP:
                    await send(call.write, message)
                    await call.read()
                else:
                    arrived = await receive(call.read)
                seconds[name].append(time.perf_counter() - started)
                seconds[f"raw {name}"].append(raw(connection, content, way))
            seconds["flower"].append(flowers(message))
        if arrived.content != message.content:
            raise RuntimeError("what arrived is not what was sent")
        await call.done_writing()
    report(seconds, size)


def report(seconds: dict[str, list[float]], size: int) -> None:
    """Medians, without the first round, which warms both ends."""
    warm = {name: times[1:] for name, times in seconds.items()}
    speed = {name: size / MB / statistics.median(times) for name, times in warm.items()}
    for way in ("up", "down"):
        ratio = statistics.median(theirs / ours for ours, theirs in zip(warm[way], warm[f"raw {way}"], strict=True))
        print(f"{way}: privet {speed[way]:.0f} MB/s; raw TLS 1.3 {speed[f'raw {way}']:.0f} MB/s; ratio {ratio:.2f}")
    both = [(up + down) / 2 for up, down in zip(warm["up"], warm["down"], strict=True)]
    ratio = statistics.median(theirs / ours for ours, theirs in zip(both, warm["flower"], strict=True))
    print(f"Flower's objects, without a network {speed['flower']:.0f} MB/s; ratio {ratio:.1f}")


def serve(folder: Path, size: int, arrays: int) -> None:
    threading.Thread(target=serve_raw, args=(folder, size), daemon=True).start()
    asyncio.run(serve_channel(folder, update(size, arrays)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--arrays", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--serve", type=Path)
    asked = parser.parse_args()
    size = asked.megabytes * MB
    keep_chunks()
    if asked.serve:
        serve(asked.serve, size, asked.arrays)
        return
    with tempfile.TemporaryDirectory() as name:
        certify(Path(name))
        other = subprocess.Popen([sys.executable, __file__, "--serve", name, *sys.argv[1:]], stdout=subprocess.PIPE)
        assert other.stdout is not None
        try:
            ports = json.loads(other.stdout.readline()) | json.loads(other.stdout.readline())
            asyncio.run(measure(Path(name), ports, update(size, asked.arrays), size, asked.repeats))
        finally:
            other.terminate()
            other.wait()


if __name__ == "__main__":
    main()
