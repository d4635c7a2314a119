"""Which connected nodes a run asks, and what the operator is told of the others."""

from datetime import UTC, datetime

from privet.server.fit import fit_for_app, fit_for_task
from privet.server.stream import NodeView


def node(
    name: str, tasks: dict[str, str] | None = None, apps: tuple[str, ...] = (), is_paused: bool = False
) -> NodeView:
    return NodeView(
        name=name,
        node_id=len(name),
        address="ipv4:127.0.0.1:1",
        version="0",
        python="3",
        since=0.0,
        is_paused=is_paused,
        tasks=tasks or {},
        apps=apps,
        certificate_expires=datetime(2030, 1, 1, tzinfo=UTC),
        key_fingerprint="",
        answered=0,
        last_answer=None,
        last_run="",
    )


def names(nodes: list[NodeView]) -> list[str]:
    return [node.name for node in nodes]


def test_node_with_another_version_of_the_task_is_not_asked_and_the_operator_sees_why() -> None:
    kept: list[str] = []
    fit = fit_for_task("digits", None, kept.append)
    asked, notes = fit([node("a", {"digits": "1"}), node("b", {"digits": "2"}), node("c", {"digits": "1"})])
    assert names(asked) == ["a", "c"]
    assert notes == {"b": "has task digits 2, the run 1"}
    assert kept == ["1"]


def test_version_stays_once_it_was_chosen() -> None:
    """Also where more nodes offer another one later, and after a restart of the server."""
    kept: list[str] = []
    fit = fit_for_task("digits", None, kept.append)
    fit([node("a", {"digits": "1"})])
    many = [node("a", {"digits": "1"}), node("b", {"digits": "2"}), node("c", {"digits": "2"})]
    assert names(fit(many)[0]) == ["a"]
    assert names(fit_for_task("digits", kept[0], kept.append)(many)[0]) == ["a"]
    assert kept == ["1"]


def test_of_two_versions_as_common_the_higher_is_chosen() -> None:
    fit = fit_for_task("digits", None, lambda version: None)
    assert names(fit([node("a", {"digits": "2"}), node("b", {"digits": "1"})])[0]) == ["a"]


def test_nothing_is_chosen_before_a_node_offers_the_task() -> None:
    kept: list[str] = []
    fit = fit_for_task("digits", None, kept.append)
    assert fit([node("a", {"other": "9"})]) == ([], {"a": "offers no data set for task digits"})
    assert kept == []
    assert names(fit([node("b", {"digits": "3"})])[0]) == ["b"]


def test_paused_node_is_not_asked() -> None:
    paused = node("a", {"digits": "1"}, ("app",), is_paused=True)
    assert fit_for_task("digits", "1", lambda version: None)([paused]) == ([], {"a": "paused"})
    assert fit_for_app("app")([paused]) == ([], {"a": "paused"})


def test_only_nodes_that_allow_an_app_are_asked_for_it() -> None:
    asked, notes = fit_for_app("hello")([node("a", apps=("hello", "other")), node("b", apps=("other",))])
    assert names(asked) == ["a"]
    assert notes == {"b": "does not allow app hello"}
