"""The services of privet.proto as gRPC's handlers and callables, without a generated stub beside privet_pb2."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from . import privet_pb2

# `request_streaming` and `response_streaming` -> how gRPC's functions are named.
_SHAPES = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def handlers_of(service: str, implementation: object) -> grpc.GenericRpcHandler:
    """Handlers for a service of privet.proto; the implementation has a method of the same name for each of its."""
    methods = {name: _handler(method, getattr(implementation, name)) for name, method in _methods(service).items()}
    return grpc.method_handlers_generic_handler(full_name(service), methods)


def callable_of(channel: Any, service: str, method: str) -> Callable[..., Any]:
    """One method of a service on a channel, sync or aio."""
    described = _methods(service)[method]
    request, response = _messages(described)
    return getattr(channel, _shape(described))(  # type: ignore[no-any-return]  # both kinds of channel have it
        f"/{full_name(service)}/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )


def full_name(service: str) -> str:
    """The service's name with its package, as the health service lists it."""
    return str(privet_pb2.DESCRIPTOR.services_by_name[service].full_name)


def _methods(service: str) -> dict[str, MethodDescriptor]:
    return dict(privet_pb2.DESCRIPTOR.services_by_name[service].methods_by_name)


def _messages(method: MethodDescriptor) -> tuple[Any, Any]:
    return tuple(message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))  # type: ignore[return-value]


def _shape(method: MethodDescriptor) -> str:
    return _SHAPES[bool(method.client_streaming), bool(method.server_streaming)]


def _handler(method: MethodDescriptor, behaviour: Callable[..., Any]) -> Any:
    request, response = _messages(method)
    make = getattr(grpc, f"{_shape(method)}_rpc_method_handler")
    return make(behaviour, request_deserializer=request.FromString, response_serializer=response.SerializeToString)
