"""Random streams: one for each (seed, problem, attempt), counted by position and token.

The noise of a token at a position depends on nothing but the stream's key, the position and the token's id. So an
attempt is the same whatever the number of lanes, the shard, the order of work, the number of restarts, and whoever
drafted it. The generator is SplitMix64 (Steele, Lea, Flood 2014) on int64 tensors: counter-based, without a state that
had to be kept, the same bits on every device.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

# The constants of SplitMix64 as signed 64-bit numbers; torch's products of int64 wrap around.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
# Stands in a token's place for the number that decides between the teacher's token and the student's own.
FALLBACK = -2


def stream_key(key: tuple[int | str, ...]) -> int:
    """A signed 64-bit number for a stream's name; equal names give equal numbers on every machine."""
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def states(keys: Tensor, positions: Tensor) -> Tensor:
    """The state of every (stream, position): int64 of the common shape of the int64 `keys` and `positions`."""
    return _mix(keys ^ _mix((positions + 1) * _GOLDEN))


def uniforms(states: Tensor, tokens: Tensor | int) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64, of the common shape of `states` and `tokens` (int64).

    52 random bits and a half: never 0 or 1, so that a logarithm of it is finite and not zero.
    """
    steps = (tokens + 1) * _GOLDEN
    if isinstance(steps, int):
        # Python's numbers do not wrap around.
        steps = (steps + (1 << 63)) % (1 << 64) - (1 << 63)
    bits = _shift(_mix(states + steps), 12)
    return (bits.double() + 0.5) * 2.0**-52


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MULTIPLIERS[0]
    x = (x ^ _shift(x, 27)) * _MULTIPLIERS[1]
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts signed numbers arithmetically.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def race(weights: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
    """Draws one index a row, with probability weight / sum of weights: the winner of a race of exponential clocks.

    `weights` [rows, n] >= 0, any sum; `states` [rows]; `tokens` [rows, n] int64, the ids that key the noise. Returns
    [rows] int64. Token y's clock rings at E_y / w_y with E_y = -log u_y standard exponential, and the first to ring is
    y with probability w_y / sum(w). Two distributions that race on the same noise agree as often as they are alike:
    cut to a subset that holds the winner, the winner stays; in general they differ with probability at most
    2 TV / (1 + TV) (Daliri, Musco, Musco 2024). Where no weight is positive, index 0.
    """
    return (-torch.log(uniforms(states[:, None], tokens)) / weights).argmin(dim=-1)
