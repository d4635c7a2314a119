"""Federation: the story of a run at the server, from top to bottom.

    roster -> initial model -> (cohort -> ask -> aggregate -> evaluate -> checkpoint -> who has come?) x rounds

The server holds no model code and sees no records. Of what a node says it believes only what it can check: an update
has the model's names and shapes and finite values, and weighs what the node declared before the run. A run that was
killed goes on from its newest checkpoint; nodes that had answered send the kept answer again.

Nodes come and go. Each is asked once who it is, with the submission in hand, so that it may refuse before it is asked
to train; one that connects later joins the next round; one that went away is one that does not answer. A round waits
for its answers until the plan's deadline, and ends there without the others if `min-nodes` have answered.

A node whose policy, or a person, keeps it from taking part is asked again when it says that its rules have changed. The
run goes on without it; where too few are left, it waits for those who have not spoken yet (roster.py, minds.py).
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ..privacy.budget.guard import SERVERS_CLAIM
from ..privacy.channel import words
from ..privacy.channel.arrays import as_record, to_parameters, to_record
from ..privacy.errors import REFUSAL_CODES, FederationError, PlanError, Refusal
from ..privacy.parameters import Array, Parameters, hash_of
from ..privacy.submission import Submission
from . import strategies
from .aggregation import RunningAverage
from .checkpoints import Checkpoints, RoundReport, State
from .cohort import choose_cohort
from .events import Answered, Evaluated, Missed, RoundBegun, Saved, Tell, unheard
from .gathered import Gathered, Held, HeldUpdate, restated
from .minds import Minds
from .replies import Failure, checked_metrics, checked_update, code_in, size_of
from .roll_call import NameOf, RollCall, texts_of
from .roster import NO_ANSWER, REVISED
from .witnesses import Witnesses

# A refusal of these kinds may end with another attempt; any other ends a node's part in the run.
_RETRIED = {Refusal.ATTEMPT_SPENT, Refusal.TASK_FAILED}
_INITIAL_WITNESSES = 2

_Answer = TypeVar("_Answer")

Watch = Callable[[State], None]
Muster = Callable[[int], None]


class Seal(Protocol):
    """What a node needs to see that an operator has signed the submission."""

    @property
    def signature(self) -> bytes:
        """By the operator's key."""
        ...

    @property
    def certificates(self) -> bytes:
        """PEM: the operator's and its issuer's."""
        ...


