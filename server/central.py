"""Client-level privacy at the server: what a round does where the plan hides whole nodes (unit `node`).

DP-FedAvg (McMahan et al. 2018, "Learning Differentially Private Recurrent Language Models"), with the clip norm fixed
or moving (Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping"). In a round

    every node takes part by itself with chance q             (cohort.py)
    sum = sum of updates, each of an L2 norm of at most C      (CentralSum)
    average = model + (sum + N(0, (z C)^2)) / (q N)            (CentralRounds.release)

What the claim rests on, each line of it tested in tests/server/test_central.py:

1. A node moves the sum by at most C, whatever it holds and sends: what is larger is clipped here, whatever the node
   did; what is not finite adds nothing. Sums are of whole numbers, and rounding is towards zero: it makes none larger.
2. The sum is over those who answer. A node that drops out adds nothing, which is an update of norm 0. No other node's
   part depends on it: nobody is asked again because too few answered, and no round is given up for that; and a
   simulation computes each update by itself, not in one batch with others, whose company would change its rounding,
   from a model that was put back to how it began. It sees no state that a task keeps outside its model, and on a GPU
   the same computation may round otherwise when it is done again.
3. The noise is one Gaussian on every coordinate, drawn after the sum is complete, once for a round. A round that is
   repeated after a crash draws the very same, and must release the very same: the model and the noised count.
4. Whatever else the result depends on is public: C, z, q and N are fixed before the round; the clip norm moves by
   noised counts only, after the round, so that the noise of a round is that of the norm which clipped.
5. Who takes part, and how many answered, is the server's secret: sampling hides nobody from those who see the sample.
   A node must trust the server, which sees every update. Its checkpoints, and what a simulation writes down of rounds
   and nodes, tell of that: they are the server's own, and no release. The model is one, and what the ledger says.
6. Every round is charged before the first; each is entered before a node is asked, and what was done before its result
   is used (central_ledger.py).

Noise, and the choice of who takes part, are seeded by the plan: this is for simulations, and protects nobody by itself.
Another plan has other noise, be it of the same seed: else the difference of two models would have none. One plan that
is carried out twice has the same noise, and so the same model; by another engine or precision with other roundings.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..privacy.budget.adaptive import next_clip_norm, sum_noise_multiplier
from ..privacy.parameters import Array, Parameters, hash_of
from ..privacy.submission import Submission
from .cohort import poisson_cohort

# A sum counts in units of about C * 2^-40: a value of an update is at most 2^40 of them, so that 2^22 nodes cannot
# overflow 63 bits, and the error of a value is far below a float32's own.
_UNITS_IN_CLIP_NORM = 40
# A norm computed in doubles may be this much too small, relatively, in models of up to 2^28 values.
_NORM_ERROR = 2.0**-24
# A noised share beyond moves the clip norm to one of its limits, and is as much as a ledger's numbers may be.
_FARTHEST_SHARE = 2.0**30
_BLOCK = 2**16  # values that are made whole at a time, to keep memory small
_CLIP_NORM = "central/clip-norm"  # among what a checkpoint remembers

Noise = Callable[[int, int], NDArray[np.float64]]


class RoundBook(Protocol):
    """Where rounds are entered: see central_ledger.CentralLedger."""

    def begin(self, round_number: int, asked: str) -> None:
        """A round is about to ask nodes. `asked`: hash of all that it depends on."""
        ...

    def answered(self, round_number: int, released: str, done: Mapping[str, str]) -> None:
        """What the round released, model and noised count, by its hash, and what was done for it."""
        ...


class CentralSum:
    """The sum of a round's updates, each clipped to `clip_norm` over all parameters together; and of their bits.

    In whole numbers, so that it does not depend on the order of answers. What `values` gives of those above 2^53, which
    takes 2^13 updates, is rounded: by less than clip_norm * 2^-35 a value, of as many nodes as a plan may have, 10^5.
    Memory: 20 bytes a parameter.
    Sensitivity: one node's update changes the sum by at most `clip_norm` in L2, and the sum of bits by 1/2.
    """

    def __init__(self, model: Parameters, clip_norm: float) -> None:
        if not (math.isfinite(clip_norm) and clip_norm > 0):
            raise ValueError(f"clip_norm must be positive and finite, got {clip_norm}")
        self.clip_norm = clip_norm
        self._names = list(model)
        self._start = self._joined(model)
        self._moved = np.empty(self._start.size, dtype=np.float64)
        self._unit = 2.0 ** (math.frexp(clip_norm)[1] - _UNITS_IN_CLIP_NORM)
        self._counts = np.zeros(self._start.size, dtype=np.int64)
        self._halves = 0

    def add(self, update: Parameters, within: int) -> None:
        """Add what the node's parameters have moved by, clipped, and its bit.

        `update`: trained parameters, with the model's names and shapes. One that is not finite adds nothing.
        """
        moved = np.subtract(self._joined(update), self._start, out=self._moved, dtype=np.float64)
        norm = math.sqrt(float(np.einsum("i,i->", moved, moved))) * (1 + _NORM_ERROR)  # one thread, unlike a dot
        if not math.isfinite(norm):
            return
        moved *= min(1.0, self.clip_norm / norm) / self._unit if norm else 0.0
        np.trunc(moved, out=moved)
        for start in range(0, moved.size, _BLOCK):
            self._counts[start : start + _BLOCK] += moved[start : start + _BLOCK].astype(np.int64)
        self._halves += 1 if within else -1

    def values(self) -> NDArray[np.float64]:
        """The sum, [d] in the model's order of names. It is not private: only its noised form may be used."""
        values: NDArray[np.float64] = self._counts.astype(np.float64)
        values *= self._unit
        return values

    @property
    def counted(self) -> float:
        """The sum of (bit - 1/2) over those who were added. Not private either."""
        return self._halves / 2

    def _joined(self, parameters: Parameters) -> Array:
        joined: Array = np.concatenate([parameters[name].reshape(-1) for name in self._names])
        return joined


