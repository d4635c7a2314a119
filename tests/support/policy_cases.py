"""Cases for the policies that ship: who asks for what, on which terms, and what is decided, by which rules.

At the node one permit stands before the defaults, as `privet policy allow` writes one. A case says what is other than
in `NODE_CONTEXT` and `SERVER_CONTEXT`, in which everything is in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from privet.privacy.policy.rules import LARGEST, Entity, Question, Uid, Verdict

Changes = Mapping[str, Any]  # "plan.epsilon": 3000000
PERMITTED, DENIED = Verdict.PERMITTED, Verdict.DENIED

KEY, OTHER_KEY = "a" * 64, "b" * 64
PERMITS = f"""
@id("alice-digits-ward7")
permit (principal == Operator::"alice", action in Action::"participate", resource == Dataset::"ward7")
when {{ principal.key == "{KEY}" && context.plan.task == "digits" }}
when {{ context.account.epsilonOfOperator <= 3000000 }}
when {{ context.time.date <= 20270630 }};

@id("alice-quickstart")
permit (principal == Operator::"alice", action == Action::"runApp", resource == App::"quickstart")
when {{ principal.key == "{KEY}" && context.minNodes >= 3 }};
"""

PLAN: Mapping[str, Any] = {
    "run": "digits-1",
    "name": "digits",
    "project": "",
    "task": "digits",
    "dataset": "ward7",
    "unit": "record",
    "mechanism": "local",
    "isPrivate": True,
    "secureAggregation": False,
    "epsilon": 1_000_000,
    "delta": 10_000_000,
    "noiseMultiplier": 1_100_000,
    "clipNorm": 1_000_000,
    "samplingRate": 200_000,
    "rounds": 20,
    "spareRounds": 2,
    "participations": 22,
    "localSteps": 5,
    "evaluations": 4,
    "evaluationNoise": 20_000_000,
    "metrics": ["accuracy"],
    "strategy": "fedavg",
    "fraction": 1_000_000,
    "minNodes": 2,
    "deadline": 60,
    "updatePrecision": "float32",
    "optimizer": "sgd",
    "learningRate": 1_000_000,
    "momentum": 0,
    "weightDecay": 0,
    "options": ["model.width=64"],
    "seed": 7,
    "expires": 20270630,
}
WITHOUT_CLAIM: Changes = {
    "plan.unit": "none",
    "plan.mechanism": "none",
    "plan.isPrivate": False,
    "plan.epsilon": LARGEST,
    "plan.delta": LARGEST,
    "plan.noiseMultiplier": 0,
    "plan.clipNorm": LARGEST,
}
ACCOUNT: Mapping[str, Any] = {
    "name": "ward7",
    "unit": "record",
    "epsilonLimit": 10_000_000,
    "epsilonAfter": 1_000_000,
    "deltaLimit": 100_000_000,
    "deltaAfter": 10_000_000,
    "epsilonOfOperator": 1_000_000,
    "epsilonOfProject": 1_000_000,
}
TIME: Mapping[str, Any] = {"date": 20270614, "weekday": "monday", "hour": 10, "minute": 30}
TRANSPORT: Mapping[str, Any] = {"tls": 13, "certificateAgeHours": 2}
COHORT: Mapping[str, Any] = {"told": 5, "parties": 5, "arePinned": True}
ADMITTED: Mapping[str, Any] = {
    "plan": PLAN,
    "account": ACCOUNT,
    "approvals": [],
    "time": TIME,
    "transport": TRANSPORT,
}
IN_A_ROUND: Mapping[str, Any] = {**ADMITTED, "cohort": COHORT, "round": 3, "attempt": 1}
APP: Mapping[str, Any] = {
    "run": "quickstart-1",
    "name": "quickstart",
    "minNodes": 3,
    "options": [],
    "expires": 20270630,
    "approvals": [],
    "time": TIME,
    "transport": TRANSPORT,
}
ASKED: Mapping[str, Any] = {"time": TIME, "transport": TRANSPORT}
# By action; of those that are not named, time and transport are all that is known.
NODE_CONTEXT: Mapping[str, Mapping[str, Any]] = {
    "admit": ADMITTED,
    **dict.fromkeys(("train", "evaluate", "releaseUpdate", "releaseMetric"), IN_A_ROUND),
    "runApp": APP,
}
SERVER_CONTEXT: Mapping[str, Mapping[str, Any]] = {
    "submit": {**ASKED, "plan": PLAN},
    "submitApp": {**ASKED, "app": "quickstart", "name": "q", "minNodes": 2, "options": []},
    "joinRun": {"time": TIME},
}

# ---- who, and what ----

KIDNEY, LUNG = ("Project", "kidney"), ("Project", "lung")


def operator(name: str, key: str = KEY, is_pinned: bool = True, *projects: Uid) -> Entity:
    """An operator, in these projects."""
    return Entity(("Operator", name), {"key": key, "isPinned": is_pinned}, projects)


def node(name: str, *projects: Uid) -> Entity:
    """A node, in these projects."""
    return Entity(("Node", name), {"key": KEY}, projects)


def dataset(name: str, task: str = "digits") -> Entity:
    """A declared data set."""
    return Entity(("Dataset", name), {"account": name, "declaredSize": 1200}, (("Task", task),))


def run(*members: str, project: Uid | None = None) -> Entity:
    """A run of alice's, with these nodes, of a project or of none."""
    told: dict[str, Any] = {
        "operator": _named(("Operator", "alice")),
        "state": "running",
        "members": [_named(("Node", member)) for member in members],
    }
    if project:
        told["project"] = _named(project)
    return Entity(("Run", "digits-1"), told, (project,) if project else ())