class Federation:
    """Carries out one submission over a Flower Grid.

    `watch` gets the state after every round, once it is durable; `tell` what happens meanwhile. `timeout`: seconds for
    a round's answers where the plan has no deadline; `patience`: seconds for saying who one is. `name_of`: a node's
    name as the channel knows it; without it a node's own word counts. `seal`: the signature, for the nodes to check.
    `muster`: waits until so many nodes are there, before a round and before asking again. `minds`: waits until a node
    may have changed its mind; without it none does, and a run that lacks nodes fails. `held`: updates that the grid
    does not hand over, where the strategy needs no more than their average.
    """

    adds_noise = False  # one that does is another kind: central_federation.py

    def __init__(
        self,
        submission: Submission,
        grid: Grid,
        checkpoints: Checkpoints,
        watch: Watch,
        witnesses: Witnesses | None = None,
        timeout: float | None = None,
        *,
        patience: float | None = None,
        seal: Seal | None = None,
        name_of: NameOf | None = None,
        tell: Tell = unheard,
        muster: Muster | None = None,
        minds: Minds | None = None,
        held: Held | None = None,
    ) -> None:
        self._submission = submission
        self._held = held
        self._plan = submission.plan
        if self._plan.privacy.is_central and not self.adds_noise:
            raise PlanError([SERVERS_CLAIM[0]], SERVERS_CLAIM[1])
        self._grid = grid
        self._checkpoints = checkpoints
        self._watch = watch
        self._witnesses = witnesses
        self._timeout = self._plan.aggregation.deadline or timeout
        self._patience = patience or timeout
        self._submitted = _submitted(submission, seal)
        self._tell = tell
        self._muster = muster or (lambda least: None)
        self._strategy = strategies.build_strategy(self._plan)
        self._may_be_permitted = minds is not None
        self._roll = RollCall(grid, self._description, patience or timeout, tell, name_of, minds)
        self._roster = self._roll.roster
        self._encoded: tuple[Parameters, ArrayRecord] | None = None

    @property
    def refused(self) -> dict[str, str]:
        """Who will not take part, by name, and why: asked again when the run is resumed."""
        return texts_of({name: why for name, why in self._roster.refused.items() if why.code in REFUSAL_CODES})

    def run(self) -> State:
        """The last round's state. Raises FederationError when fewer than `min-nodes` can go on."""
        self._muster_roster()
        self._require(len(self._roster), "say who they are", texts_of(self._roster.refused))
        state = self._checkpoints.newest() or self._begin()
        self._remind(state)
        self._watch(state)
        for number in range(state.round + 1, self._plan.run.rounds + 1):
            self._muster(self._plan.aggregation.min_nodes)
            state = self._round(state, number)
            self._checkpoints.save(state)
            self._tell(Saved(number))
            self._watch(state)
            if number < self._plan.run.rounds:
                self._roll.call()
        self._tell_witnessed()
        return state

    def _muster_roster(self) -> None:
        """Call the roll until `min-nodes` have answered: a node may be busy with a request of before a restart."""
        end = time.monotonic() + (self._timeout or 0.0)
        self._roll.call()
        least = self._plan.aggregation.min_nodes
        while len(self._roster) < least and self._roster.is_awaiting and time.monotonic() < end:
            self._roster.ask_again()
            self._roll.call()
        self._roll.wait(lambda: len(self._roster) >= least)

    def _begin(self) -> State:
        """Round 0: the initial model, as two nodes compute it from the task and the public seed; they must agree."""
        model, failures, heard = None, dict[str, Failure](), 0
        names = sorted(self._roster)
        while names and heard < _INITIAL_WITNESSES:
            asked, names = names[: _INITIAL_WITNESSES - heard], names[_INITIAL_WITNESSES - heard :]
            for name, update in self._initial_models(asked):
                if isinstance(update, Failure):
                    failures[name] = update
                    continue
                if model is not None and hash_of(update) != hash_of(model):
                    raise FederationError(
                        f"{name} computes another initial model than the node before it",
                        "install the same version of the task, and of torch, at every node",
                    )
                model, heard = update, heard + 1
        if model is None:
            raise FederationError(f"no node could compute the initial model: {_told(texts_of(failures))}", _SEE_NODES)
        self._roll.let_leave(failures)
        excluded = {name: why for name, why in failures.items() if why.code not in REVISED}
        state = State(0, model, {}, {}, texts_of(excluded), ())
        self._checkpoints.save(state)
        return state

    def _initial_models(self, names: list[str]) -> Iterable[tuple[str, dict[str, Array] | Failure]]:
        by_id = {self._roster[name].node_id: name for name in names}
        content = RecordDict({words.CONFIG: self._config(number=0, attempt=1)})
        messages = [self._message(node_id, words.INITIAL, content) for node_id in by_id]
        for reply in self._ask(messages, self._timeout):
            name = by_id.pop(reply.metadata.src_node_id, None)
            if name is not None:
                yield name, checked_update(reply, like=None)

    def _round(self, state: State, number: int) -> State:
        gathered, attempts = self._gather(state, number)
        model = self._aggregate(gathered, number)
        self._roll.let_leave(gathered.missing)
        excluded = state.excluded | texts_of(
            {name: why for name, why in gathered.missing.items() if why.code in REFUSAL_CODES - _RETRIED - REVISED}
        )
        metrics = self._evaluate(model, number, excluded)
        if metrics:
            self._tell(Evaluated(number, metrics))
        participations = dict(state.participations)
        for name, count in attempts.items():
            participations[name] = participations.get(name, 0) + count
        report = RoundReport(number, len(gathered.answered), texts_of(gathered.missing), metrics)
        trained = tuple(sorted({*state.trained, *gathered.answered}))
        return State(number, model, self._remembered(), participations, excluded, (*state.history, report), trained)

    def _remembered(self) -> dict[str, NDArray[Any]]:
        """What must be there again after a crash, beside the model."""
        return strategies.remembered(self._strategy)

    def _remind(self, state: State) -> None:
        """Give back what `_remembered` gave."""
        strategies.remind(self._strategy, state.strategy, {name: array.shape for name, array in state.model.items()})

    def _gather(self, state: State, number: int) -> tuple[Gathered, dict[str, int]]:
        """Ask the cohort; ask again where an attempt was lost, as far as the spare rounds reach."""
        least = self._plan.aggregation.min_nodes
        self._roll.wait(lambda: len(self._eligible(state)) >= least)
        cohort = choose_cohort(self._eligible(state), self._plan, number)
        self._require(len(cohort), f"take part in round {number}", state.excluded | texts_of(self._roster.refused))
        self._tell(RoundBegun(number, tuple(cohort)))
        total = sum(strategies.weight_of(self._plan, self._roster[name].declared_size) for name in cohort)
        gathered = Gathered(None if self._plan.keeps_updates else RunningAverage(state.model, total, self._held))
        attempts, pending = dict.fromkeys(cohort, 1), cohort
        while pending:
            self._ask_until_spent(state.model, number, attempts, pending, gathered)
            pending = self._returned(gathered)
        self._require(len(gathered.answered), f"answer in round {number}", texts_of(gathered.missing))
        return gathered, attempts

    def _ask_until_spent(
        self, model: Parameters, number: int, attempts: dict[str, int], pending: list[str], gathered: Gathered
    ) -> None:
        for _ in range(1 + self._plan.run.spare_rounds + 1):
            self._ask_to_train(model, number, {name: attempts[name] for name in pending}, gathered)
            pending = self._to_ask_again(gathered)
            if not pending:
                return
            self._muster(self._plan.aggregation.min_nodes)
            for name in pending:
                if gathered.missing[name].code in _RETRIED:  # that attempt is spent; a lost reply is not
                    attempts[name] += 1

    def _returned(self, gathered: Gathered) -> list[str]:
        """Where too few have answered: those whose rules kept them from it and let them now, once they are enough."""
        lacking = self._plan.aggregation.min_nodes - len(gathered.answered)
        left = self._roll.let_leave(gathered.missing) if lacking > 0 else []
        if left:
            self._roll.wait(lambda: sum(name in self._roster for name in left) >= lacking)
        return [name for name in left if name in self._roster]

    def _ask_to_train(self, model: Parameters, number: int, attempts: dict[str, int], gathered: Gathered) -> None:
        arrays = self._record_of(model)
        messages: list[Message] = []
        gathered.missing |= dict.fromkeys(attempts, Failure(NO_ANSWER))
        for attempt in sorted(set(attempts.values())):
            cohort = [self._roster[name].node_id for name in attempts if attempts[name] == attempt]
            config = self._config(number, attempt, [*gathered.answered, *gathered.missing])
            messages += strategies.requests(self._strategy, number, arrays, config, self._grid, cohort)
        by_id = {self._roster[name].node_id: name for name in attempts}
        began = time.monotonic()
        for reply in self._ask(self._with_witness(messages), self._timeout):
            name = by_id.pop(reply.metadata.src_node_id, None)  # once each, and only of those who were asked
            if name is not None:
                size = size_of(reply)
                why = self._take(reply, name, model, gathered)
                took = time.monotonic() - began
                self._tell(Missed(number, name, why.code, why.disclosed) if why else Answered(number, name, size, took))
            del reply  # before the next one comes: an update is held while it is added, and no longer
        for name in by_id.values():
            self._tell(Missed(number, name, NO_ANSWER))

    def _take(self, reply: Message, name: str, model: Parameters, gathered: Gathered) -> Failure | None:
        """Add the update; or give why there is none."""
        update = self._witnessed(name, reply, self._update_in(reply, model))
        if isinstance(update, Failure):
            gathered.missing[name] = update
            return update
        weight = strategies.weight_of(self._plan, self._roster[name].declared_size)
        if gathered.average is None:
            assert not isinstance(update, HeldUpdate), "a strategy that compares updates is handed each"
            gathered.kept.append(restated(reply, to_record(update), weight))
        else:
            if isinstance(update, HeldUpdate):
                gathered.average.add_held(update.node_id, weight)
            else:
                gathered.average.add(update, weight)
            if not gathered.kept:  # the envelope of the average, without the letter
                gathered.kept.append(restated(reply, ArrayRecord(), weight))
        gathered.answered.add(name)
        del gathered.missing[name]
        return None

    def _update_in(self, reply: Message, model: Parameters) -> dict[str, Array] | HeldUpdate | Failure:
        if self._held is not None and self._held.holds(reply):
            return HeldUpdate(reply.metadata.src_node_id)
        return checked_update(reply, like=model)

    def _to_ask_again(self, gathered: Gathered) -> list[str]:
        """Spent attempts always (a crash is no refusal); other losses only where `min-nodes` is not reached."""
        enough = len(gathered.answered) >= self._plan.aggregation.min_nodes
        return [
            name
            for name, why in gathered.missing.items()
            if why.code == Refusal.ATTEMPT_SPENT
            or (not enough and (why.code in _RETRIED or why.code not in REFUSAL_CODES))
        ]

    def _aggregate(self, gathered: Gathered, number: int) -> Parameters:
        if gathered.average is not None:  # the strategy gets one reply: the average, which averages to itself
            gathered.kept[0].content[words.ARRAYS] = as_record(gathered.average.result())
        record = strategies.aggregate(self._strategy, number, gathered.kept, len(gathered.answered) / len(self._roster))
        self._encoded = (to_parameters(record), record)
        return self._encoded[0]

    def _record_of(self, model: Parameters) -> ArrayRecord:
        """The model as it is sent: encoded once, however many nodes and messages; the model is views of its bytes."""
        if self._encoded is None or self._encoded[0] is not model:
            self._encoded = (model, to_record(model))
        return self._encoded[1]

    def _evaluate(self, model: Parameters, number: int, excluded: dict[str, str]) -> dict[str, float]:
        """Means over the declared records of the nodes that answer; empty in rounds without evaluation."""
        evaluation = self._plan.evaluation
        if evaluation is None or number % evaluation.every:
            return {}
        members = {member.node_id: member for member in self._roster.members() if member.name not in excluded}
        config = self._config(number, 1, [member.name for member in members.values()])
        content = RecordDict({words.ARRAYS: self._record_of(model), words.CONFIG: config})
        sums, records = dict.fromkeys(evaluation.metrics, 0.0), 0
        messages = [self._message(node_id, words.EVALUATE, content) for node_id in members]
        for reply in self._ask(self._with_witness(messages), self._timeout):
            member = members.pop(reply.metadata.src_node_id, None)
            metrics = checked_metrics(reply, evaluation.metrics)
            if member is not None:
                metrics = self._witnessed(member.name, reply, metrics)
            if member is not None and not isinstance(metrics, Failure):
                records += member.declared_size
                for name, value in metrics.items():
                    sums[name] += value
        return {name: total / records for name, total in sums.items()} if records else {}

    def _witnessed(self, name: str, reply: Message, answer: _Answer) -> _Answer | Failure:
        """The answer, once the head of the ledger that it stands in is countersigned; a Failure where that fails."""
        if self._witnesses is None or isinstance(answer, Failure) or self._witnesses.take(name, reply):
            return answer
        return Failure(words.LEDGER_CONTRADICTS)

    def _with_witness(self, messages: list[Message]) -> list[Message]:
        names = {member.node_id: member.name for member in self._roster.members()}
        return self._witnesses.stamped(messages, names) if self._witnesses else messages

    def _tell_witnessed(self) -> None:
        """The last countersignatures, which no further request would bring."""
        if self._witnesses is None:
            return
        messages = [self._message(m.node_id, words.WITNESS, RecordDict()) for m in self._roster.members()]
        told = [message for message in self._with_witness(messages) if words.CONFIG in message.content]
        for _ in self._ask(told, self._patience):
            pass

    def _eligible(self, state: State) -> list[str]:
        most = self._plan.attempts_charged
        return [n for n in self._roster if n not in state.excluded and state.participations.get(n, 0) < most]

    def _require(self, count: int, deed: str, reasons: dict[str, str]) -> None:
        least = self._plan.aggregation.min_nodes
        if count < least:
            why = f": {_told(reasons)}" if reasons else ""
            raise FederationError(f"{count} nodes {deed}, the plan needs {least}{why}", self._remedy(reasons))

    def _remedy(self, reasons: dict[str, str]) -> str:
        """A policy that speaks of hours may permit in the morning what it denies at night: no run waits for that."""
        if self._may_be_permitted and Refusal.POLICY_DENIED in map(code_in, reasons.values()):
            return f"submit again, or privet run resume {self._submission.run_id}, when their policy permits"
        return _SEE_NODES

    def _config(self, number: int, attempt: int, cohort: Iterable[str] = ()) -> ConfigRecord:
        """`cohort`: with whom, so that each node can check who has signed that it takes part."""
        members = (self._roster[name].node_id for name in cohort if name in self._roster)
        told = self._roll.attendances.config(members)
        return ConfigRecord({**self._submitted, words.ROUND: number, words.ATTEMPT: attempt, **told})

    def _description(self, node_id: int) -> Message:
        return self._message(node_id, words.DESCRIBE, RecordDict({words.CONFIG: self._config(number=0, attempt=1)}))

    def _message(self, node_id: int, kind: str, content: RecordDict) -> Message:
        return Message(content, node_id, kind, group_id=self._submission.run_id)

    def _ask(self, messages: list[Message], timeout: float | None) -> Iterable[Message]:
        return self._grid.send_and_receive(messages, timeout=timeout) if messages else ()


def _submitted(submission: Submission, seal: Seal | None) -> dict[str, bytes]:
    """What comes with every request: a node that was restarted can check it again."""
    submitted = {words.SUBMISSION: submission.canonical}
    if seal is not None:
        submitted |= {words.SIGNATURE: seal.signature, words.CERTIFICATES: seal.certificates}
    return submitted


def _told(failures: dict[str, str]) -> str:
    return ", ".join(f"{name} {why}" for name, why in sorted(failures.items())) or "no answer"


_SEE_NODES = "look at the named nodes' local logs, or lower aggregation.min-nodes"
