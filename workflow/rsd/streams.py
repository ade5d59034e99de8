"""Random streams: one for each (seed, problem, attempt), counted by position.

A token's randomness depends on nothing but its stream's key and its position, so an attempt is the same whatever the
number of lanes, the shard, the order of work or the number of restarts.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray


def uniforms(key: tuple[int | str, ...], count: int) -> NDArray[np.float64]:
    """The first `count` positions of a stream: [count, 2] float64 in [0, 1).

    A longer request begins with the same numbers. Philox is counter-based: equal keys give equal numbers on every
    machine, different keys independent ones.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    philox = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
    return np.random.Generator(philox).random((count, 2))
