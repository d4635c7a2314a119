"""The page of metrics: where it listens, what is on it, and what an address is."""

import logging
import socket
import urllib.request
from collections.abc import Iterator

import pytest
from privet.privacy.errors import ChannelError, UsageError
from privet.privacy.metrics_page import MetricsPage, page_address
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class One(Collector):
    """A page with one number."""

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("privet_one", "One", value=1)


def read(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as page:
        return str(page.read().decode())


def test_page_shows_what_is_collected_and_nothing_else() -> None:
    with MetricsPage("0", One()) as page:
        assert page.address.startswith("127.0.0.1:")
        assert [line for line in read(page.address).splitlines() if not line.startswith("#")] == ["privet_one 1.0"]


def test_closed_page_gives_its_port_back() -> None:
    with MetricsPage("0", One()) as page:
        address = page.address
    with MetricsPage(address, One()) as again:
        assert again.address == address
        assert "privet_one" in read(address)


def test_port_that_is_taken_is_an_error_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ChannelError, match=f"127.0.0.1:{port} cannot be listened on: Address already in use"):
            MetricsPage(str(port), One())


def test_host_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(ChannelError, match=r"192\.0\.2\.1:9464 cannot be listened on"):
        MetricsPage("192.0.2.1:9464", One())


def test_page_that_is_open_to_a_network_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), MetricsPage("0", One()), MetricsPage("localhost:0", One()):
        assert not caplog.records
    with caplog.at_level(logging.WARNING), MetricsPage("0.0.0.0:0", One()):
        assert "without a password" in caplog.text


@pytest.mark.parametrize(
    "asked", ["", "port", "127.0.0.1", ":9464", "host:", "65536", "-1", "1e3", "::1:9464", "a b:1", "٣", "9" * 5000]
)
def test_what_is_no_address_is_a_usage_error(asked: str) -> None:
    with pytest.raises(UsageError, match="--metrics"):
        page_address(asked)
