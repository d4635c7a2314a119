"""What was done to records, as values. Accountants only interpret them; nothing here computes an epsilon.

Neighbouring relation: add or remove one PrivacyUnit. Sensitivity: the L2 norm that one unit can add to the sum is at
most the clip norm, so that noise of standard deviation `noise_multiplier * clip_norm` stands on it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

RELATION = "add-or-remove-one"


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """`count` releases of a clipped sum over a Poisson sample, each with its own Gaussian noise.

    `noise_multiplier`: noise standard deviation in clip norms, > 0. `sampling_rate`: the chance of each unit, drawn
    independently of all others, in (0, 1]; 1 is the plain Gaussian mechanism. Source: Abadi et al. 2016,
    "Deep Learning with Differential Privacy"; Zhu and Wang 2019, "Poisson Subsampled Renyi Differential Privacy".
    """

    noise_multiplier: float
    sampling_rate: float
    count: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ValueError(f"noise_multiplier must be positive and finite, got {self.noise_multiplier}")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must lie in (0, 1], got {self.sampling_rate}")
        if self.count < 0:
            raise ValueError(f"count must not be negative, got {self.count}")

    def as_json(self) -> dict[str, str]:
        """Canonical form: numbers as the shortest strings that read back to the same double."""
        return {
            "kind": "sampled-gaussian",
            "noise_multiplier": repr(self.noise_multiplier),
            "sampling_rate": repr(self.sampling_rate),
            "count": str(self.count),
        }


Events = tuple[SampledGaussian, ...]


def merged(events: Iterable[SampledGaussian]) -> Events:
    """The same events with equal ones counted together, in a fixed order: order does not change their composition."""
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.noise_multiplier, event.sampling_rate)
        counts[key] = counts.get(key, 0) + event.count
    return tuple(SampledGaussian(sigma, rate, n) for (sigma, rate), n in sorted(counts.items()) if n)
