from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from alpaca_ray.errors import OutputError
from alpaca_ray.generate.budget import Tokens
from alpaca_ray.generate.sent import SentLog, read_lost


def attempt(number: int, completion: int = 100) -> tuple[int, Tokens]:
    return number, Tokens(10, completion)


def opened(path: Path) -> SentLog:
    log = SentLog()
    log.open(path)
    return log


def test_a_file_that_is_not_there_lost_nothing(tmp_path: Path) -> None:
    assert read_lost(tmp_path / "sent.jsonl", ()) == Tokens()


def test_what_has_no_answer_counts_in_full(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    log = opened(path)
    log.sent([attempt(0), attempt(1, 200), attempt(2, 400)])
    log.close()
    assert read_lost(path, ()) == Tokens(30, 700)
    assert read_lost(path, {1}) == Tokens(20, 500)
    assert read_lost(path, {0, 1, 2}) == Tokens()


def test_what_was_freed_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    log = opened(path)
    log.sent([attempt(0, 1), attempt(1, 2)])
    log.freed([0])
    log.freed([])
    assert read_lost(path, ()) == Tokens(10, 2)
    log.sent([attempt(0, 4)])
    assert read_lost(path, ()) == Tokens(20, 6)
    log.freed([0, 1])
    assert read_lost(path, ()) == Tokens()


def test_a_try_that_timed_out_before_one_that_was_freed_still_counts(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    log = opened(path)
    log.sent([attempt(0, 1)])  # timed out: neither freed nor answered
    log.sent([attempt(0, 2)])
    log.freed([0])
    assert read_lost(path, ()) == Tokens(10, 1)
    assert read_lost(path, {0}) == Tokens(), "its outcome tells of the time-out"


def test_what_a_dead_client_had_counts_beside_the_answer_that_another_got(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    log = opened(path)
    log.sent([attempt(0, 1), attempt(1, 2)])
    log.lost([attempt(0, 1), attempt(1, 2)])
    log.lost([])
    log.sent([attempt(0, 1)])
    assert read_lost(path, {0}) == Tokens(20, 3)
    assert read_lost(path, ()) == Tokens(30, 4)


def test_an_answer_accounts_for_its_own_session_only(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    for session in (1, 2, 4):  # killed twice with request 0 under way
        log = opened(path)
        log.sent([attempt(0, session)])
        log.close()
    assert read_lost(path, {0}) == Tokens(20, 3)
    log = opened(path)
    log.freed([0])  # of a session that sent nothing
    log.close()
    assert read_lost(path, {0}) == Tokens(20, 3)


def test_lines_wait_for_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    log = SentLog()
    log.sent([attempt(0, 1), attempt(1, 2)])
    log.freed([0])
    assert not path.exists()
    log.open(path)
    assert list(json.loads(path.read_text().splitlines()[0])) == ["session"]
    log.sent([attempt(2, 4)])
    log.close()
    assert read_lost(path, ()) == Tokens(20, 6)
    SentLog().close()


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_at_any_byte_never_counts_too_little(tmp_path: Path, seed: int) -> None:
    """Whatever a kill leaves of the file: what was sent, not freed and not answered by then is in the account."""
    rng = random.Random(seed)
    path = tmp_path / "sent.jsonl"
    log = opened(path)
    states = [(path.stat().st_size, 0)]
    under_way: dict[int, int] = {}
    lost = 0
    for step in range(30):
        if under_way and rng.random() < 0.4:
            number = rng.choice(list(under_way))
            if rng.random() < 0.7:
                log.freed([number])
            else:
                log.lost([attempt(number, under_way[number])])
                lost += under_way[number]
            del under_way[number]
        else:
            fresh = {step * 3 + offset: rng.randint(1, 1000) for offset in range(rng.randint(1, 3))}
            log.sent([attempt(number, tokens) for number, tokens in fresh.items()])
            under_way |= fresh
        states.append((path.stat().st_size, lost + sum(under_way.values())))
    log.close()
    whole = path.read_bytes()
    cut = tmp_path / "cut.jsonl"
    for size in range(states[0][0], len(whole) + 1, 3):
        cut.write_bytes(whole[:size])
        durable = max((state for state in states if state[0] <= size), key=lambda state: state[0])[1]
        found = read_lost(cut, ()).completion
        if size in {state[0] for state in states}:
            assert found == durable
        else:  # a torn line is none: nothing was sent, or freed, on its account
            assert found == durable or whole[size : size + 1] == b"\n"
        later = opened(cut)  # goes on behind the last whole line
        later.sent([attempt(10_000, 5)])
        later.close()
        assert read_lost(cut, ()).completion == durable + 5
        assert all(json.loads(line) for line in cut.read_text().splitlines())


def test_a_damaged_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "sent.jsonl"
    path.write_bytes(b'{"session":1}\n{"sent":[[0,1,2]]}\n\xff\xfe\n[1]\n7\n{"sent":[[1,1,2]]}\n')
    assert read_lost(path, ()) == Tokens(2, 4)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"sent\.jsonl: cannot be written: .*--resume"):
        SentLog().open(tmp_path / "absent" / "sent.jsonl")
    with pytest.raises(OutputError, match="/dev/full: cannot be written: No space left on device; go on with --resume"):
        SentLog().open(Path("/dev/full"))
