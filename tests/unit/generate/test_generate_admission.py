"""Who may send next: order, limits and shares, without an event loop."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest

from alpaca_ray.generate.admission import NEVER, Admission, Endpoint, Failure, Want
from alpaca_ray.generate.breaker import Breaker
from alpaca_ray.generate.budget import Budget, Limits, Price, Tokens
from alpaca_ray.generate.limits import Pacer, Rates

WORST = Tokens(10, 90)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admission(
    *,
    weights: Sequence[float] = (1.0,),
    rates: Rates | None = None,
    limits: Limits | None = None,
    max_in_flight: int = 1000,
    limit: int = 10**6,
    clock: Clock | None = None,
) -> Admission:
    clock = clock or Clock()
    endpoints = [
        Endpoint(f"e{number}", Pacer(rates or Rates(), clock=clock), weight, Breaker(clock=clock))
        for number, weight in enumerate(weights)
    ]
    found = Admission(endpoints, max_in_flight, Budget(limits or Limits()))
    found.limit = limit
    return found


def wants(*numbers: int, worst: Tokens = WORST) -> list[Want]:
    return [Want(number, worst) for number in numbers]


def granted(found: Admission) -> list[int]:
    return [grant.request_id for _, grant, _ in found.grant()[0]]


def test_a_request_under_way_is_not_granted_again() -> None:
    found = admission()
    found.want("a", wants(0, 1))
    assert granted(found) == [0, 1]
    found.want("b", wants(1))
    found.want("a", wants(0, 2))
    assert granted(found) == [2]
    assert (found.in_flight, found.budget.reserved) == (3, Tokens(30, 270))


def test_the_lowest_number_goes_first_whoever_asks() -> None:
    found = admission(max_in_flight=3)
    found.want("a", wants(7, 5))
    found.want("b", wants(6, 1, 9))
    grants, wait = found.grant()
    assert [(client, grant.request_id, worst) for client, grant, worst in grants] == [
        ("b", 1, WORST),
        ("a", 5, WORST),
        ("b", 6, WORST),
    ]
    assert wait == NEVER
    assert found.in_flight == 3
    found.answered(5, "a", Tokens())
    found.want("a", wants(2))  # another try of an early request goes before what has waited longer
    assert granted(found) == [2]


def test_no_more_are_under_way_than_allowed() -> None:
    found = admission(max_in_flight=4)
    found.want("a", wants(*range(20)))
    assert granted(found) == [0, 1, 2, 3]
    assert granted(found) == []
    found.failed("a", Failure(1, "status_500"))
    found.answered(3, "a", Tokens())
    assert granted(found) == [4, 5]


def test_nothing_beyond_the_drivers_limit_goes() -> None:
    found = admission(limit=2)
    found.want("a", wants(0, 1, 2, 3))
    assert granted(found) == [0, 1]
    found.limit = 3
    assert granted(found) == [2]


def test_another_clients_report_changes_nothing() -> None:
    found = admission(limits=Limits(max_tokens_total=1000))
    found.want("a", wants(0))
    assert granted(found) == [0]
    assert found.failed("b", Failure(0, "timeout", lost=True)) is None
    assert found.failed("a", Failure(1, "timeout", lost=True)) is None
    assert (found.in_flight, found.budget.spent) == (1, Tokens())
    assert found.failed("a", Failure(0, "timeout", lost=True)) == WORST
    assert (found.in_flight, found.budget.spent, found.budget.reserved) == (0, WORST, Tokens())
    assert found.failed("a", Failure(0, "timeout", lost=True)) is None, "once"


def test_a_refusal_costs_nothing_and_an_answer_what_it_took() -> None:
    found = admission()
    found.want("a", wants(0, 1))
    found.grant()
    assert found.budget.reserved == WORST + WORST
    assert found.failed("a", Failure(0, "status_500")) == WORST
    found.answered(1, "a", Tokens(4, 6))
    assert (found.budget.spent, found.budget.reserved) == (Tokens(4, 6), Tokens())


def test_a_dead_clients_requests_count_in_full() -> None:
    found = admission(max_in_flight=3)
    found.want("a", wants(0, 1, 5))
    found.want("b", wants(2, 3))
    assert granted(found) == [0, 1, 2]
    assert found.held_by("a") == [(0, WORST), (1, WORST)]
    found.forget("a")
    assert found.held_by("a") == []
    assert (found.budget.spent, found.in_flight) == (WORST + WORST, 1)
    found.want("b", wants(0, 1))
    assert granted(found) == [0, 1]
    found.answered(0, "a", Tokens(1, 1))  # came at last: it was paid for, and the new holder is still under way
    assert found.in_flight == 3
    found.answered(0, "b", Tokens(1, 1))
    assert granted(found) == [3], "what the dead client still wished for is gone"
    for number in (1, 2, 3):
        found.failed("b", Failure(number, "status_500"))
    assert granted(found) == []


@pytest.mark.parametrize("seed", range(30))
def test_a_budget_is_never_exceeded(seed: int) -> None:
    """Random streams of wishes, answers of any length, failures, dead clients: spent and reserved stay within."""
    rng = random.Random(seed)
    price = Price(rng.uniform(0.1, 5), rng.uniform(0.1, 30))
    limits = rng.choice(
        [
            Limits(price, max_cost=rng.uniform(0.05, 0.5)),
            Limits(max_tokens_total=rng.randint(5_000, 200_000)),
            Limits(price, max_cost=rng.uniform(0.05, 0.5), max_tokens_total=rng.randint(5_000, 200_000)),
        ]
    )
    found = admission(limits=limits, max_in_flight=64)
    under_way: dict[int, tuple[str, Tokens]] = {}
    clients = [f"c{number}" for number in range(4)]
    waiting = 0
    number = 0
    while found.exhausted is None:
        while waiting < 100:
            worst = Tokens(rng.randint(50, 800), rng.choice([64, 500, 1000]))
            found.want(rng.choice(clients), [Want(number, worst)])
            number += 1
            waiting += 1
        grants, _ = found.grant()
        for client, grant, worst in grants:
            under_way[grant.request_id] = (client, worst)
            waiting -= 1
        assert len(under_way) == found.in_flight <= 64
        total = found.budget.spent + found.budget.reserved
        assert limits.exceeded_by(total) is None
        assert limits.max_tokens_total is None or total.total <= limits.max_tokens_total
        assert limits.max_cost is None or price.cost(total) <= limits.max_cost
        if not under_way:
            continue
        request_id = rng.choice(list(under_way))
        client, worst = under_way[request_id]
        event = rng.random()
        if event < 0.7:
            del under_way[request_id]
            found.answered(
                request_id, client, Tokens(rng.randint(1, worst.prompt), rng.choice([worst.completion, 3, 60]))
            )
        elif event < 0.97:
            del under_way[request_id]
            found.failed(client, Failure(request_id, "timeout", lost=rng.random() < 0.5))
        else:
            found.forget(client)
            under_way = {number: held for number, held in under_way.items() if held[0] != client}
            clients = [f"c{number}" if one == client else one for one in clients]
            waiting = 0
    assert (found.in_flight, found.budget.reserved) == (0, Tokens())
    flags = {"--max_cost": limits.max_cost, "--max_tokens_total": limits.max_tokens_total}
    assert flags[found.exhausted] is not None


def test_the_budget_ends_the_run_only_when_all_is_back() -> None:
    found = admission(limits=Limits(max_tokens_total=250))
    found.want("a", wants(0, 1, 2, 3))
    assert granted(found) == [0, 1]
    assert (granted(found), found.exhausted) == ([], None)
    found.answered(0, "a", Tokens(5, 5))
    assert granted(found) == [2]
    found.answered(1, "a", Tokens(10, 90))
    found.answered(2, "a", Tokens(5, 46))
    assert (granted(found), found.exhausted) == ([], "--max_tokens_total")
    found.want("a", wants(0, worst=Tokens(1, 1)))
    assert granted(found) == [], "it has ended"


def test_a_grant_that_is_refused_for_now_takes_nothing_from_the_budget() -> None:
    clock = Clock()
    found = admission(rates=Rates(requests_per_second=1), limits=Limits(max_tokens_total=10_000), clock=clock)
    found.want("a", wants(0, 1))
    assert granted(found) == [0]
    for _ in range(5):
        grants, wait = found.grant()
        assert not grants
        assert 0 < wait < 1
    assert (found.budget.reserved, found.budget.spent) == (WORST, Tokens())
    clock.now += wait
    grants, _ = found.grant()
    ((_, grant, _),) = grants
    assert grant.request_id == 1
    assert clock.now < grant.at <= clock.now + 0.5
    assert grant.at >= 1001, "a second after the first"


def test_without_a_rate_limit_a_grant_means_now() -> None:
    found = admission()
    found.want("a", wants(0, 1))
    assert [grant.at for _, grant, _ in found.grant()[0]] == [0.0, 0.0]


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (3.0, 1.0), (0.5, 1.5, 2.0), (10.0, 1.0, 1.0)])
def test_endpoints_share_by_weight(weights: Sequence[float]) -> None:
    found = admission(weights=weights, max_in_flight=1)
    counts: Counter[int] = Counter()
    for number in range(240):
        found.want("a", wants(number))
        ((_, grant, _),) = found.grant()[0]
        counts[grant.endpoint] += 1
        found.answered(number, "a", Tokens())
        for index, weight in enumerate(weights):  # at any time, not only in the end
            assert abs(counts[index] - (number + 1) * weight / sum(weights)) <= len(weights)
    assert [counts[index] for index in range(len(weights))] == [240 * weight / sum(weights) for weight in weights]


def test_where_one_endpoint_is_at_its_limit_the_other_takes_over() -> None:
    clock = Clock()
    found = admission(weights=(9.0, 1.0), rates=Rates(requests_per_second=1), clock=clock)
    found.want("a", wants(*range(10)))
    grants, wait = found.grant()
    assert Counter(grant.endpoint for _, grant, _ in grants) == {0: 1, 1: 1}
    assert 0 < wait < 1


@pytest.mark.parametrize("weights", [(1.0, 1.0), (9.0, 1.0), (1.0, 9.0), (2.0, 1.0, 3.0)])
@pytest.mark.parametrize("held", [10, 1000])
def test_an_endpoint_that_was_held_up_comes_back_to_its_share(weights: Sequence[float], held: int) -> None:
    """Another run that shares its key has used its limit up; what it missed meanwhile is not made up for."""
    clock = Clock()
    found = admission(weights=weights, clock=clock)
    free = found.endpoints[0].pacer
    full = Pacer(Rates(requests_per_minute=1), clock=clock)
    assert full.reserve(1)[0] is not None
    found.endpoints[0].pacer = full
    total = sum(weights)

    def counts(numbers: range) -> list[int]:
        counted: Counter[int] = Counter()
        for number in numbers:
            found.want("a", wants(number))
            ((_, grant, _),) = found.grant()[0]
            counted[grant.endpoint] += 1
            found.answered(number, "a", Tokens())
        return [counted[index] for index in range(len(weights))]

    shares = counts(range(held))
    assert shares[0] == 0
    others = total - weights[0]
    assert shares[1:] == [pytest.approx(held * weight / others, abs=len(weights)) for weight in weights[1:]]
    found.endpoints[0].pacer = free
    rounds = 10
    shares = counts(range(held, held + rounds * int(total)))
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - rounds * weight) <= total, "a turn of all at most"
    shares = counts(range(10**5, 10**5 + rounds * int(total)))
    assert shares == [rounds * weight for weight in weights], "and then nothing of it is left"


def test_an_endpoint_in_a_pause_does_not_save_turns() -> None:
    clock = Clock()
    found = admission(weights=(1.0, 1.0), clock=clock)
    found.want("a", wants(*range(20)))
    grants, _ = found.grant()
    rate_limited(found, [grant.request_id for _, grant, _ in grants if grant.endpoint == 0])
    for _, grant, _ in grants:
        found.answered(grant.request_id, "a", Tokens())
    for number in range(20, 120):
        found.want("a", wants(number))
        ((_, grant, _),) = found.grant()[0]
        assert grant.endpoint == 1
        found.answered(number, "a", Tokens())
    clock.now += 1000
    counted: Counter[int] = Counter()
    for number in range(200, 220):
        found.want("a", wants(number))
        ((_, grant, _),) = found.grant()[0]
        counted[grant.endpoint] += 1
        found.answered(number, "a", Tokens())
    assert counted == {0: 10, 1: 10}


def test_where_all_are_held_up_the_soonest_counts() -> None:
    clock = Clock()
    found = admission(weights=(1.0, 1.0), clock=clock)
    for endpoint, rates in zip(
        found.endpoints, (Rates(requests_per_minute=1), Rates(requests_per_minute=3)), strict=True
    ):
        endpoint.pacer = Pacer(rates, clock=clock)
    found.want("a", wants(*range(5)))
    grants, wait = found.grant()
    assert [(grant.endpoint, grant.at) for _, grant, _ in grants] == [(0, 1000.0), (1, 1000.0)]
    assert wait == pytest.approx(20 * 1.015 - 0.5)
    clock.now += wait
    ((_, grant, _),) = found.grant()[0]
    assert (grant.request_id, grant.endpoint) == (2, 1)
    assert grant.at == pytest.approx(1020.3)


def rate_limited(found: Admission, numbers: Sequence[int], retry_after: float | None = None) -> None:
    for number in numbers:
        found.failed("a", Failure(number, "rate_limit", "slow down", retry_after=retry_after))


def test_a_run_of_rate_limits_pauses_one_endpoint_and_says_so() -> None:
    clock = Clock()
    found = admission(clock=clock)
    found.want("a", wants(*range(10)))
    assert granted(found) == list(range(10))
    rate_limited(found, range(10), retry_after=20.0)
    assert found.notes == ["e0 answers nothing but rate limits (slow down): pausing 20 s"]
    found.want("a", wants(*range(10)))
    assert found.grant() == ([], 20.0)
    assert found.budget.reserved == Tokens()
    clock.now += 20
    assert granted(found) == [0], "one tries"
    assert found.grant() == ([], NEVER)
    rate_limited(found, [0])
    assert "pausing 4 s" in found.notes[-1]
    clock.now += 4
    assert granted(found) == [1]
    found.answered(1, "a", Tokens(1, 1))
    assert found.notes[-1] == "e0 answers again"
    assert granted(found) == list(range(2, 10))


def test_the_others_carry_on_during_an_endpoints_pause() -> None:
    clock = Clock()
    found = admission(weights=(1.0, 1.0), clock=clock)
    found.want("a", wants(*range(20)))
    grants, _ = found.grant()
    rate_limited(found, [grant.request_id for _, grant, _ in grants if grant.endpoint == 0])
    found.want("a", wants(*range(20, 30)))
    grants, _ = found.grant()
    assert [grant.endpoint for _, grant, _ in grants] == [1] * 10
    assert len(found.notes) == 1


@pytest.mark.parametrize(
    ("failure", "granted_again"),
    [
        (Failure(0, "not_sent"), [1]),
        (Failure(0, "status_500"), []),
        (Failure(0, "rate_limit"), []),
        (Failure(0, "timeout", lost=True), []),
    ],
)
def test_what_was_not_sent_gives_its_tokens_back(failure: Failure, granted_again: list[int]) -> None:
    clock = Clock()
    found = admission(rates=Rates(tokens_per_minute=60), limits=Limits(max_tokens_total=1000), clock=clock)
    found.want("a", wants(0, 1, worst=Tokens(10, 20)))
    assert granted(found) == [0]
    assert granted(found) == []
    clock.now += 31  # the two fit the minute no more than evenly spaced, and with the margin not even so
    assert granted(found) == []
    found.failed("a", failure)
    assert granted(found) == granted_again
    clock.now += 30
    assert granted(found) == [1][len(granted_again) :], "a minute later all is forgotten"


def test_an_answer_gives_back_what_it_did_not_take() -> None:
    clock = Clock()
    found = admission(rates=Rates(tokens_per_minute=609), clock=clock)
    found.want("a", wants(*range(100), worst=Tokens(100, 200)))
    numbers = granted(found)
    for _ in range(120):
        clock.now += 0.5
        for number in numbers:
            found.answered(number, "a", Tokens(5, 15))
        numbers += granted(found)
    assert len(numbers) == pytest.approx(16, abs=1), "twice what may be under way, then so many as leave room for one"
    assert sorted(numbers) == list(range(len(numbers)))


def test_a_request_that_was_held_up_is_granted_a_later_place() -> None:
    """A client that is late by its clock gives the place back and asks again: each place is used once."""
    clock = Clock()
    found = admission(rates=Rates(requests_per_second=10), max_in_flight=1, clock=clock)
    times = []
    for _ in range(5):
        found.want("a", wants(0))
        while not (grants := found.grant()[0]):
            clock.now += 0.01
        times.append(grants[0][1].at)
        clock.now = times[-1] + 0.3
        assert found.failed("a", Failure(0, "not_sent")) == WORST
        assert (found.in_flight, found.budget.reserved, found.budget.spent) == (0, Tokens(), Tokens())
    assert all(later - sooner >= 0.1 for sooner, later in pairwise(times))


def test_other_failures_trip_nothing() -> None:
    found = admission()
    found.want("a", wants(*range(50)))
    found.grant()
    for number in range(50):
        found.failed("a", Failure(number, "status_500", retry_after=100.0))
    found.want("a", wants(*range(50)))
    assert (len(granted(found)), found.notes) == (50, [])
