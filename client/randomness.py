"""Where a node's random numbers come from: sampling and noise.

At a node: an AES-256-CTR keystream (NIST SP 800-38A) under a key from the operating system, one key for each request;
no seed is accepted. In a simulation: a keystream and torch's generator from a seed, fast and reproducible, and whoever
knows the seed can take the noise away, so its results carry `noise_seeded: true`. For runs without privacy sampling is
seeded everywhere, so that a deployment and a simulation give the same model.

Not promised: noise is a rounded double (seeded: a single), not a discrete distribution; floating-point attacks
(Mironov 2012) are out of scope.
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
_PAIRS = 2**15  # of seeded normal numbers that are made at once
_ZEROS = memoryview(bytes(8 * _PAIRS))


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
        self._keystream = _keystream(os.urandom(_KEY_BYTES))

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

    Samples come from torch's generator, which reads 32 bits of a seed on a CPU: of a million uses of one seed about a
    hundred pairs draw alike, by chance. Noise has a keystream of its own, so that samples may be drawn for many steps
    at once.
    """

    is_seeded = True

    def __init__(self, seed: int, *labels: str | int) -> None:
        self._labels = (seed, *labels)
        number = int.from_bytes(_digest("privet", *self._labels)[:8], "little") >> 1
        self._generator = torch.Generator().manual_seed(number)

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
        """See Randomness, and `normals_of`."""
        out = torch.empty(count)
        self.gaussian_into(out, 1.0)
        return out

    def gaussian_into(self, out: Tensor, stddev: float) -> None:
        """See Randomness. In place, but on a GPU."""
        values = out if out.device.type == "cpu" and out.is_contiguous() else torch.empty(len(out))
        numbers = values.numpy()
        for start in range(0, len(numbers), 2 * _PAIRS):
            part = numbers[start : start + 2 * _PAIRS]
            pairs = (len(part) + 1) // 2
            stream = bytearray(8 * pairs + _BLOCK_BYTES)  # with room that the cipher asks for
            self._keystream.update_into(_ZEROS[: 8 * pairs], stream)
            normals_of(np.frombuffer(stream, dtype="<u4", count=2 * pairs), stddev, part)
        if values is not out:
            out.copy_(values)

    def module_seed(self) -> int:
        """See Randomness."""
        return int(torch.randint(2**62, (1,), generator=self._generator))

    @cached_property
    def _keystream(self) -> CipherContext:
        return _keystream(_digest("privet noise", *self._labels))


def normals_of(bits: NDArray[np.uint32], stddev: float, out: NDArray[np.float32]) -> None:
    """Make normal numbers [count] of twice as many random integers as pairs of them; `bits` is used up.

    Box and Muller 1958. A uniform is one of 2^31 odd numbers, rounded to 24 bits: the tail ends at 6.6 deviations. On
    another kind of processor the last bits may be others.
    """
    pairs = len(bits) // 2
    np.bitwise_or(bits[:pairs], 1, out=bits[:pairs])
    uniforms = bits.astype(np.float32)
    radius, angle = uniforms[:pairs], uniforms[pairs:]
    radius *= np.float32(2.0**-32)  # (0, 1]
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    radius *= np.float32(stddev)
    angle *= np.float32(2.0 * np.pi * 2.0**-32)
    np.multiply(radius, np.cos(angle), out=out[:pairs])
    rest = len(out) - pairs  # one fewer where they are odd
    np.multiply(radius[:rest], np.sin(angle[:rest]), out=out[pairs:])


def _keystream(key: bytes) -> CipherContext:
    """Of AES-256 in counter mode; a key is used once, so the counter may start anywhere."""
    return Cipher(AES(key), CTR(b"\0" * _BLOCK_BYTES)).encryptor()


def _digest(*labels: str | int) -> bytes:
    """32 bytes: other labels, other text, other bytes."""
    return hashlib.sha256(json.dumps(labels).encode()).digest()


def drawn(draw: Draw) -> Randomness:
    """The numbers that a Draw names; from the operating system they are others at every call."""
    return SystemRandomness() if draw.seed is None else SeededRandomness(draw.seed, *draw.labels)