def _named(uid: Uid) -> Mapping[str, Any]:
    return {"__entity": {"type": uid[0], "id": uid[1]}}


ALICE, BOB = operator("alice"), operator("bob")
CAROL = operator("carol", KEY, True, KIDNEY)  # of the kidney project
AUDITOR = Entity(("Auditor", "officer"), {"key": KEY})
NORTH, SOUTH, WEST = node("north"), node("south"), node("west", KIDNEY)
WARD7, WARD8, QUICKSTART = dataset("ward7"), dataset("ward8"), Entity(("App", "quickstart"))
FEDERATION = Entity(("Federation", "hearts"))
RUN, KIDNEY_RUN, LUNG_RUN = run("north", "west"), run("north", "west", project=KIDNEY), run("north", project=LUNG)
OTHERS = (Entity(("Task", "digits")), Entity(KIDNEY), Entity(LUNG))


@dataclass(frozen=True)
class Case:
    """A question, and what the policies that ship decide. `rules`: those that decide, in order."""

    side: Literal["node", "server"]
    who: Entity
    action: str
    resource: Entity
    changes: Changes
    verdict: Verdict
    rules: tuple[str, ...]

    @property
    def title(self) -> str:
        """The case in a line."""
        terms = [f"{term} {'unbounded' if value == LARGEST else value}" for term, value in self.changes.items()]
        groups = [f"in {name}" for _, name in (*self.who.within, *self.resource.within)]
        key = ["another key"] if self.who.attributes.get("key") == OTHER_KEY else []
        asked = f"{self.side}: {' '.join(self.who.uid)} {self.action} {' '.join(self.resource.uid)}"
        return f"{asked} ({', '.join(key + groups + terms)}): {self.verdict.value} {' '.join(self.rules)}"

    @property
    def question(self) -> Question:
        """What is asked."""
        contexts = NODE_CONTEXT if self.side == "node" else SERVER_CONTEXT
        context = changed(contexts.get(self.action, ASKED), self.changes)
        return Question(self.who, self.action, self.resource, context, OTHERS)


def changed(context: Mapping[str, Any], changes: Changes) -> Mapping[str, Any]:
    """The context with other values: of `plan.epsilon` in its part, of `round` itself."""
    told = {key: dict(value) if isinstance(value, Mapping) else value for key, value in context.items()}
    for term, value in changes.items():
        part, _, name = term.rpartition(".")
        (told[part] if part else told)[name] = value
    return told


def _node(who: Entity, action: str, on: Entity, changes: Changes, verdict: Verdict, *rules: str) -> Case:
    return Case("node", who, action, on, changes, verdict, rules)


