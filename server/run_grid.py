"""RunGrid: what a run of the server needs of its Grid beyond Flower's."""

from abc import abstractmethod
from collections.abc import Mapping, Set

from flwr.serverapp import Grid


class RunGrid(Grid):
    """Flower's Grid for one run over a network: nodes come and go, and an operator may stop it from another thread."""

    @abstractmethod
    def wait_for_nodes(self, least: int) -> None:
        """Return when so many nodes that are fit for the run are connected; raise InterruptedRunError when stopped."""

    def wait_for_names(self, names: Set[str], seconds: float) -> None:
        """Return when all of these are connected, or after so long; at once where nodes do not come and go."""

    def revisions(self) -> Mapping[int, str]:
        """Of the nodes that are connected and fit: another word whenever what a node refused may be permitted now."""
        return {}

    def wait_for_revisions(self, seen: Mapping[int, str], seconds: float) -> None:
        """Return when `revisions` are other than these, or after so long; raise InterruptedRunError when stopped."""

    def has_left(self, node_id: int) -> bool:
        """Whether the node was revoked, or left the federation: it does not come back by itself."""
        return False

    def rest(self, seconds: float) -> None:
        """Return after so long; raise InterruptedRunError when stopped. At once where nodes do not change."""

    @abstractmethod
    def stop(self) -> None:
        """Make whatever waits, now or later, raise InterruptedRunError. From any thread, and more than once."""

    @abstractmethod
    def close(self) -> None:
        """Nobody waits for answers any more."""

    @abstractmethod
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received for this run, since this grid was made."""

    @abstractmethod
    def notes(self) -> Mapping[str, str]:
        """Connected nodes that are not asked, by name, and why: another version of the task, say."""

    @abstractmethod
    def name_of(self, node_id: int) -> str:
        """The name in the node's certificate."""
