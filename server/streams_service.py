"""The gRPC service Nodes: a node's stream, and the model of a run that it took part in."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel.credentials import Peer
from ..privacy.channel.services import full_name
from ..privacy.errors import PrivetError, UsageError
from .control import parts_of
from .link import Hub

Context = Any  # grpc.aio.ServicerContext, which is generic in types that no handler reads


class Models(Protocol):
    """Where the models of finished runs lie."""

    def model_of(self, run_id: str, node: str) -> Path:
        """The model's file for a node that took part; raise UsageError for any other."""
        ...


class NoModels:
    """A hub without runs."""

    def model_of(self, run_id: str, node: str) -> Path:
        """See Models."""
        raise UsageError(f"no run {run_id}", "privet node status")


def streams_handlers(hub: Hub, peer: Callable[[Any], Peer], models: Models | None = None) -> grpc.GenericRpcHandler:
    """The handlers of Nodes. Frames pass as bytes: the hub reads them, and sends what was serialized before."""
    found = models or NoModels()

    async def connect(_: object, context: Context) -> None:
        await hub.connect(context, peer(context))

    async def model(request: pb.RunRequest, context: Context) -> AsyncIterator[pb.Part]:
        name = peer(context).identity.name
        try:
            path = await asyncio.to_thread(found.model_of, request.run_id, name)
            async for part in parts_of(path):
                yield pb.Part(content=part)
        except PrivetError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{error.message}; {error.remedy}")

    methods = {
        "Connect": grpc.stream_stream_rpc_method_handler(connect),
        "Model": grpc.unary_stream_rpc_method_handler(
            model, request_deserializer=pb.RunRequest.FromString, response_serializer=pb.Part.SerializeToString
        ),
    }
    return grpc.method_handlers_generic_handler(full_name("Nodes"), methods)
