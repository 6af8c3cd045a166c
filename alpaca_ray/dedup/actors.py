"""Shards of the novelty pool as Ray actors."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from alpaca_ray.novelty.search import Found, LocalSearcher, Stats
from alpaca_ray.novelty.shards import Shard, ShardLost, ShardMaker
from alpaca_ray.novelty.tokens import TokenLists

# Of the actor itself, of what it was given or answered (its owner's death included), or of where it ran.
_LOST = (RayActorError, ObjectLostError, OutOfMemoryError, WorkerCrashedError, NodeDiedError)


class ActorShard:
    """A shard in an actor of its own. It reserves no CPU.

    It computes only while whoever asked it waits, and reserving one would let shards, clients and Ray Data wait for
    each other for ever on a machine of two.
    """

    def __init__(self, stats: Stats, threshold: float, *, workers: int) -> None:
        self.actor: Any = (
            ray.remote(LocalSearcher)
            .options(num_cpus=0, scheduling_strategy="SPREAD", max_restarts=0)
            .remote(stats, threshold, workers=workers)
        )

    def start(self, additions: TokenLists, queries: TokenLists) -> Any:
        """Begin a search."""
        try:
            return self.actor.search.remote(additions, queries)
        except _LOST as error:
            raise ShardLost(_why(error)) from error

    def result(self, started: Any) -> Found:
        """Wait for a search.

        Raises:
            ShardLost: the actor died, its node did, or what they exchanged is lost.
        """
        try:
            found: Found = ray.get(started)
        except RayTaskError:
            raise  # a defect of ours, which a new shard would only repeat
        except _LOST as error:
            raise ShardLost(_why(error)) from error
        return found

    def close(self) -> None:
        """End the actor."""
        with suppress(RayActorError, GetTimeoutError):
            ray.kill(self.actor)


def shard_maker(*, workers: int = 1) -> ShardMaker:
    """Return what makes shards, for ``NoveltyFilter(make_shard=...)``. ``workers``: threads in each of them."""

    def make(stats: Stats, threshold: float) -> Shard:
        return ActorShard(stats, threshold, workers=workers)

    return make


def _why(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
