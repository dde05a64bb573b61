"""Counter-based noise: a pure function of (seed, position, step, token), independent of other requests.

One chain of 32-bit integer hashes (the `lowbias32` mixer of Chris Wellons' hash prospector) in int64 arithmetic, which
NumPy and torch compute alike: each function takes ints, arrays or tensors that broadcast.
"""

from typing import Any

_LOW = 0xFFFFFFFF


def _mix(x: Any) -> Any:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _LOW
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _LOW
    return x ^ (x >> 16)


def hashed(seed: Any, *counters: Any) -> Any:
    """A 32-bit hash of a 64-bit seed and any number of counters below 2**32."""
    state = _mix((seed & _LOW) ^ 0x9E3779B9)
    return continued(_mix(state ^ ((seed >> 32) & _LOW)), *counters)


def continued(state: Any, *counters: Any) -> Any:
    """What `hashed` gives for more counters, from what it gave without them."""
    for counter in counters:
        state = _mix((state + 0x9E3779B9 & _LOW) ^ counter)
    return state


def uniform(seed: Any, *counters: Any) -> Any:
    """In (0, 1), from `hashed`; NumPy gives float64."""
    return (hashed(seed, *counters) + 0.5) / 2.0**32
