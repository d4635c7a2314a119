"""Rounds, checked: what began was charged, began once, and was done as the plan says; what was released never began."""

from .bodies import Answered, Begun, Released
from .central import check_central
from .history import Account, History, Key, Release, Run
from .violations import Findings


class RoundAuditor:
    """Checks begins, answers and releases, and adds them to the history."""

    def __init__(self, history: History, findings: Findings) -> None:
        self._history = history
        self._findings = findings

    def begin(self, entry: int, time: str, body: Begun) -> None:
        """A request about to touch records."""
        run = self._history.runs.get(body.run)
        if run is None:
            self._findings.add(entry, "begin", f"run {body.run} was not charged")
            return
        run.last_time = time
        key = (body.stage, body.round, body.attempt)
        if key in run.begun:
            self._findings.add(entry, "begin", f"{_told(run, key)} began before")
            return
        run.begun[key] = body.request
        run.counts[body.stage] += 1
        if run.released is not None:
            self._findings.add(entry, "begin", f"run {run.name} was given back in entry {run.released}")
        if run.is_recovered:
            self._findings.add(entry, "begin", f"run {run.name} was recovered, and cannot go on")
        self._check_within_charge(entry, run, key)

    def answer(self, entry: int, time: str, body: Answered) -> None:
        """What left the institution."""
        run = self._history.runs.get(body.run)
        key = (body.stage, body.round, body.attempt)
        release = Release(entry, time, body.run, *key, body.answer, body.code, body.versions)
        self._history.releases.append(release)
        if run is None or key not in run.begun:
            self._findings.add(entry, "answer", f"run {body.run}, {' '.join(map(str, key))}: it never began")
            return
        run.last_time = time
        if key in run.answered:
            self._findings.add(entry, "answer", f"{_told(run, key)} was answered before")
        run.answered.add(key)
        self._check_execution(entry, run, key, body)

    def release(self, entry: int, time: str, body: Released) -> None:
        """A charge given back."""
        run = self._history.runs.get(body.run)
        if run is None:
            self._findings.add(entry, "release", f"run {body.run} was not charged")
            return
        if run.released is not None:
            self._findings.add(entry, "release", f"run {run.name} was given back in entry {run.released}")
            return
        for is_wrong, why in (
            (bool(run.begun), "had begun"),
            (run.is_recovered, "was recovered, so that it may have begun"),
            (time[:19] < run.expires[:19], f"expires only {run.expires}"),
            (not run.epsilon.is_finite(), "made no claim, and nothing gives that back"),
        ):
            if is_wrong:
                self._findings.add(entry, "release", f"run {run.name} {why}")
        account = self._history.accounts.get(run.account)
        # What had begun stays spent in the auditor's sum, whatever the ledger says.
        run.released = entry
        if account is not None and not run.begun and not run.is_recovered and run.epsilon.is_finite():
            _give_back(account, run)
            account.mark(entry, time, run.name)

    def _check_within_charge(self, entry: int, run: Run, key: Key) -> None:
        if run.submission is None:
            return
        plan, (stage, round_, _) = run.submission.plan, key
        charged = plan.attempts_charged if stage == "train" else plan.evaluations_charged
        if run.counts[stage] > charged:
            why = f"run {run.name}: {stage} request {run.counts[stage]}, and {charged} were charged"
            self._findings.add(entry, "beyond-charge", why)
        if not 1 <= round_ <= plan.run.rounds:
            self._findings.add(entry, "begin", f"run {run.name}: round {round_} of {plan.run.rounds}")

    def _check_execution(self, entry: int, run: Run, key: Key, body: Answered) -> None:
        """What the trainer says it did, against the plan."""
        if run.submission is None:
            return
        plan, claim = run.submission.plan, run.submission.claim
        if plan.privacy.is_central:
            for problem in check_central(run, body):
                self._findings.add(entry, "execution", f"{_told(run, key)}: {problem}")
            return
        planned: dict[str, object] = {"task": plan.run.task}
        needed: tuple[str, ...] = ()
        if body.stage == "train":
            planned |= {"sampling_rate": plan.privacy.sampling_rate, "steps": plan.training.local_steps}
            if claim is not None:
                planned |= {"noise_multiplier": claim.noise_multiplier, "clip_norm": plan.privacy.clip_norm}
                needed = ("noise_multiplier", "clip_norm", "sampling_rate", "steps")
        elif claim is not None and plan.evaluation is not None:
            planned |= {"noise_multiplier": plan.evaluation.noise_multiplier}
            needed = ("noise_multiplier",)
        for name, asked in planned.items():
            done = getattr(body, name)
            if done is None:
                if name in needed:
                    self._findings.add(entry, "execution", f"{_told(run, key)} does not tell its {_spelled(name)}")
            elif done != asked:
                why = f"{_told(run, key)}: {_spelled(name)} {done}, the plan says {asked}"
                self._findings.add(entry, "execution", why)


def _give_back(account: Account, run: Run) -> None:
    account.spent_epsilon -= run.epsilon
    account.spent_delta -= run.delta
    account.spent_divergence -= run.divergence


def _told(run: Run, key: Key) -> str:
    stage, round_, attempt = key
    return f"run {run.name}, {stage} round {round_} attempt {attempt}"


def _spelled(name: str) -> str:
    return name.replace("_", " ")
