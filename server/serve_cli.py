"""`privet server`: the federation's server, until it is told to stop."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from ..privacy.alone import only_one
from ..privacy.home import Home
from ..privacy.log_lines import Level, LogJson, LogLevel, write_logs
from ..privacy.service_manager import READY, STOPPING, status, tell_manager

AsText = Annotated[str | None, typer.Option(metavar="HOST:PORT")]


def serve(
    listen: Annotated[
        str | None,
        typer.Option(help="Main port (default: every interface, the port of the address).", metavar="HOST:PORT"),
    ] = None,
    enrolment_listen: Annotated[
        str | None, typer.Option(help="Enrolment port (default: likewise).", metavar="HOST:PORT")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="SQLite in the home by default; or postgresql+psycopg://…", metavar="URL")
    ] = None,
    grace: Annotated[float, typer.Option(help="Seconds in which a node that went away may come back.", min=0)] = 60.0,
    deadline: Annotated[
        float, typer.Option(help="Seconds for a round's answers, where the plan has no deadline.", min=0.1)
    ] = 3600.0,
    metrics: Annotated[
        str | None,
        typer.Option(help="Metrics for Prometheus (default: none; HOST: loopback).", metavar="[HOST:]PORT"),
    ] = None,
    healthcheck: Annotated[
        bool, typer.Option("--healthcheck", help="Ask the server that runs here whether it serves, and end.")
    ] = False,
    log_json: LogJson = False,
    log_level: Level = LogLevel.INFO,
) -> None:
    """Run the federation's server: nodes connect to it, operators submit runs to it.

    Ctrl-C or SIGTERM stops it; runs keep their state and go on when it starts again.
    """
    from .federation_home import FEDERATION, FederationHome
    from .serving import ServerOptions

    home = FederationHome.load(Home.of(os.environ).root / FEDERATION)
    write_logs(log_json, log_level)
    enrolling = enrolment_listen or _everywhere(home.facts.enrolment_address)
    if healthcheck:
        from .health import check_serving

        print(check_serving(home, enrolling))
        return
    options = ServerOptions(
        listen=listen or _everywhere(home.facts.address),
        enrolment_listen=enrolling,
        database=database or os.environ.get("PRIVET_DATABASE") or home.database,
        grace=grace,
        deadline=deadline,
        metrics=metrics,
    )
    asyncio.run(_served(home.folder, options))


async def _served(folder: Path, options: "ServerOptions") -> None:  # type: ignore[name-defined]  # noqa: F821
    from ..privacy.channel.memory import keep_chunks
    from .federation_home import FederationHome
    from .serving import Server

    keep_chunks()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    home = FederationHome.load(folder)
    with only_one(folder / "server.lock", f"{folder}: a server of this federation runs already", "stop it first"):
        await _until_stopped(Server(home, options), stopped)


async def _until_stopped(server: "Server", stopped: asyncio.Event) -> None:  # type: ignore[name-defined]  # noqa: F821
    home, options = server.home, server.options
    await server.start()
    print(f"federation {home.facts.name}: nodes and operators reach this server at {home.facts.address}")
    print(f"listening on {options.listen} (mutual TLS) and {options.enrolment_listen} (enrolment)")
    if server.metrics_address:
        print(f"metrics at http://{server.metrics_address}/metrics")
    print("open both ports to the institutions, and none at them; stop with Ctrl-C or SIGTERM", flush=True)
    tell_manager(READY, status(f"federation {home.facts.name} at {home.facts.address}"))
    await stopped.wait()
    tell_manager(STOPPING)
    try:
        print("stopping: runs keep their state", flush=True)
    finally:  # whether or not somebody reads it
        await server.stop()


def _everywhere(address: str) -> str:
    """Every interface, at the address' port; loopback alone where the address is loopback."""
    host, _, port = address.rpartition(":")
    return address if host in ("localhost", "127.0.0.1", "[::1]") else f"[::]:{port}"