@dataclass(frozen=True, slots=True)
class Terms:
    """What is public and fixed of every round. `nodes`: N, declared. `multiplier`: z, of the noise on updates.

    `count_stddev`, `quantile`, `learning_rate`: of adaptive clipping; None with a fixed clip norm.
    """

    nodes: int
    rate: float
    multiplier: float
    first_clip_norm: float
    count_stddev: float | None
    quantile: float
    learning_rate: float

    @classmethod
    def of(cls, submission: Submission, nodes: int) -> "Terms":
        """Of a submission whose claim is the server's."""
        privacy, claim = submission.plan.privacy, submission.claim
        if not privacy.is_central or claim is None or privacy.clip_norm is None:
            raise ValueError("the server adds noise for unit 'node' alone")
        noise, count = claim.noise_multiplier, privacy.count_noise_stddev
        return cls(
            nodes=nodes,
            rate=submission.plan.aggregation.fraction,
            multiplier=noise if count is None else sum_noise_multiplier(noise, count),
            first_clip_norm=privacy.clip_norm,
            count_stddev=count,
            quantile=privacy.target_quantile or 0.0,
            learning_rate=privacy.clip_learning_rate or 0.0,
        )

    @property
    def denominator(self) -> float:
        """The number of nodes expected in a round, public: never the number that answered."""
        return self.rate * self.nodes


