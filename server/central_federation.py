"""A federation whose server adds the noise: the same story, with other rounds. What they rest on stands in central.py.

A round asks each node of the cohort once, and goes on with whoever answers, be it nobody: neither the number of
answers nor the size of the cohort decides anything, since both depend on who takes part. `min-nodes` holds for the
roster alone, which is public. The model that it begins with is given to it, from the task and the plan's seed: were the
nodes asked, one that lies would decide it, where the others fail.
"""

from collections.abc import Iterable
from typing import Any

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from ..privacy.channel import words
from ..privacy.channel.arrays import as_record
from ..privacy.parameters import Parameters
from . import strategies
from .central import CentralRounds
from .checkpoints import State
from .events import RoundBegun
from .federation import Federation
from .gathered import Gathered
from .replies import Failure, checked_update

_SERVER = 1  # the node number of whoever answers a message that was never sent


class CentralFederation(Federation):
    """See Federation; `rounds` come from `central`, the first model is `initial`."""

    adds_noise = True

    def __init__(self, *args: Any, central: CentralRounds, initial: Parameters, **options: Any) -> None:
        super().__init__(*args, **options)
        self._central = central
        self._initial = initial

    def _begin(self) -> State:
        """Round 0, without asking anybody."""
        state = State(0, self._initial, {}, {}, {}, ())
        self._checkpoints.save(state)
        return state

    def _gather(self, state: State, number: int) -> tuple[Gathered, dict[str, int]]:
        """Begin the round, then ask the cohort, once."""
        self._central.begin(number, state.model)
        cohort = self._central.cohort(self._eligible(state), number)
        self._tell(RoundBegun(number, tuple(cohort)))
        gathered, asked = Gathered(None), dict.fromkeys(cohort, 1)
        if cohort:
            self._ask_to_train(state.model, number, asked, gathered)
        else:
            arrays, config = self._record_of(state.model), self._config(number, 1)
            strategies.show_model(self._strategy, number, arrays, config, self._grid)
        return gathered, asked

    def _take(self, reply: Message, name: str, model: Parameters, gathered: Gathered) -> Failure | None:
        update: Parameters | Failure
        if self._held is not None and self._held.holds(reply):
            update = self._held.update_of(reply.metadata.src_node_id)
        else:
            update = checked_update(reply, like=model)
        if isinstance(update, Failure):
            gathered.missing[name] = update
            return update
        self._central.add(update, _within(reply))
        gathered.answered.add(name)
        del gathered.missing[name]
        return None

    def _aggregate(self, gathered: Gathered, number: int) -> Parameters:
        average = as_record(iter(self._central.release().items()))
        weight = MetricRecord({words.DECLARED_SIZE: 1})  # alone, it averages to itself
        content = RecordDict({words.ARRAYS: average, words.METRICS: weight})
        gathered.kept = [self._message(_SERVER, words.TRAIN, content)]
        return super()._aggregate(gathered, number)

    def _config(self, number: int, attempt: int, cohort: Iterable[str] = ()) -> ConfigRecord:
        config = super()._config(number, attempt)
        config[words.CLIP_NORM] = self._central.clip_norm
        return config

    def _remembered(self) -> dict[str, NDArray[Any]]:
        return super()._remembered() | self._central.remembered()

    def _remind(self, state: State) -> None:
        super()._remind(state)
        self._central.remind(state.strategy)


def _within(reply: Message) -> int:
    """The bit that a node sends, or 0: whatever it says, it counts no more."""
    metrics = reply.content.get(words.METRICS)
    return int(isinstance(metrics, MetricRecord) and metrics.get(words.WITHIN) == 1)
