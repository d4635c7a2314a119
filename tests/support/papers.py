"""Federated algorithms in numpy, in doubles, each written from its paper and from nothing else.

Nodes hold softmax regressions and take full-batch steps, so that nothing is left to chance. A model is one vector.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Rule = Callable[[Vector, list[Vector]], Vector]


@dataclass
class Softmax:
    """A node's records: mean cross entropy of a linear model, weights [classes, features] before bias [classes]."""

    inputs: Vector
    labels: NDArray[np.int64]
    classes: int = 2

    def __len__(self) -> int:
        return len(self.labels)

    def gradient(self, model: Vector) -> Vector:
        """Of the mean loss."""
        features = self.inputs.shape[1]
        weights, bias = model[: -self.classes].reshape(self.classes, features), model[-self.classes :]
        scores = self.inputs @ weights.T + bias
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        chances[np.arange(len(self)), self.labels] -= 1
        return np.concatenate([(chances.T @ self.inputs).ravel(), chances.sum(axis=0)]) / len(self)


def local_steps(
    node: Softmax, start: Vector, steps: int, rate: float, *, mu: float = 0.0, added: Vector | float = 0.0, decay=0.0
) -> Vector:
    """`steps` of gradient descent. `mu`: FedProx's pull to the start (Li et al. 2020, algorithm 2: its h_k)."""
    model = start
    for _ in range(steps):
        model = model - rate * (node.gradient(model) + mu * (model - start) + decay * model + added)
    return model


def weighted_mean(weights: Sequence[float]) -> Rule:
    """FedAvg: McMahan et al. 2017, algorithm 1, w <- sum of n_k / n w_k."""
    return lambda model, updates: np.average(updates, axis=0, weights=weights)


def median(model: Vector, updates: list[Vector]) -> Vector:
    """Yin et al. 2018, definition 1: coordinate by coordinate."""
    return np.median(updates, axis=0)


def trimmed_mean(share: float) -> Rule:
    """Yin et al. 2018, definition 2: of each coordinate without the largest and the smallest `share`."""

    def rule(model: Vector, updates: list[Vector]) -> Vector:
        cut = int(share * len(updates))
        return np.sort(updates, axis=0)[cut : len(updates) - cut].mean(axis=0)

    return rule


def krum_order(updates: list[Vector], liars: int) -> list[int]:
    """Blanchard et al. 2017, section 4: by the sum of squared distances to the n - f - 2 closest others."""
    scores = []
    for one in range(len(updates)):
        others = sorted(float(((updates[one] - updates[o]) ** 2).sum()) for o in range(len(updates)) if o != one)
        scores.append(sum(others[: len(updates) - liars - 2]))
    return [int(place) for place in np.argsort(scores, kind="stable")]


def krum(liars: int) -> Rule:
    """The one with the least score."""
    return lambda model, updates: updates[krum_order(updates, liars)[0]]


def multikrum(liars: int, chosen: int, weights: Sequence[float] | None = None) -> Rule:
    """The mean of the m with the least scores. The paper's is plain; `weights` are not in it."""

    def rule(model: Vector, updates: list[Vector]) -> Vector:
        best = krum_order(updates, liars)[:chosen]
        return np.average(
            [updates[n] for n in best], axis=0, weights=None if weights is None else [weights[n] for n in best]
        )

    return rule


def fedavgm(mean: Rule, momentum: float, rate: float) -> Rule:
    """Hsu et al. 2019, section 4: v <- beta v + dw, w <- w - v, with the server's rate before v as in the appendix."""
    state = {"v": np.zeros(1)}

    def rule(model: Vector, updates: list[Vector]) -> Vector:
        state["v"] = momentum * state["v"] + (model - mean(model, updates))
        return model - rate * state["v"]

    return rule


@dataclass
class FedOpt:
    """Reddi et al. 2021, algorithm 2. `first`: v before the first round; the paper asks for at least tau^2."""

    mean: Rule
    kind: str
    rate: float
    tau: float
    first: float
    beta_1: float = 0.0
    beta_2: float = 0.99
    is_bias_corrected: bool = False  # by Kingma and Ba 2015; not in the paper
    round: int = 0
    m: Vector | float = 0.0
    v: Vector | float = field(init=False)

    def __post_init__(self) -> None:
        self.v = self.first

    def __call__(self, model: Vector, updates: list[Vector]) -> Vector:
        self.round += 1
        change = self.mean(model, updates) - model
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * change
        square = change**2
        if self.kind == "adagrad":
            self.v = self.v + square
        elif self.kind == "yogi":
            self.v = self.v - (1 - self.beta_2) * square * np.sign(self.v - square)
        else:
            self.v = self.beta_2 * self.v + (1 - self.beta_2) * square
        rate = self.rate
        if self.is_bias_corrected:  # with the exponents as Flower has them: one too many
            rate *= np.sqrt(1 - self.beta_2 ** (self.round + 1)) / (1 - self.beta_1 ** (self.round + 1))
        return model + rate * self.m / (np.sqrt(self.v) + self.tau)


def rounds_of(
    nodes: Sequence[Softmax],
    start: Vector,
    rule: Rule,
    cohorts: Sequence[Sequence[int]],
    steps: int,
    rate: float,
    **local,
) -> Iterator[Vector]:
    """Every round's model. `cohorts`: who is asked in each."""
    model = start
    for cohort in cohorts:
        model = rule(model, [local_steps(nodes[n], model, steps, rate, **local) for n in cohort])
        yield model


@dataclass
class Scaffold:
    """Karimireddy et al. 2020, algorithm 1, option II."""

    nodes: Sequence[Softmax]
    model: Vector
    steps: int
    rate: float
    server_rate: float = 1.0
    decay: float = 0.0

    def __post_init__(self) -> None:
        self.control = np.zeros_like(self.model)
        self.controls = [np.zeros_like(self.model) for _ in self.nodes]

    def round(self, asked: Sequence[int], taken: Sequence[int] | None = None) -> Vector:
        """A round of those asked. `taken`: whose answers arrive; those of others change nothing."""
        moves, changes = [], []
        for n in asked if taken is None else taken:
            added = self.control - self.controls[n]
            local = local_steps(self.nodes[n], self.model, self.steps, self.rate, added=added, decay=self.decay)
            fresh = self.controls[n] - self.control + (self.model - local) / (self.steps * self.rate)
            moves.append(local - self.model)
            changes.append(fresh - self.controls[n])
            self.controls[n] = fresh
        self.model = self.model + self.server_rate * np.mean(moves, axis=0)
        self.control = self.control + len(moves) / len(self.nodes) * np.mean(changes, axis=0)
        return self.model