class CentralRounds:
    """The rounds of one submission: begin one, add the answers, release its noised average.

    `nodes`: how many there are, declared. `noise`: so many standard normal numbers for a round, the same when asked
    again; other rounds', other numbers. `seed`: what the choice of who takes part follows from, by default
    `seed_of` the submission.
    """

    def __init__(
        self, submission: Submission, nodes: int, book: RoundBook, noise: Noise, seed: str | None = None
    ) -> None:
        self.terms = Terms.of(submission, nodes)
        self._submission = submission
        self._book = book
        self._noise = noise
        self._seed = seed or seed_of(submission)
        self.clip_norm = self.terms.first_clip_norm
        self._round = 0
        self._model: Parameters = {}
        self._sum: CentralSum | None = None

    def cohort(self, eligible: Sequence[str], round_number: int) -> list[str]:
        """Who takes part in a round: each node by itself, by chance. May be empty."""
        chance = seeded("cohort", self._seed, round_number)
        return poisson_cohort(eligible, self.terms.rate, chance)

    def begin(self, round_number: int, model: Parameters) -> None:
        """A round, entered before anybody is asked."""
        told = [self._submission.hash, round_number, hash_of(model), repr(self.clip_norm)]
        self._book.begin(round_number, hashlib.sha256(json.dumps(told).encode()).hexdigest())
        self._round, self._model = round_number, model
        self._sum = CentralSum(model, self.clip_norm)

    def add(self, update: Parameters, within: int) -> None:
        """A node's answer."""
        assert self._sum is not None, "a round begins first"
        self._sum.add(update, within)

    def release(self) -> dict[str, Array]:
        """The model moved by the noised average, float32; entered, with what was done, before it is given."""
        assert self._sum is not None, "a round begins first"
        summed, self._sum = self._sum, None
        values, counted = summed.values(), summed.counted
        normal = self._noise(self._round, 1 + len(values))  # the first is for the count
        done = _add_noise(values, normal[1:], self.terms.multiplier, summed.clip_norm)
        done |= {"sampling_rate": repr(self.terms.rate), "steps": "1", "versions": _versions()}
        if self.terms.count_stddev is not None:
            done |= self._move_clip_norm(counted, float(normal[0]), self.terms.count_stddev)
        values /= self.terms.denominator
        released = _moved_by(self._model, values)
        self._book.answered(self._round, _hash_of_release(released, done), done)
        return released

    def remembered(self) -> dict[str, NDArray[Any]]:
        """What must be there again after a crash: the next round's clip norm. Public."""
        return {_CLIP_NORM: np.array([self.clip_norm], dtype=np.float64)}

    def remind(self, kept: Mapping[str, NDArray[Any]]) -> None:
        """Give back what `remembered` gave."""
        self.clip_norm = clip_norm_in(kept) or self.clip_norm

    def _move_clip_norm(self, counted: float, normal: float, stddev: float) -> dict[str, str]:
        """The next round's clip norm, from the noised count; gives what was done, for the record."""
        within = (counted + stddev * normal) / self.terms.denominator + 0.5
        within = min(max(within, -_FARTHEST_SHARE), _FARTHEST_SHARE)
        self.clip_norm = next_clip_norm(self.clip_norm, within, self.terms.quantile, self.terms.learning_rate)
        return {"count_noise_stddev": repr(stddev), "within": repr(within), "next_clip_norm": repr(self.clip_norm)}


def clip_norm_in(kept: Mapping[str, NDArray[Any]]) -> float | None:
    """The next round's clip norm in what a checkpoint remembers; None before the first round."""
    return float(kept[_CLIP_NORM][0]) if _CLIP_NORM in kept else None


def _add_noise(
    values: NDArray[np.float64], normal: NDArray[np.float64], multiplier: float, clip_norm: float
) -> dict[str, str]:
    """Add noise of `multiplier` clip norms to the sum, in place; gives what was added, for the record."""
    values += normal * (multiplier * clip_norm)
    return {"noise_multiplier": repr(multiplier), "clip_norm": repr(clip_norm)}


def _moved_by(model: Parameters, values: NDArray[np.float64]) -> dict[str, Array]:
    moved, start = {}, 0
    for name, array in model.items():
        part = values[start : start + array.size].reshape(array.shape)
        moved[name] = (array + part).astype(np.float32)
        start += array.size
    return moved


def seed_of(submission: Submission, world: str = "") -> str:
    """What seeds a run: all that is asked for, but not when, by whom and under which id. SHA-256, hexadecimal.

    `world`: what else the run depends on, which is not in the submission.
    """
    told = json.loads(submission.canonical)
    return hashlib.sha256(json.dumps([told["plan"], told["claim"], world]).encode()).hexdigest()


def seeded_noise(seed: str) -> Noise:
    """Noise that everybody who knows the plan can draw again: it protects nobody, and is for simulations."""

    def drawn(round_number: int, count: int) -> NDArray[np.float64]:
        return seeded("noise", seed, round_number).standard_normal(count)

    return drawn


def seeded(use: str, seed: str, round_number: int) -> np.random.Generator:
    """The generator of one use in one round: uses, seeds and rounds do not share numbers."""
    digest = hashlib.sha256(json.dumps(["privet/central", use, seed, round_number]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def _hash_of_release(released: Parameters, done: Mapping[str, str]) -> str:
    """Of the model and of the noised count, which is a release too; whatever versions computed them."""
    told = {key: value for key, value in done.items() if key != "versions"}
    return hashlib.sha256(json.dumps([hash_of(released), told], sort_keys=True).encode()).hexdigest()


def _versions() -> str:
    return json.dumps({"numpy": np.__version__, "privet": __version__}, sort_keys=True)
