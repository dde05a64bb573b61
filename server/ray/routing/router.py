"""Ray Serve's choice of a replica, made by `placement`. Ray makes one in every process that has a handle."""

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from server.ray.routing.placement import order


class AffinityRouter(RequestRouter):
    """Asks replicas in the order of the request's key; Serve passes over those that are full or have died."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks, of which Serve takes the first with a replica that has room."""
        asked: dict[Any, Any] = pending_request.kwargs if pending_request else {}
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        return [[replicas[name]] for name in order(asked.get("key"), loads, asked.get("tried", ()))]
