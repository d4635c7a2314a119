"""Book: what a ledger's entries add up to. A fold over events: every number here can be computed anew from them.

Accounts hold budgets, data sets belong to accounts, runs were charged to them. Nothing here decides; the guard does.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from decimal import Decimal
from typing import Any, Self

from .asked import Asked, Pending, Subject
from .filters import FilterName, renyi_epsilon
from .refused_today import Kind, RefusedToday, kind_of

INFINITE = Decimal("Infinity")
Key = tuple[str, int, int]


@dataclass(slots=True)
class Account:
    """A population x unit x relation, with its budget. `alpha`: the order of a renyi filter, else None.

    `epsilon`, `delta`: the limit. `spent_epsilon`, `spent_delta`: charged, under `additive`. `spent_divergence`:
    charged, under `renyi`. `is_void`: a run without a claim was admitted, so that epsilon is infinite from then on.
    """

    name: str
    unit: str
    relation: str
    epsilon: Decimal
    delta: Decimal
    filter: FilterName
    alpha: int | None
    allows_none: bool
    spent_epsilon: Decimal = Decimal(0)
    spent_delta: Decimal = Decimal(0)
    spent_divergence: Decimal = Decimal(0)
    is_void: bool = False
    is_closed: bool = False

    @property
    def epsilon_spent(self) -> Decimal:
        """What has been charged, as an epsilon: at `spent_delta` (additive) or at `delta` (renyi). Infinite if void."""
        if self.is_void:
            return INFINITE
        if self.filter == "renyi" and self.alpha is not None:
            return renyi_epsilon(self.spent_divergence, self.delta, self.alpha)
        return self.spent_epsilon

    def epsilon_after(self, epsilon: Decimal, divergence: Decimal) -> Decimal:
        """What will have been charged with one more charge, as `epsilon_spent` says it."""
        if self.is_void or not epsilon.is_finite():
            return INFINITE
        if self.filter == "renyi" and self.alpha is not None:
            return renyi_epsilon(self.spent_divergence + divergence, self.delta, self.alpha)
        return self.spent_epsilon + epsilon

    @property
    def epsilon_left(self) -> Decimal:
        """What may still be charged: exact for additive, indicative for renyi."""
        return Decimal(0) if self.is_void or self.is_closed else max(Decimal(0), self.epsilon - self.epsilon_spent)


@dataclass(frozen=True, slots=True)
class DeclaredDataset:
    """A data set as the institution declared it: `path` is where it lies, `declared_size` is public."""

    name: str
    task: str
    path: str
    declared_size: int
    account: str


@dataclass(slots=True)
class RunCharge:
    """A submission that was charged. `epsilon`: its own, by PLD at `delta`; infinite where it makes no claim.

    `operator`, `project`: as its plan names them, so that a recovered charge has them too.
    """

    run: str
    submission: str
    dataset: str
    account: str
    epsilon: Decimal
    delta: Decimal
    divergence: Decimal
    expires: str
    operator: str = ""
    project: str = ""
    is_released: bool = False
    is_recovered: bool = False
    begun: dict[Key, str] = field(default_factory=dict)
    answered: dict[Key, str] = field(default_factory=dict)
    _counts: Counter[str] = field(init=False, repr=False, compare=False)  # of `begun`, by stage

    def __post_init__(self) -> None:
        self._counts = Counter(stage for stage, _, _ in self.begun)

    @property
    def is_ended(self) -> bool:
        """Whether it can begin no attempt any more."""
        return self.is_released or self.is_recovered

    def begin(self, key: Key, request_hash: str) -> None:
        """An attempt has begun, with these bytes."""
        if key not in self.begun:
            self._counts[key[0]] += 1
        self.begun[key] = request_hash

    def count(self, stage: str) -> int:
        """How many attempts of a stage have begun."""
        return self._counts[stage]


@dataclass(frozen=True, slots=True)
class KnownSigner:
    """Who signed the submission of a run, as it was checked when the run was admitted."""

    run: str
    submission: str
    operator: str
    key_fingerprint: str


class Book:
    """Accounts, data sets and charges, by name. `signers` and `apps` (the submission's hash): by run.

    `facts`: what was known when a run was admitted, by run; `policies`: hashes of all that ever decided; `asked`: what
    people were asked to approve, and what they said.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.datasets: dict[str, DeclaredDataset] = {}
        self.runs: dict[str, RunCharge] = {}
        self.owners: set[tuple[str, str, str]] = set()  # (path, unit, account) of every data set that ever was
        self.recovered_heads: set[tuple[int, str]] = set()  # witnessed heads whose charges were taken over
        self.witnessed = 0  # the highest number that a server countersigned
        self.signers: dict[str, KnownSigner] = {}
        self.apps: dict[str, str] = {}
        self.facts: dict[str, str] = {}
        self.policies: set[str] = set()
        self.asked = Asked()
        self.refused = RefusedToday()

    def apply(self, kind: str, content: Mapping[str, Any], time: str = "") -> None:
        """Add one entry's meaning. Unknown kinds are records of something else, and change nothing here."""
        if kind == "refused":
            self._refuse(content, content["code"], kind_of(content["code"]), time)
        if kind == "decision":
            self._decide(content, time)
        fold = _FOLDS.get(kind)
        if fold is not None:
            fold(self, content)

    @property
    def approvals(self) -> Mapping[str, Mapping[str, str]]:
        """What each role said of a submission, by its hash."""
        return self.asked.said

    @property
    def pending(self) -> Mapping[Subject, Pending]:
        """What waits for a person, by run and submission."""
        return self.asked.waiting

    def signer_of(self, run: str, submission: str) -> KnownSigner | None:
        """Who signed it, as it was checked at its admission; None where it was not admitted."""
        known = self.signers.get(run)
        return known if known is not None and known.submission == submission else None

    def _decide(self, content: Mapping[str, Any], time: str) -> None:
        run, verdict = content["run"], content["verdict"]
        if verdict != "permitted":
            self._refuse(content, refused_as(content), "pending" if verdict == "pending" else "denied", time)
        elif content["action"] in _ADMISSIONS:
            self.facts.setdefault(run, content["facts"])
        charged = self.runs.get(run)
        is_charged = charged is not None and charged.submission == content["submission"]
        self.asked.decide(content, time, is_admission=content["action"] in _ADMISSIONS, is_charged=is_charged)

    def _refuse(self, content: Mapping[str, Any], code: str, kind: Kind, time: str) -> None:
        self.refused.note(time[:10], (content["run"], content["submission"], code), kind, content["operator"])

    def dump(self) -> str:
        """Everything, as JSON; `load` reads it back."""
        runs = [
            {name: getattr(run, name) for name in _RUN_FIELDS}
            | {"begun": _listed(run.begun), "answered": _listed(run.answered)}
            for run in self.runs.values()
        ]
        return json.dumps(
            {
                "accounts": [asdict(account) for account in self.accounts.values()],
                "datasets": [asdict(dataset) for dataset in self.datasets.values()],
                "runs": runs,
                "owners": sorted(self.owners),
                "recovered_heads": sorted(self.recovered_heads),
                "witnessed": self.witnessed,
                "signers": [asdict(signer) for signer in self.signers.values()],
                "apps": self.apps,
                "facts": self.facts,
                "policies": sorted(self.policies),
                "asked": self.asked.dump(),
                "refused_today": self.refused.dump(),
            },
            default=str,
        )

    @classmethod
    def load(cls, text: str) -> Self:
        """What `dump` wrote. The caller has checked who wrote it."""
        told, book = json.loads(text), cls()
        for account in told["accounts"]:
            amounts = {key: Decimal(account[key]) for key in _AMOUNTS}
            book.accounts[account["name"]] = Account(**{**account, **amounts})
        for dataset in told["datasets"]:
            book.datasets[dataset["name"]] = DeclaredDataset(**dataset)
        for run in told["runs"]:
            amounts = {key: Decimal(run[key]) for key in ("epsilon", "delta", "divergence")}
            pairs = {key: {(s, r, a): value for s, r, a, value in run[key]} for key in ("begun", "answered")}
            book.runs[run["run"]] = RunCharge(**{**run, **amounts, **pairs})
        book.owners = {(path, unit, account) for path, unit, account in told["owners"]}
        book.recovered_heads = {(sequence, digest) for sequence, digest in told["recovered_heads"]}
        book.witnessed = told["witnessed"]
        # Snapshots of a ledger without signatures have none of these.
        book.signers = {signer["run"]: KnownSigner(**signer) for signer in told.get("signers", ())}
        book.apps = dict(told.get("apps", {}))
        book.facts = dict(told.get("facts", {}))
        book.policies = set(told.get("policies", ()))
        book.asked = Asked.load(told.get("asked", {}))
        book.refused = RefusedToday.load(told.get("refused_today", {}))
        return book


_RUN_FIELDS = tuple(field.name for field in fields(RunCharge) if field.init)
_AMOUNTS = ("epsilon", "delta", "spent_epsilon", "spent_delta", "spent_divergence")


def _listed(entries: Mapping[Key, str]) -> list[tuple[str, int, int, str]]:
    return [(*key, value) for key, value in entries.items()]


_ADMISSIONS = ("admit", "runApp")


def refused_as(decision: Mapping[str, Any]) -> str:
    """What makes one denial by the policy another than the next: the action, what decided, and the policy."""
    return "/".join(decision[key] for key in ("action", "verdict", "rules", "policy"))


def attempt_key(content: Mapping[str, Any]) -> Key:
    """Stage, round and attempt of a `begin` or `answer` entry."""
    return (content["stage"], int(content["round"]), int(content["attempt"]))


def _open_account(book: Book, content: Mapping[str, Any]) -> None:
    book.accounts[content["account"]] = Account(
        name=content["account"],
        unit=content["unit"],
        relation=content["relation"],
        epsilon=Decimal(content["epsilon"]),
        delta=Decimal(content["delta"]),
        filter=content["filter"],
        alpha=int(content["alpha"]) if "alpha" in content else None,
        allows_none=content["allows_none"] == "yes",
    )


def _raise_account(book: Book, content: Mapping[str, Any]) -> None:
    book.accounts[content["account"]].epsilon = Decimal(content["epsilon"])


def _close_account(book: Book, content: Mapping[str, Any]) -> None:
    book.accounts[content["account"]].is_closed = True


def _add_dataset(book: Book, content: Mapping[str, Any]) -> None:
    book.datasets[content["dataset"]] = DeclaredDataset(
        name=content["dataset"],
        task=content["task"],
        path=content["path"],
        declared_size=int(content["declared_size"]),
        account=content["account"],
    )
    unit = book.accounts[content["account"]].unit
    book.owners.add((content["path"], unit, content["account"]))


def _remove_dataset(book: Book, content: Mapping[str, Any]) -> None:
    del book.datasets[content["dataset"]]


def _sign(book: Book, content: Mapping[str, Any]) -> None:
    told = (content[key] for key in ("run", "submission", "operator", "key_fingerprint"))
    book.signers[content["run"]] = KnownSigner(*told)


def _run_app(book: Book, content: Mapping[str, Any]) -> None:
    book.apps[content["run"]] = content["submission"]


def _charge(book: Book, content: Mapping[str, Any]) -> None:
    operator, project = _asked_by(content["plan"])
    run = RunCharge(
        run=content["run"],
        submission=content["submission"],
        dataset=content["dataset"],
        account=content["account"],
        epsilon=Decimal(content["epsilon"]),
        delta=Decimal(content["delta"]),
        divergence=Decimal(content["divergence"]),
        expires=content["expires"],
        operator=operator,
        project=project,
    )
    book.runs[run.run] = run
    _spend(book.accounts[run.account], run, Decimal(1))


def _asked_by(plan: str) -> tuple[str, str]:
    """Operator and project of a submission, as its canonical text has them."""
    told = json.loads(plan)
    return told["operator"], told["plan"]["run"].get("project", "")


def _take_policy(book: Book, content: Mapping[str, Any]) -> None:
    book.policies.add(content["hash"])


def _approve(book: Book, content: Mapping[str, Any]) -> None:
    book.asked.answer(content)


def _recover_charge(book: Book, content: Mapping[str, Any]) -> None:
    """A charge that only the witness remembered: spent in full, and never to be continued."""
    _charge(book, content)
    book.runs[content["run"]].is_recovered = True


def _recover(book: Book, content: Mapping[str, Any]) -> None:
    book.recovered_heads.add((int(content["head_sequence"]), content["head_hash"]))


def _witness(book: Book, content: Mapping[str, Any]) -> None:
    book.witnessed = max(book.witnessed, int(content["sequence"]))


def _release(book: Book, content: Mapping[str, Any]) -> None:
    run = book.runs[content["run"]]
    run.is_released = True
    book.asked.forget(run.run)
    _spend(book.accounts[run.account], run, Decimal(-1))


def _spend(account: Account, run: RunCharge, sign: Decimal) -> None:
    if not run.epsilon.is_finite():
        account.is_void = True  # nothing gives that back
        return
    account.spent_epsilon += sign * run.epsilon
    account.spent_delta += sign * run.delta
    account.spent_divergence += sign * run.divergence


def _begin(book: Book, content: Mapping[str, Any]) -> None:
    book.runs[content["run"]].begin(attempt_key(content), content["request"])


def _answer(book: Book, content: Mapping[str, Any]) -> None:
    book.runs[content["run"]].answered[attempt_key(content)] = content["answer"]


_FOLDS = {
    "account": _open_account,
    "raise": _raise_account,
    "close": _close_account,
    "dataset": _add_dataset,
    "dataset-removed": _remove_dataset,
    "operator": _sign,
    "app": _run_app,
    "policy": _take_policy,
    "approval": _approve,
    "charge": _charge,
    "recovered-charge": _recover_charge,
    "recovered": _recover,
    "witnessed": _witness,
    "release": _release,
    "begin": _begin,
    "answer": _answer,
}
