"""Workers on a Ray cluster: of the one that RAY_ADDRESS names, else of one that is started here and ends with the run.

A cluster that is started here listens on this machine's own address only. Nobody is asked who he is by Ray: whoever
reaches a cluster's ports can run programs on it, and read and change what its workers can. So a cluster of several
machines belongs in a network of its own.
"""

import json
import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

from ..privacy.errors import FederationError, UsageError
from .ray_actor import NodeActor, Place
from .ray_installed import ADDRESS
from .versions import versions

# Importing torch and loading the data, on a machine that is busy; also how long a cluster may take to find room.
START_SECONDS = 180.0
PARTING_SECONDS = 10.0  # for what has begun to end, before a worker is ended
_LOOPBACK = "127.0.0.1"

log = logging.getLogger("privet.node")


class LostError(Exception):
    """A worker has ended, or its reply is gone with a machine."""


class RayWorkers:
    """NodeActors by number, on as many processor cores. `asked`: how many; by default one for each core there is."""

    def __init__(self, place: Place, asked: int | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers otherwise
        import ray

        self._ray: Any = ray
        self._place = place
        self._is_ours = not ray.is_initialized()
        try:
            if self._is_ours:
                _join(ray, min(asked or len(os.sched_getaffinity(0)), place.nodes))
            cores = int(ray.cluster_resources().get("CPU", 0))
            self._actors = [self._started() for _ in range(max(1, min(asked or cores, cores, place.nodes)))]
            self._check(range(len(self._actors)))
        except BaseException:
            self._leave()
            raise

    def __len__(self) -> int:
        return len(self._actors)

    def send(self, number: int, node_id: int, request: bytes) -> Any:
        """Have a worker serve a request, after those before it; what stands for the reply."""
        return self._actors[number].serve.remote(node_id, request)

    def first_of(self, replies: Sequence[Any]) -> Any:
        """One of them that is there, when there is one."""
        return self._ray.wait(list(replies), num_returns=1)[0][0]

    def content(self, reply: Any) -> bytes | None:
        """The reply's frames; None where the worker could make none. Raises LostError."""
        try:
            content: bytes = self._ray.get(reply)
            return content
        except self._ray.exceptions.RayTaskError as error:
            log.error("a worker of Ray could not answer: %s", error)
            return None
        except self._ray.exceptions.RayError as error:
            raise LostError(str(error)) from None

    def replace(self, number: int) -> None:
        """Another worker for one that has ended. Raises FederationError where none can be started."""
        log.warning("worker %d of Ray has ended; another takes its nodes", number)
        self._ray.kill(self._actors[number])  # should it live on, it would have their ledgers open too
        self._actors[number] = self._started()
        self._check([number])

    def close(self) -> None:
        """Let what has begun end, let go of the ledgers, and leave the cluster."""
        try:
            self._ray.wait(
                [actor.close.remote() for actor in self._actors],
                num_returns=len(self._actors),
                timeout=PARTING_SECONDS,
            )
            for actor in self._actors:
                self._ray.kill(actor)
        except self._ray.exceptions.RayError as error:  # a cluster that is gone
            log.warning("Ray: %s", error)
        finally:
            self._leave()

    def _started(self) -> Any:
        gpus = self._ray.cluster_resources().get("GPU", 0) if self._place.device.startswith("cuda") else 0
        cores = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        options = {"num_cpus": 1, "num_gpus": min(1.0, gpus / cores) if gpus else 0, "max_restarts": 0}
        return self._ray.remote(**options)(NodeActor).remote(self._place.text())

    def _check(self, numbers: Sequence[int]) -> None:
        """Wait until they are there, and see that they compute with what this program computes with."""
        try:
            told = self._ray.get([self._actors[n].versions.remote() for n in numbers], timeout=START_SECONDS)
        except self._ray.exceptions.GetTimeoutError:
            raise FederationError(
                f"Ray has not started {len(numbers)} workers in {START_SECONDS:g} s", "see what else the cluster is at"
            ) from None
        except self._ray.exceptions.RayError as error:
            raise FederationError(f"Ray cannot start a worker: {_reason(error)}", _SAME) from None
        ours = versions()
        for theirs in map(json.loads, told):
            other = [f"{name} {theirs.get(name)}, here {ours[name]}" for name in ours if theirs.get(name) != ours[name]]
            if other:
                raise FederationError(f"a worker of Ray has {'; '.join(other)}", _SAME)

    def _leave(self) -> None:
        if self._is_ours:
            self._ray.shutdown()


def _join(ray: Any, cores: int) -> None:
    """Connect to the cluster that the environment names, or start one of so many cores."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get(ADDRESS) or "local"
    ours = {"num_cpus": cores, "include_dashboard": False, "_node_ip_address": _LOOPBACK}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own, on what it will do otherwise in future
            ray.init(address=address, **quiet, **(ours if address == "local" else {}))
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "Ray cannot be started" if address == "local" else f"no cluster of Ray at {address}"
        raise UsageError(f"{where}: {_reason(error)}", f"mend {ADDRESS}, or unset it") from None


def _reason(error: Exception) -> str:
    """The last line, which says it: Ray's texts hold whole tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


_SAME = "install the same privet, with what it needs, on every machine, and give all of them the folder of the run"
