"""What counts as the loss of a shard, which is made up for, and what as a defect, which is not."""

from __future__ import annotations

from typing import Any

import pytest
from ray import exceptions

from alpaca_ray.dedup import actors
from alpaca_ray.dedup.actors import ActorShard
from alpaca_ray.novelty.shards import ShardLost
from alpaca_ray.novelty.tokens import TokenLists

NOTHING = TokenLists.of([])
LOST = [
    exceptions.RayActorError(),
    exceptions.OutOfMemoryError("killed: memory"),
    exceptions.ObjectLostError("ab" * 14, None, ""),
    exceptions.OwnerDiedError("ab" * 14, None, ""),
    exceptions.WorkerCrashedError(),
    exceptions.NodeDiedError("gone"),
]


class Broken:
    """An actor whose calls fail, or the shard of one whose results do."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def search(self) -> Any:
        return self

    def remote(self, *given: Any) -> Any:
        raise self.error


def shard(error: Exception) -> ActorShard:
    made = ActorShard.__new__(ActorShard)
    made.actor = Broken(error)
    return made


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_shard_is_lost(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(ShardLost):
        shard(error).start(NOTHING, NOTHING)
    monkeypatch.setattr(actors.ray, "get", Broken(error).remote)
    with pytest.raises(ShardLost) as caught:
        shard(error).result("started")
    assert len(str(caught.value).splitlines()) == 1


def test_a_defect_is_not_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = exceptions.RayTaskError("search", "traceback", exceptions.ObjectLostError("ab" * 14, None, ""))
    for error in (exceptions.RayTaskError("search", "traceback", ValueError("x")), cause.as_instanceof_cause()):
        monkeypatch.setattr(actors.ray, "get", Broken(error).remote)
        with pytest.raises(exceptions.RayTaskError):
            shard(error).result("started")