def _server(who: Entity, action: str, on: Entity, verdict: Verdict, *rules: str) -> Case:
    return Case("server", who, action, on, {}, verdict, rules)


_ALLOWED, _CLAIM, _WORTH, _ALONE = "alice-digits-ward7", "a-claim-is-made", "a-claim-worth-the-name", "never-alone"

NODE_CASES = (
    # What the permit permits.
    _node(ALICE, "admit", WARD7, {}, PERMITTED, _ALLOWED),
    _node(ALICE, "train", WARD7, {}, PERMITTED, _ALLOWED),
    _node(ALICE, "evaluate", WARD7, {}, PERMITTED, _ALLOWED),
    _node(ALICE, "releaseUpdate", WARD7, {}, PERMITTED, _ALLOWED),
    _node(ALICE, "releaseMetric", WARD7, {}, PERMITTED, _ALLOWED),
    _node(ALICE, "admit", WARD7, {"account.epsilonOfOperator": 3_000_000}, PERMITTED, _ALLOWED),
    _node(ALICE, "admit", WARD7, {"time.date": 20270630}, PERMITTED, _ALLOWED),
    # What it does not.
    _node(BOB, "admit", WARD7, {}, DENIED),
    _node(operator("alice", OTHER_KEY), "admit", WARD7, {}, DENIED),
    _node(ALICE, "admit", WARD8, {}, DENIED),
    _node(ALICE, "admit", WARD7, {"plan.task": "hearts"}, DENIED),
    _node(ALICE, "admit", WARD7, {"account.epsilonOfOperator": 3_000_001}, DENIED),
    _node(ALICE, "admit", WARD7, {"time.date": 20270701}, DENIED),
    _node(ALICE, "train", WARD7, {"time.date": 20270701}, DENIED),
    _node(ALICE, "admit", WARD7, {"account.epsilonOfOperator": LARGEST}, DENIED),
    # A claim is made.
    _node(ALICE, "admit", WARD7, WITHOUT_CLAIM, DENIED, _CLAIM),
    _node(ALICE, "train", WARD7, WITHOUT_CLAIM, DENIED, _CLAIM),
    _node(ALICE, "releaseUpdate", WARD7, WITHOUT_CLAIM, DENIED, _CLAIM),
    _node(BOB, "admit", WARD7, WITHOUT_CLAIM, DENIED, _CLAIM),
    # It is worth the name: at the limit, and one unit beyond.
    _node(ALICE, "admit", WARD7, {"plan.epsilon": 10_000_000}, PERMITTED, _ALLOWED),
    _node(ALICE, "admit", WARD7, {"plan.epsilon": 10_000_001}, DENIED, _WORTH),
    _node(ALICE, "evaluate", WARD7, {"plan.epsilon": 10_000_001}, DENIED, _WORTH),
    _node(ALICE, "admit", WARD7, {"plan.delta": 100_000_000}, PERMITTED, _ALLOWED),
    _node(ALICE, "admit", WARD7, {"plan.delta": 100_000_001}, DENIED, _WORTH),
    _node(ALICE, "admit", WARD7, {"plan.epsilon": LARGEST}, DENIED, _WORTH),
    _node(ALICE, "admit", WARD7, {"plan.epsilon": 1}, PERMITTED, _ALLOWED),
    _node(BOB, "releaseMetric", WARD8, {"plan.delta": LARGEST}, DENIED, _WORTH),
    # Never alone.
    _node(ALICE, "admit", WARD7, {"plan.minNodes": 1}, DENIED, _ALONE),
    _node(ALICE, "train", WARD7, {"plan.minNodes": 1}, DENIED, _ALONE),
    _node(ALICE, "admit", WARD7, {"plan.minNodes": 3}, PERMITTED, _ALLOWED),
    _node(ALICE, "admit", WARD7, {"plan.minNodes": 1, "plan.epsilon": 10_000_001}, DENIED, _WORTH, _ALONE),
    _node(ALICE, "admit", WARD7, {**WITHOUT_CLAIM, "plan.minNodes": 1}, DENIED, _CLAIM, _ALONE),
    # A Flower app has no plan that these rules speak of.
    _node(ALICE, "runApp", QUICKSTART, {}, PERMITTED, "alice-quickstart"),
    _node(ALICE, "runApp", QUICKSTART, {"minNodes": 2}, DENIED),
    _node(ALICE, "runApp", Entity(("App", "another")), {}, DENIED),
    _node(BOB, "runApp", QUICKSTART, {}, DENIED),
)

