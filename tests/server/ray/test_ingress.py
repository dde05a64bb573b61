"""What Ray says of a replica, in the relay's words."""

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.serve.exceptions import BackPressureError

from engine import QueueFull
from server.ray.ingress import _ServeFleet
from server.ray.relay.fleet import ReplicaDied


class Handle:
    """Serve's, of replicas that answer with an error."""

    def __init__(self, error):
        self.error = error
        self.is_cancelled = False

    def options(self, **_):
        return self

    def remote(self, **_):
        return self

    def cancel(self):
        self.is_cancelled = True

    async def __aiter__(self):
        yield {"type": "http.response.start"}
        raise self.error


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (ActorDiedError(), ReplicaDied),
        (OutOfMemoryError("Ray's watch over memory"), ReplicaDied),
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), QueueFull),
    ],
)
async def test_a_replica_that_is_gone(error, ours):
    handle = Handle(error)
    with pytest.raises(ours):
        [message async for message in _ServeFleet(handle).answer(None, (), {}, b"")]
    assert handle.is_cancelled
