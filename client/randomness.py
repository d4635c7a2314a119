"""Where a node's random numbers come from: sampling and noise.

At a node: an AES-256-CTR keystream (NIST SP 800-38A) under a key from the operating system, one key for each request;
no seed is accepted. In a simulation: torch's generator from a seed, fast and reproducible, and whoever knows the seed
can take the noise away, so its results carry `noise_seeded: true`. For runs without privacy sampling is seeded
everywhere, so that a deployment and a simulation give the same model.

Not promised: noise is a rounded double, not a discrete distribution; floating-point attacks (Mironov 2012) are out of
scope.
"""

import hashlib
import json
import os
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from torch import Tensor

from .draw import Draw

_KEY_BYTES = 32
_BLOCK_BYTES = 16
_MANTISSA_BITS = 53  # of a double: a uniform is a multiple of 2^-53


class Randomness(Protocol):
    """What local training draws from."""

    @property
    def is_seeded(self) -> bool:
        """Whether somebody could draw the same again."""
        ...

    def poisson_sample(self, size: int, rate: float) -> Tensor:
        """Which of `size` units take part: each with chance `rate`, independently. Indices, int64, ascending."""
        ...

    def poisson_masks(self, size: int, rate: float, steps: int) -> NDArray[np.bool_]:
        """What `poisson_sample` would draw in as many calls: whether each unit takes part, [steps, size]."""
        ...

    def gaussian(self, count: int) -> Tensor:
        """`count` independent standard normal numbers, float32."""
        ...

    def gaussian_into(self, out: Tensor, stddev: float) -> None:
        """Fill `out` [count] float32 with what `gaussian` would give, times `stddev`."""
        ...

    def module_seed(self) -> int:
        """A seed for what a model draws itself (dropout); it protects nothing."""
        ...


class SystemRandomness:
    """A keystream from the operating system's randomness: what a node uses."""

    is_seeded = False

    def __init__(self) -> None:
        counter = CTR(b"\0" * _BLOCK_BYTES)  # the key is fresh and used once, so the counter may start anywhere
        self._keystream: CipherContext = Cipher(AES(os.urandom(_KEY_BYTES)), counter).encryptor()

    def poisson_sample(self, size: int, rate: float) -> Tensor:
        """See Randomness."""
        return torch.from_numpy(np.flatnonzero(self.poisson_masks(size, rate, 1)))

    def poisson_masks(self, size: int, rate: float, steps: int) -> NDArray[np.bool_]:
        """See Randomness. A 64-bit integer below rate * 2^64: exact but for less than 2^-63."""
        if rate >= 1:
            return np.ones((steps, size), dtype=np.bool_)
        threshold = np.uint64(int(rate * 2.0**64))
        return (self._integers(steps * size) < threshold).reshape(steps, size)

    def gaussian(self, count: int) -> Tensor:
        """See Randomness. Box and Muller 1958, in doubles, from 53-bit uniforms: the tail ends at 8.5 deviations."""
        pairs = (count + 1) // 2
        uniforms = (self._integers(2 * pairs) >> np.uint64(64 - _MANTISSA_BITS)).astype(np.float64)
        radius = np.sqrt(-2.0 * np.log((uniforms[:pairs] + 1.0) * 2.0**-_MANTISSA_BITS))  # (0, 1]: no log of 0
        angle = uniforms[pairs:] * (2.0 * np.pi * 2.0**-_MANTISSA_BITS)
        normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
        return torch.from_numpy(normal.astype(np.float32))

    def gaussian_into(self, out: Tensor, stddev: float) -> None:
        """See Randomness."""
        out.copy_(self.gaussian(len(out)) * stddev)

    def module_seed(self) -> int:
        """See Randomness."""
        return int(self._integers(1)[0] >> np.uint64(1))

    def _integers(self, count: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._keystream.update(bytes(8 * count)), dtype="<u8")


class SeededRandomness:
    """Reproducible numbers, for simulations and for runs without privacy. `labels` keep the uses of one seed apart.

    Noise has a stream of its own, so that samples may be drawn for many steps at once. torch reads 32 bits of a seed on
    a CPU: of a million uses of one seed about a hundred pairs draw alike, by chance.
    """

    is_seeded = True

    def __init__(self, seed: int, *labels: str | int) -> None:
        self._named = (seed, *labels)
        self._generator = _generator("privet", *self._named)

    def poisson_sample(self, size: int, rate: float) -> Tensor:
        """See Randomness."""
        return torch.from_numpy(np.flatnonzero(self.poisson_masks(size, rate, 1)))

    def poisson_masks(self, size: int, rate: float, steps: int) -> NDArray[np.bool_]:
        """See Randomness."""
        if rate >= 1:
            return np.ones((steps, size), dtype=np.bool_)
        uniforms = torch.rand(steps * size, generator=self._generator, dtype=torch.float64).numpy()
        return (uniforms < rate).reshape(steps, size)

    def gaussian(self, count: int) -> Tensor:
        """See Randomness."""
        return torch.randn(count, generator=self._noise)

    def gaussian_into(self, out: Tensor, stddev: float) -> None:
        """See Randomness. In place where torch draws the same there: in memory that is of a piece, and not a GPU's."""
        if out.device.type == "cpu" and out.is_contiguous():
            out.normal_(0.0, stddev, generator=self._noise)
        else:
            out.copy_(self.gaussian(len(out)) * stddev)

    def module_seed(self) -> int:
        """See Randomness."""
        return int(torch.randint(2**62, (1,), generator=self._generator))

    @cached_property
    def _noise(self) -> torch.Generator:
        return _generator("privet noise", *self._named)


def _generator(*labels: str | int) -> torch.Generator:
    text = json.dumps(labels)  # other labels, other text
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(number)


def drawn(draw: Draw) -> Randomness:
    """The numbers that a Draw names; from the operating system they are others at every call."""
    return SystemRandomness() if draw.seed is None else SeededRandomness(draw.seed, *draw.labels)
