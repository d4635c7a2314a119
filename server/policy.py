"""The server's policy: asked about every call at the main port, and about which nodes a run asks.

The rules:
1. What the file says holds from the next decision on; what does not validate replaces nothing (policy_file.py). A
   stream that is open goes on: a node's until it connects again, a reader's until it has read to the end.
2. A federation that was made before there were policies has no file. Then the policy that ships holds, until there is
   one. A file that is there and was never valid permits nothing, nor does one that is taken away: also after a restart,
   because a mark beside it remembers that there was one.
3. Every decision goes to the log before it is told. Which runs stand in a list, or in a hint, is decided run by run
   like `watch`, and not entered: that the list was asked for is.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..privacy.budget.ledger import Clock, system_clock
from ..privacy.channel.credentials import Peer
from ..privacy.channel.files import write_whole
from ..privacy.errors import Refusal, RefusedError
from ..privacy.policy.policy_file import PolicyFile, default_policy, nothing
from ..privacy.policy.rules import Decision, Rules
from ..privacy.policy.vocabulary import covered
from .decision_log import DecisionLog
from .federation_home import policy_mark
from .questions import Questions
from .run_book import unknown_run
from .run_record import RunRecord

log = logging.getLogger("privet.server")

_NO_POLICY = "the server has no valid policy"


class HeldRules:
    """The rules that hold now: those in the file, or those that ship where there was never one."""

    def __init__(self, file: PolicyFile) -> None:
        self._file = file
        self._mark = policy_mark(file.path)
        self._shipped: Rules | None = None
        self._was_there = self._mark.exists()

    def __call__(self) -> Rules:
        """The rules; those that permit nothing where the file was never valid."""
        rules = self._file.rules()
        if not self._was_there and (rules is not nothing() or self._file.path.exists()):
            self._was_there = True
            self._remember()
        if self._was_there:
            return rules
        if self._shipped is None:
            log.warning("%s: there is no policy; the one that ships with privet holds", self._file.path)
            self._shipped = Rules(default_policy("server"))
        return self._shipped

    def _remember(self) -> None:
        try:
            write_whole(self._mark, b"")
        except OSError as error:
            log.error("%s cannot be written, a restart does not know of the policy: %s", self._mark, error.strerror)


class ServerPolicy:
    """Decides, and writes down what was decided. Threads may share it; never call it in an event loop."""

    def __init__(
        self, rules: Callable[[], Rules], questions: Questions, decisions: DecisionLog, clock: Clock = system_clock
    ) -> None:
        self._rules = rules
        self._questions = questions
        self._decisions = decisions
        self._clock = clock

    def check(self, peer: Peer, method: str, request: Any) -> None:
        """Return where the call is permitted.

        Raises ChannelError for a method that is closed to the caller, RefusedError for a denial, and where it is
        permitted whatever is wrong with the request.
        """
        asked = self._questions.of_call(peer, method, request, self._clock())
        rules = self._rules()
        decision = rules.decide(asked.question)
        self._decisions.enter(asked.question, decision, self._clock())
        if not decision.is_permitted:
            raise RefusedError(
                Refusal.POLICY_DENIED,
                f"{peer.identity.name} may not {asked.deed}: {why(rules, decision)}",
                "ask the coordinator; privet policy explain at the server says more",
            )
        if asked.unknown_run:
            may_watch, runs = self.watching(peer), self._questions.runs.records()
            raise unknown_run(asked.unknown_run, [record.run_id for record in runs if may_watch(record)])
        if asked.problem is not None:
            raise asked.problem

    def watching(self, peer: Peer) -> Callable[[RunRecord], bool]:
        """Whether the peer may watch a run, by the rules of now. Runs that no rule tells apart are decided once."""
        rules, question_of = self._rules(), self._questions.of_watching(peer, self._clock())
        is_named, has_members = _what_tells_runs_apart(rules)
        kept: dict[object, bool] = {}

        def may_watch(record: RunRecord) -> bool:
            asked = record if has_members else replace(record, standing={})  # thousands of members take long
            alike = (asked.run_id if is_named else "", asked.operator, asked.project, asked.state, asked.members)
            if alike not in kept:
                kept[alike] = rules.decide(question_of(asked)).is_permitted
            return kept[alike]

        return may_watch


def _what_tells_runs_apart(rules: Rules) -> tuple[bool, bool]:
    """Whether a rule about `watch` may name a run, and whether it may read who has trained in one.

    Read from the rules as Cedar has parsed them, where a name stands without escapes.
    """
    told = json.dumps([rule.form for rule in rules.rules if "watch" in covered(rule.form)])
    return '"Run"' in told, '"members"' in told


def why(rules: Rules, decision: Decision) -> str:
    """Why a member is denied, as it is told. What failed in an evaluation is in the server's log alone."""
    if rules is nothing():
        return _NO_POLICY
    if decision.error:
        log.error("the policy could not be evaluated: %s", decision.error)
        return "the server's policy could not be evaluated"
    return decision.why