_KEEP, _CONNECT, _JOIN = "members-keep-their-membership", "nodes-connect", "nodes-join-runs"
_TRAINED, _READ, _AUDIT = "nodes-take-models-they-trained", "operators-read", "auditors-read"
_STEER, _TAKE = "operators-steer", "operators-take-models"
_STEERED, _JOINED = "projects-are-steered-by-their-operators", "projects-are-joined-by-their-nodes"

SERVER_CASES = (
    # Members.
    *(
        _server(who, action, FEDERATION, PERMITTED, _KEEP)
        for who in (NORTH, ALICE, AUDITOR)
        for action in ("renew", "leave", "checkHealth")
    ),
    _server(NORTH, "connect", FEDERATION, PERMITTED, _CONNECT),
    _server(NORTH, "joinRun", RUN, PERMITTED, _JOIN),
    _server(SOUTH, "joinRun", RUN, PERMITTED, _JOIN),
    _server(NORTH, "takeModel", RUN, PERMITTED, _TRAINED),
    _server(SOUTH, "takeModel", RUN, DENIED),
    # A node reads nothing, and steers nothing.
    *(_server(NORTH, action, FEDERATION, DENIED) for action in ("listRuns", "listNodes")),
    _server(NORTH, "readLedger", NORTH, DENIED),
    *(_server(NORTH, action, RUN, DENIED) for action in ("watch", "stop", "resume", "submit", "submitApp")),
    # Who looks.
    *(
        _server(who, action, on, PERMITTED, rule)
        for who, rule in ((ALICE, _READ), (AUDITOR, _AUDIT))
        for action, on in (("listRuns", FEDERATION), ("listNodes", FEDERATION), ("readLedger", NORTH), ("watch", RUN))
    ),
    _server(BOB, "watch", KIDNEY_RUN, PERMITTED, _READ),
    _server(AUDITOR, "watch", KIDNEY_RUN, PERMITTED, _AUDIT),
    # An auditor does nothing else.
    *(
        _server(AUDITOR, action, on, DENIED)
        for on in (RUN, KIDNEY_RUN)
        for action in ("submit", "submitApp", "stop", "resume", "takeModel")
    ),
    # Who acts.
    *(_server(ALICE, action, RUN, PERMITTED, _STEER) for action in ("submit", "submitApp", "stop", "resume")),
    _server(ALICE, "takeModel", RUN, PERMITTED, _TAKE),
    _server(BOB, "stop", RUN, PERMITTED, _STEER),
    # Projects.
    *(_server(CAROL, action, KIDNEY_RUN, PERMITTED, _STEER) for action in ("submit", "submitApp", "stop", "resume")),
    _server(CAROL, "takeModel", KIDNEY_RUN, PERMITTED, _TAKE),
    _server(CAROL, "submit", RUN, PERMITTED, _STEER),
    *(_server(ALICE, action, KIDNEY_RUN, DENIED, _STEERED) for action in ("submit", "submitApp", "stop", "resume")),
    _server(ALICE, "takeModel", KIDNEY_RUN, DENIED, _STEERED),
    _server(CAROL, "takeModel", LUNG_RUN, DENIED, _STEERED),
    _server(WEST, "joinRun", KIDNEY_RUN, PERMITTED, _JOIN),
    _server(WEST, "takeModel", KIDNEY_RUN, PERMITTED, _TRAINED),
    _server(NORTH, "joinRun", KIDNEY_RUN, DENIED, _JOINED),
    _server(WEST, "joinRun", LUNG_RUN, DENIED, _JOINED),
    _server(NORTH, "takeModel", KIDNEY_RUN, DENIED, _JOINED),
    _server(SOUTH, "watch", KIDNEY_RUN, DENIED),
)
CASES = (*NODE_CASES, *SERVER_CASES)
