"""Questions to a node's policy, made by hand: a plan of few terms on one data set, changed as a test needs it."""

from typing import Any

from privet.privacy.policy.rules import END, Entity, Question, Rules

PARTICIPATE = 'principal, action in Action::"participate", resource'
PLAN = {
    "run": "r",
    "name": "study",
    "project": "",
    "task": "digits",
    "dataset": "ward7",
    "unit": "record",
    "mechanism": "local",
    "isPrivate": True,
    "secureAggregation": False,
    "epsilon": 3_000_000,
    "delta": 10_000_000,
    "noiseMultiplier": 800_000,
    "clipNorm": 1_000_000,
    "samplingRate": 100_000,
    "rounds": 3,
    "spareRounds": 1,
    "participations": 4,
    "localSteps": 2,
    "evaluations": 0,
    "evaluationNoise": 2**63 - 1,
    "metrics": [],
    "strategy": "fedavg",
    "fraction": 1_000_000,
    "minNodes": 2,
    "deadline": 2**63 - 1,
    "updatePrecision": "float32",
    "optimizer": "sgd",
    "learningRate": 500_000,
    "momentum": 0,
    "weightDecay": 0,
    "options": [],
    "seed": 0,
    "expires": 20270101,
}
ACCOUNT = {
    "name": "ward7",
    "unit": "record",
    "epsilonLimit": 10_000_000,
    "epsilonAfter": 3_000_000,
    "deltaLimit": 100_000_000,
    "deltaAfter": 10_000_000,
    "epsilonOfOperator": 5_000_000,
    "epsilonOfProject": 3_000_000,
}


def question(operator: str = "alice", dataset: str = "ward7", key: str = "ab", **changes: Any) -> Question:
    """May the operator's plan be admitted? `changes`: of the plan's terms, and of the time's."""
    task = ("Task", "digits")
    time = {"date": 20261122, "weekday": "sunday", "hour": 19, "minute": 0}
    return Question(
        Entity(("Operator", operator), {"key": key, "isPinned": False}),
        "admit",
        Entity(("Dataset", dataset), {"account": "ward7", "declaredSize": 120}, (task,)),
        {
            "plan": PLAN | {name: value for name, value in changes.items() if name in PLAN},
            "account": dict(ACCOUNT),
            "approvals": changes.get("approvals", []),
            "time": time | {name: value for name, value in changes.items() if name in time},
            "transport": {"tls": 13, "certificateAgeHours": 1},
        },
        (Entity(task),),
    )


def rules_of(*texts: str) -> Rules:
    """Rules of these texts."""
    return Rules("\n".join((*texts, END)))


def forbid_unless(name: str, condition: str) -> str:
    """A forbid on whatever a node is asked for a run."""
    return f'@id("{name}") forbid ({PARTICIPATE}) unless {{ {condition} }};'


def permit_when(name: str, condition: str) -> str:
    """A permit of whatever a node is asked for a run."""
    return f'@id("{name}") permit ({PARTICIPATE}) when {{ {condition} }};'
