"""The gRPC service Nodes: a node's stream, and the model of a run that it took part in."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel.credentials import Peer
from .link import Hub

# A run's model for a node: parts of the file, or nothing where the node took no part. Raises PrivetError otherwise.
ModelOf = Callable[[str, str], Awaitable[AsyncIterator[bytes] | None]]


def streams_handler(
    hub: Hub, peer: Callable[[object], Peer], model_of: ModelOf | None = None
) -> grpc.GenericRpcHandler:
    """The handlers of Nodes. Frames pass as bytes: the hub reads them, and sends what was serialized before."""

    async def connect(_: object, context: "grpc.aio.ServicerContext[Any, Any]") -> None:
        await hub.connect(context, peer(context))

    methods = {"Connect": grpc.stream_stream_rpc_method_handler(connect)}
    return grpc.method_handlers_generic_handler("privet.v1.Nodes", methods)


__all__ = ["pb", "streams_handler"]
