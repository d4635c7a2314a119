"""Metrics page: what a program that stays says of itself to Prometheus, over HTTP, on a port of its own.

The rules:
1. There is no page unless it is asked for, and it listens on loopback unless another host is named.
2. Nothing on it is derived from records: no loss, no size of a batch, no time that training took, no epsilon. A page
   has a registry of its own, so that no library adds to it; see docs/deploy.md.
3. It is read without a password. Whoever opens it to a network is told so.
"""

import ipaddress
import logging
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.registry import Collector

from .errors import ChannelError, UsageError

log = logging.getLogger("privet.metrics")

LOOPBACK = "127.0.0.1"
_LARGEST_PORT = 65535


class MetricsPage:
    """One page, served from threads of its own until it is closed. `address`: `HOST:PORT`."""

    def __init__(self, asked: str, collector: Collector) -> None:
        """Open the page at `[HOST:]PORT`; raise UsageError for what is no address, ChannelError where it is taken."""
        host, port = page_address(asked)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise ChannelError(
                f"metrics: {host}:{port} cannot be listened on: {why}", "--metrics with another port, or another host"
            ) from None
        self.address = f"{host}:{self._server.server_port}"
        if not _is_loopback(host):
            log.warning("metrics at %s are read without a password by whoever reaches that port", self.address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No page any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def page_address(asked: str) -> tuple[str, int]:
    """Host and port of `[HOST:]PORT`; raise UsageError for anything else.

    >>> page_address("9464"), page_address("0.0.0.0:9464"), page_address("[::1]:9464")
    (('127.0.0.1', 9464), ('0.0.0.0', 9464), ('::1', 9464))
    """
    host, colon, port = asked.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and int(port[:6]) <= _LARGEST_PORT
    if not is_port or (colon and not bare) or (":" in bare and bare == host) or any(c.isspace() for c in bare):
        raise UsageError(f"--metrics {asked[:100]}: not a port, nor a host and a port", "--metrics 9464")
    return bare or LOOPBACK, int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
