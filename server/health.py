"""Whether the server that runs here serves: one call to the health service of its enrolment port, over its own TLS.

No certificate of a member is needed for it, so a container or a monitor may ask. The server must show a certificate of
this federation, for the name that its members dial.
"""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ..privacy.channel.credentials import enrolment_credentials
from ..privacy.channel.token import host_and_port
from ..privacy.errors import ChannelError
from .federation_home import FederationHome

SECONDS = 5.0  # for the call, handshake and all: loopback takes milliseconds
_EVERY_INTERFACE = {"::": "localhost", "0.0.0.0": "127.0.0.1"}
_SEE = "see the log of privet server"


def check_serving(home: FederationHome, listened: str, seconds: float = SECONDS) -> str:
    """A line that says it serves; raise ChannelError where it does not. `listened`: its enrolment port, `HOST:PORT`."""
    host, _, port = listened.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    address = f"{_EVERY_INTERFACE.get(bare, host)}:{port}"
    name = host_and_port(home.facts.enrolment_address)[0]
    options = (("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0))
    with grpc.secure_channel(address, enrolment_credentials(home.root), options) as channel:
        try:
            told = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.RpcError as error:
            raise ChannelError(f"{address} does not serve: {' '.join(str(error.details()).split())}", _SEE) from None
    if told.status != health_pb2.HealthCheckResponse.SERVING:
        raise ChannelError(f"{address} says {health_pb2.HealthCheckResponse.ServingStatus.Name(told.status)}", _SEE)
    return f"{address} serves federation {home.facts.name}"
