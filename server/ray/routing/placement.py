"""Which replica a request goes to: rendezvous hashing with bounded loads. Pure, and the same in every ingress.

Each key has its own order of the replicas, so that one which comes or goes moves only its own share of the keys. A
replica that is far busier than the mean is passed over: a prefix that everybody shares does not end up in one place.
(Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2016, with rendezvous in place of a ring.)
"""

import hashlib
from collections.abc import Collection, Mapping

SLACK = 4
"""Requests that a replica may always have without being passed over."""
EXCESS = 1.25
"""How far above the mean load a replica may be before it is passed over."""


def order(key: str | None, loads: Mapping[str, int], tried: Collection[str] = ()) -> list[str]:
    """All replicas, the one to ask first at the front; without a key by load alone.

    `loads`: requests that each replica has. `tried`: replicas that have refused this request, which come last.
    """
    if key is None:
        ranked = sorted(loads, key=lambda replica: (loads[replica], replica))
    else:
        bound = max(SLACK, EXCESS * (sum(loads.values()) + 1) / max(len(loads), 1))
        ranked = sorted(loads, key=lambda replica: _weight(key, replica), reverse=True)
        ranked.sort(key=lambda replica: loads[replica] if loads[replica] >= bound else 0)  # keeps the order of equals
    return sorted(ranked, key=lambda replica: replica in tried)


def _weight(key: str, replica: str) -> bytes:
    return hashlib.sha256(f"{key}\n{replica}".encode()).digest()
