"""How tokens are drawn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from alpaca_ray.serve.engine.sampling import SamplerState, next_tokens
from alpaca_ray.serve.engine.types import Sampling

PLAIN = Sampling(max_tokens=1)


def draw(logits: list[float], sampling: Sampling, times: int = 1000, prompt: tuple[int, ...] = (0,)) -> Counter[int]:
    batch = torch.tensor([logits] * times)
    states = [SamplerState(replace(sampling, seed=number), prompt) for number in range(times)]
    return Counter(next_tokens(batch, states))


def test_temperature_zero_takes_the_most_likely() -> None:
    assert draw([0.0, 3.0, 2.9], replace(PLAIN, temperature=0), times=50) == {1: 50}


def test_frequencies_follow_the_softmax() -> None:
    counts = draw([1.0, 2.0, 3.0], PLAIN, times=5000)
    for token, chance in enumerate(torch.tensor([1.0, 2.0, 3.0]).softmax(-1).tolist()):
        assert abs(counts[token] / 5000 - chance) < 0.03


def test_temperature_sharpens() -> None:
    assert draw([1.0, 2.0, 3.0], replace(PLAIN, temperature=0.25))[2] > draw([1.0, 2.0, 3.0], PLAIN)[2]


def test_top_k_keeps_the_k_most_likely() -> None:
    assert set(draw([1.0, 2.0, 1.5, 0.9], replace(PLAIN, top_k=2))) == {1, 2}


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05])
    assert set(draw(chances.log().tolist(), replace(PLAIN, top_p=0.75))) == {0, 1}
    assert set(draw(chances.log().tolist(), replace(PLAIN, top_p=0.85))) == {0, 1, 2}
    assert set(draw(chances.log().tolist(), replace(PLAIN, top_p=0.01))) == {0}


def test_top_p_counts_within_what_top_k_leaves() -> None:
    chances = torch.tensor([0.4, 0.3, 0.2, 0.1])
    # Of the two that are left the first has 4/7 = 0.571, so 0.55 is reached by it alone, 0.6 is not.
    assert set(draw(chances.log().tolist(), replace(PLAIN, top_k=2, top_p=0.55))) == {0}
    assert set(draw(chances.log().tolist(), replace(PLAIN, top_k=2, top_p=0.6))) == {0, 1}


def test_a_nucleus_wider_than_the_candidates_is_drawn_whole() -> None:
    counts = draw([0.0] * 1000, replace(PLAIN, top_p=0.9), times=3000)
    assert 820 < len(counts) <= 900


def test_rows_of_one_batch_keep_their_own_settings() -> None:
    logits = torch.tensor([[0.0, 5.0, 4.0]] * 4)
    settings = [
        replace(PLAIN, temperature=0),
        replace(PLAIN, top_k=1, seed=1),
        replace(PLAIN, logit_bias={0: 100.0}, seed=1),
        replace(PLAIN, temperature=0, logit_bias={1: -100.0}),
    ]
    assert next_tokens(logits, [SamplerState(s, (0,)) for s in settings]) == [1, 1, 0, 2]


def test_frequency_and_presence_penalties_count_the_answer() -> None:
    state = SamplerState(replace(PLAIN, temperature=0, frequency_penalty=0.6), (1, 1, 1))
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert [next_tokens(logits, [state])[0] for _ in range(4)] == [1, 1, 2, 1]
    state = SamplerState(replace(PLAIN, temperature=0, presence_penalty=1.5), ())
    assert [next_tokens(logits, [state])[0] for _ in range(3)] == [1, 2, 1]


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    assert next_tokens(logits, [SamplerState(replace(PLAIN, temperature=0, repetition_penalty=3.0), (1,))]) == [0]


def test_unlikely_tokens_are_never_drawn_by_rounding() -> None:
    logits = [0.0] + [-200.0] * 99
    assert draw(logits, PLAIN, times=500) == {0: 500}
