from __future__ import annotations

import random
from typing import Any

import pytest

from alpaca_ray.errors import SettingsError
from alpaca_ray.generate.budget import Budget, Limits, Price, Tokens, price_of, prompt_bound


def test_what_is_reserved_counts_until_it_is_settled() -> None:
    budget = Budget(Limits(max_tokens_total=100))
    assert budget.reserve(Tokens(10, 50))
    assert not budget.reserve(Tokens(10, 31))
    assert budget.reserve(Tokens(10, 30))
    budget.settle(Tokens(10, 50), Tokens(10, 20))
    assert (budget.spent, budget.reserved) == (Tokens(10, 20), Tokens(10, 30))
    assert budget.reserve(Tokens(0, 30))
    budget.settle(Tokens(0, 30), Tokens())
    assert budget.spent.total == 30


def test_the_run_ends_only_when_nothing_under_way_can_make_room() -> None:
    budget = Budget(Limits(max_tokens_total=100), spent=Tokens(30, 10))
    assert budget.reserve(Tokens(0, 50))
    assert not budget.reserve(Tokens(0, 20))
    assert budget.exhausted_for(Tokens(0, 20)) is None
    budget.settle(Tokens(0, 50), Tokens(0, 45))
    assert not budget.reserve(Tokens(0, 20))
    assert budget.exhausted_for(Tokens(0, 20)) == "--max_tokens_total"
    assert budget.exhausted_for(Tokens(0, 15)) is None


def test_cost_counts_prompts_and_answers_at_their_own_price() -> None:
    limits = Limits(Price(1.0, 10.0), max_cost=0.001)
    assert limits.exceeded_by(Tokens(1000, 0)) is None
    assert limits.exceeded_by(Tokens(1001, 0)) == "--max_cost"
    assert limits.exceeded_by(Tokens(0, 100)) is None
    assert limits.exceeded_by(Tokens(0, 101)) == "--max_cost"
    assert Limits().exceeded_by(Tokens(10**12, 10**12)) is None
    assert (Limits().any, limits.any, Limits(max_tokens_total=1).any) == (False, True, True)


@pytest.mark.parametrize("seed", range(20))
def test_64_in_flight_never_overspend(seed: int) -> None:
    """Whatever the answers' lengths: spent and reserved stay below the limit, and most of it is used."""
    rng = random.Random(seed)
    price = Price(rng.uniform(0.1, 5), rng.uniform(0.1, 30))
    limits = Limits(price, max_cost=rng.uniform(0.01, 1.0))
    budget = Budget(limits)
    under_way: list[tuple[Tokens, Tokens]] = []
    longest = rng.choice([64, 500, 3072])
    while True:
        worst = Tokens(rng.randint(100, 4000), longest)
        if len(under_way) < 64 and budget.reserve(worst):
            actual = Tokens(rng.randint(1, worst.prompt), rng.choice([longest, rng.randint(0, longest)]))
            under_way.append((worst, rng.choice([actual, actual, actual, Tokens(), worst])))
        elif under_way:
            budget.settle(*under_way.pop(rng.randrange(len(under_way))))
        else:
            break
        assert price.cost(budget.spent + budget.reserved) <= limits.max_cost
    assert budget.exhausted_for(worst) == "--max_cost"
    assert budget.reserved == Tokens()
    assert price.cost(budget.spent + worst) > limits.max_cost


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": None}, {"completion_tokens": 0, "other": 7}])
def test_what_usage_does_not_say_counts_nothing(usage: dict[str, Any]) -> None:
    assert Tokens.of_usage(usage) == Tokens()


def test_a_prompt_has_no_more_tokens_than_bytes() -> None:
    assert prompt_bound("") == 64
    assert prompt_bound("ab") == 66
    assert prompt_bound("é") == 66
    assert prompt_bound("漢字🦙") == 74
    assert prompt_bound("\ud800") > 64, "a lone surrogate, which JSON can carry"


@pytest.mark.parametrize(
    ("model", "price"),
    [
        ("gpt-4o-mini", Price(0.15, 0.6)),
        ("gpt-4o-mini-2024-07-18", Price(0.15, 0.6)),
        ("gpt-4o-2024-08-06", Price(2.5, 10.0)),
        ("gpt-3.5-turbo-instruct", Price(1.5, 2.0)),
        ("gpt-4o-mini-tuned", None),
        ("gpt-4-32k", None),
        ("unknown", None),
    ],
)
def test_openais_list_prices(model: str, price: Price | None) -> None:
    assert price_of(model, None, openai=True) == price


def test_other_endpoints_have_no_list_prices() -> None:
    assert price_of("gpt-4o-mini", None, openai=False) is None
    assert price_of("m", {"m": [1, 2]}, openai=False) == Price(1.0, 2.0)
    assert price_of("m-2024", {"m": [1, 2]}, openai=False) is None


def test_the_users_prices_come_first() -> None:
    assert price_of("gpt-4o-mini", {"gpt-4o-mini": [7, 8]}, openai=True) == Price(7.0, 8.0)
    exact = {"gpt-4o-mini-2024-07-18": (1, 1)}
    assert price_of("gpt-4o-mini-2024-07-18", exact, openai=True) == Price(1.0, 1.0)


@pytest.mark.parametrize("pair", [1.0, [1], [1, 2, 3], [1, "2"], [-1, 2], "12", None, {"prompt": 1}])
def test_a_price_that_is_none_names_the_model(pair: Any) -> None:
    with pytest.raises(SettingsError, match=r"--prices: 'my-model' must have two prices.*\[0\.15, 0\.6\]"):
        price_of("other", {"my-model": pair}, openai=False)
