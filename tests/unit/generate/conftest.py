"""Fixtures for tests of the teacher's client: its waits between tries, made short or noted."""

from __future__ import annotations

import pytest

from alpaca_ray.generate.client import TeacherClient


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries come one right after the other."""
    monkeypatch.setattr("alpaca_ray.generate.client._FIRST_WAIT", 0.001)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between tries and for their time, noted in place of being waited for."""
    noted: list[float] = []

    async def pause(self: TeacherClient, seconds: float) -> bool:
        if seconds > 0:
            noted.append(seconds)
        return True

    monkeypatch.setattr("alpaca_ray.generate.client.TeacherClient._pause", pause)
    return noted
