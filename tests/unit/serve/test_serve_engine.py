"""The torch engine against transformers' own generate, and what must hold of its slots."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from alpaca_ray.errors import ModelError
from alpaca_ray.serve.engine.loading import load_for_generation
from alpaca_ray.serve.engine.torch_engine import TorchEngine
from alpaca_ray.serve.engine.types import EngineError, GenerationRequest, Piece, Sampling

GREEDY = Sampling(max_tokens=24, temperature=0)


async def collect(engine: TorchEngine, request: GenerationRequest) -> list[Piece]:
    return [piece async for piece in engine.generate(request)]


async def text_of(engine: TorchEngine, prompt: tuple[int, ...], sampling: Sampling, adapter: str | None = None) -> str:
    pieces = await collect(engine, GenerationRequest(prompt, sampling, adapter))
    assert len(pieces) == 1
    return pieces[0].text


def reference(model: Any, tokenizer: Any, prompt: tuple[int, ...], sampling: Sampling) -> str:
    """What transformers generates for one prompt alone."""
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    return tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def random_prompts(count: int, vocabulary: int, seed: int = 0) -> list[tuple[int, ...]]:
    generator = random.Random(seed)
    return [
        tuple(generator.randrange(3, vocabulary) for _ in range(generator.choice([1, 3, 9, 30, 70])))
        for _ in range(count)
    ]


def test_a_mixed_batch_equals_generate_one_by_one(engine: TorchEngine, tiny_llama: Path, tiny_adapters: Path) -> None:
    from peft import PeftModel

    prompts = random_prompts(18, engine.loaded.vocabulary)
    generator = random.Random(7)

    async def run() -> tuple[list[str | None], list[str]]:
        keys = [await engine.load_adapter(tiny_adapters / name) for name in ("red", "blue")]
        owners: list[str | None] = [[None, *keys][index % 3] for index in range(len(prompts))]

        async def one(index: int) -> str:
            await asyncio.sleep(generator.random() * 0.15)
            sampling = Sampling(max_tokens=8 + index * 2, temperature=0)
            return await text_of(engine, prompts[index], sampling, owners[index])

        texts = await asyncio.gather(*[one(index) for index in range(len(prompts))])
        return [{None: None, keys[0]: "red", keys[1]: "blue"}[owner] for owner in owners], texts

    owners, texts = asyncio.run(run())
    tokenizer = engine.loaded.tokenizer
    models: dict[str | None, Any] = {None: load_for_generation(str(tiny_llama), dtype="float32").model}
    for name in ("red", "blue"):
        base = load_for_generation(str(tiny_llama), dtype="float32").model
        models[name] = PeftModel.from_pretrained(base, str(tiny_adapters / name))
    for index, (owner, text) in enumerate(zip(owners, texts, strict=True)):
        sampling = Sampling(max_tokens=8 + index * 2, temperature=0)
        assert text == reference(models[owner], tokenizer, prompts[index], sampling), (index, owner)


def test_opt_with_learned_positions_equals_generate(tiny_opt: Path) -> None:
    loaded = load_for_generation(str(tiny_opt), dtype="float32")
    engine = TorchEngine(loaded, max_batch_size=4)
    prompts = random_prompts(6, loaded.vocabulary, seed=3)

    async def run() -> list[str]:
        return await asyncio.gather(*[text_of(engine, prompt, GREEDY) for prompt in prompts])

    texts = asyncio.run(run())
    engine.close()
    model = load_for_generation(str(tiny_opt), dtype="float32").model
    assert texts == [reference(model, loaded.tokenizer, prompt, GREEDY) for prompt in prompts]


def test_answers_longer_than_a_cache_block_equal_generate(engine: TorchEngine, tiny_llama: Path) -> None:
    prompts = [tuple(range(10, 250)), (5, 6, 7)]
    sampling = Sampling(max_tokens=320, temperature=0)

    async def run() -> list[str]:
        return await asyncio.gather(*[text_of(engine, prompt, sampling) for prompt in prompts])

    texts = asyncio.run(run())
    model = load_for_generation(str(tiny_llama), dtype="float32").model
    assert texts == [reference(model, engine.loaded.tokenizer, prompt, sampling) for prompt in prompts]


def test_pieces_of_a_stream_join_to_the_whole_answer_and_hold_no_half_characters(engine: TorchEngine) -> None:
    # A random model over a byte-level vocabulary gives many incomplete UTF-8 sequences.
    prompts = random_prompts(6, engine.loaded.vocabulary, seed=5)

    async def run() -> None:
        for number, prompt in enumerate(prompts):
            sampling = Sampling(max_tokens=60, temperature=1.5, seed=number, ignore_eos=True)
            whole = await text_of(engine, prompt, sampling)
            pieces = await collect(engine, GenerationRequest(prompt, sampling, stream=True))
            assert "".join(piece.text for piece in pieces) == whole
            assert len(pieces) > 10
            assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
            assert (pieces[-1].finish_reason, pieces[-1].tokens) == ("length", 60)

    asyncio.run(run())


def test_a_stop_text_ends_the_answer_and_never_leaves(engine: TorchEngine) -> None:
    prompt = random_prompts(1, engine.loaded.vocabulary, seed=11)[0]
    sampling = Sampling(max_tokens=60, temperature=0, ignore_eos=True)

    async def run() -> None:
        whole = await text_of(engine, prompt, sampling)
        stop = whole[17:24]
        cut = whole[: whole.index(stop)]
        stopped = Sampling(max_tokens=60, temperature=0, ignore_eos=True, stop=("nowhere to be found", stop))
        pieces = await collect(engine, GenerationRequest(prompt, stopped, stream=True))
        assert "".join(piece.text for piece in pieces) == cut
        assert pieces[-1].finish_reason == "stop"
        assert pieces[-1].tokens < 60
        assert await text_of(engine, prompt, stopped) == cut

    asyncio.run(run())


def test_eos_ends_an_answer_and_is_no_text(engine: TorchEngine) -> None:
    eos = min(engine.loaded.eos)
    sampling = Sampling(max_tokens=20, temperature=0, logit_bias={eos: 100.0})

    async def run() -> list[Piece]:
        return await collect(engine, GenerationRequest((5, 6), sampling))

    assert asyncio.run(run()) == [Piece("", 1, "stop")]


def test_a_seed_gives_the_same_answer_alone_and_in_a_crowd(engine: TorchEngine) -> None:
    prompts = random_prompts(5, engine.loaded.vocabulary, seed=13)
    seeded = Sampling(max_tokens=30, temperature=1.0, top_p=0.9, top_k=40, seed=42, ignore_eos=True)
    other = Sampling(max_tokens=30, temperature=1.0, ignore_eos=True)

    async def run() -> None:
        alone = await text_of(engine, prompts[0], seeded)
        texts = await asyncio.gather(
            text_of(engine, prompts[0], seeded), *[text_of(engine, prompt, other) for prompt in prompts[1:]]
        )
        assert texts[0] == alone
        different = Sampling(max_tokens=30, temperature=1.0, top_p=0.9, top_k=40, seed=43, ignore_eos=True)
        assert await text_of(engine, prompts[0], different) != alone

    asyncio.run(run())


def test_a_request_that_is_left_gives_its_slot_back(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TorchEngine(load_for_generation(str(tiny_llama), dtype="float32"), max_batch_size=1)
    endless = GenerationRequest((5, 6), Sampling(max_tokens=900, temperature=0, ignore_eos=True), stream=True)
    steps = 0
    decode = engine._runner.decode

    def count(*args: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return decode(*args)

    monkeypatch.setattr(engine._runner, "decode", count)

    async def run() -> None:
        stream = engine.generate(endless)
        await anext(stream)
        await stream.aclose()
        # There is one slot only: this one is answered after the other has left it.
        assert await text_of(engine, (7, 8), Sampling(max_tokens=4, temperature=0, ignore_eos=True))

    asyncio.run(run())
    engine.close()
    assert steps < 100


def test_more_requests_than_slots_are_all_answered(engine: TorchEngine) -> None:
    async def run() -> list[list[Piece]]:
        request = GenerationRequest((5, 6, 7), Sampling(max_tokens=5, temperature=0, ignore_eos=True))
        return await asyncio.gather(*[collect(engine, request) for _ in range(40)])

    answers = asyncio.run(run())
    assert len({pieces[-1].text for pieces in answers}) == 1
    assert all(pieces[-1].tokens == 5 for pieces in answers)


def test_an_adapter_in_use_is_freed_only_after_its_last_answer(engine: TorchEngine, tiny_adapters: Path) -> None:
    sampling = Sampling(max_tokens=200, temperature=0, ignore_eos=True)

    async def run() -> None:
        key = await engine.load_adapter(tiny_adapters / "red")
        whole = await text_of(engine, (5, 6), sampling, key)
        stream = engine.generate(GenerationRequest((5, 6), sampling, key, stream=True))
        first = await anext(stream)
        engine.unload_adapter(key)
        await text_of(engine, (7,), GREEDY)
        assert engine.adapters == 1
        rest = [piece async for piece in stream]
        assert first.text + "".join(piece.text for piece in rest) == whole
        base = await text_of(engine, (5, 6), sampling)
        assert engine.adapters == 0
        assert base != whole
        again = await engine.load_adapter(tiny_adapters / "red")
        assert await text_of(engine, (5, 6), sampling, again) == whole

    asyncio.run(run())


def test_an_adapter_that_is_held_outlives_its_eviction(engine: TorchEngine, tiny_adapters: Path) -> None:
    async def run() -> None:
        key = await engine.load_adapter(tiny_adapters / "red")
        expected = await text_of(engine, (5, 6), GREEDY, key)
        assert engine.hold_adapter(key)
        engine.unload_adapter(key)
        await text_of(engine, (7,), GREEDY)  # rounds of the engine, in which it would be freed
        assert await text_of(engine, (5, 6), GREEDY, key) == expected
        engine.release_adapter(key)
        await text_of(engine, (7,), GREEDY)
        assert engine.adapters == 0
        assert not engine.hold_adapter(key)

    asyncio.run(run())


def test_an_adapter_that_is_evicted_in_the_middle_of_a_round_is_freed_without_another_request(
    engine: TorchEngine, tiny_adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = asyncio.run(engine.load_adapter(tiny_adapters / "red"))
    collect_free = engine._runner.bank.collect
    looked = threading.Event()

    def collect_then_evict() -> None:
        collect_free()
        if not looked.is_set():
            looked.set()
            engine.unload_adapter(key)  # after this round has looked for adapters to free

    monkeypatch.setattr(engine._runner.bank, "collect", collect_then_evict)
    engine._call(lambda: None).result(30)
    assert looked.wait(30)
    for _ in range(1000):
        if not engine.adapters:
            break
        time.sleep(0.01)
    assert engine.adapters == 0


def test_a_request_whose_adapter_is_gone_fails_alone(engine: TorchEngine, tiny_adapters: Path) -> None:
    async def run() -> None:
        expected = await text_of(engine, (7,), GREEDY)
        key = await engine.load_adapter(tiny_adapters / "red")
        engine.unload_adapter(key)
        while engine.adapters:
            await text_of(engine, (7,), GREEDY)
        other, gone = await asyncio.gather(
            text_of(engine, (7,), GREEDY), text_of(engine, (5, 6), GREEDY, key), return_exceptions=True
        )
        assert other == expected
        assert isinstance(gone, EngineError)
        assert "no longer in memory" in str(gone)

    asyncio.run(run())


def test_an_adapter_whose_load_was_given_up_is_freed(
    engine: TorchEngine, tiny_adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        load = engine._runner.bank.load

        def slow_load(folder: Path) -> str:
            started.set()
            go_on.wait(30)
            return load(folder)

        monkeypatch.setattr(engine._runner.bank, "load", slow_load)
        loading = asyncio.create_task(engine.load_adapter(tiny_adapters / "red"))
        await loop.run_in_executor(None, started.wait, 30)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        go_on.set()
        await text_of(engine, (7,), GREEDY)
        await text_of(engine, (7,), GREEDY)
        assert engine.adapters == 0

    asyncio.run(run())


def test_an_adapter_that_does_not_fit_is_refused_and_the_engine_goes_on(
    engine: TorchEngine, tiny_adapters: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    def broken(name: str, change: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tiny_adapters / "red", folder)
        weights = load_file(folder / "adapter_model.safetensors")
        change(weights)
        save_file(weights, folder / "adapter_model.safetensors")
        return folder

    def wrong_shape(weights: dict[str, torch.Tensor]) -> None:
        name = sorted(weights)[0]
        weights[name] = torch.zeros(4, 7)

    def stray(weights: dict[str, torch.Tensor]) -> None:
        weights["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)

    def not_a_number(weights: dict[str, torch.Tensor]) -> None:
        weights[sorted(weights)[0]].fill_(float("nan"))

    def absent(weights: dict[str, torch.Tensor]) -> None:
        del weights[sorted(weights)[0]]

    cases = {"shape": wrong_shape, "stray": stray, "nan": not_a_number, "absent": absent}

    async def run() -> None:
        base = await text_of(engine, (5, 6), GREEDY)
        for name, change in cases.items():
            with pytest.raises(ModelError, match=name):
                await engine.load_adapter(broken(name, change))
            assert await text_of(engine, (5, 6), GREEDY) == base
        good = await engine.load_adapter(tiny_adapters / "red")
        for name, change in cases.items():
            with pytest.raises(ModelError, match=name):
                await engine.load_adapter(broken(f"{name}-again", change))
        assert await text_of(engine, (5, 6), GREEDY) == base
        assert await text_of(engine, (5, 6), GREEDY, good) != base
        assert engine.adapters == 1

    asyncio.run(run())


def test_a_base_in_8_bits_answers_with_and_without_adapters(tiny_llama: Path, tiny_adapters: Path) -> None:
    loaded = load_for_generation(str(tiny_llama), load_8bit=True)
    quantised = [type(module).__name__ for module in loaded.model.modules()].count("Linear8bitLt")
    assert quantised == 2 * 7  # every linear layer of both blocks
    engine = TorchEngine(loaded, max_batch_size=4)

    async def run() -> None:
        red = await engine.load_adapter(tiny_adapters / "red")
        blue = await engine.load_adapter(tiny_adapters / "blue")
        texts = [await text_of(engine, (5, 6), GREEDY, key) for key in (None, red, blue)]
        assert len(set(texts)) == 3
        assert await asyncio.gather(*[text_of(engine, (5, 6), GREEDY, key) for key in (None, red, blue)]) == texts
        engine.unload_adapter(red)
        engine.unload_adapter(blue)
        assert await text_of(engine, (5, 6), GREEDY) == texts[0]

    asyncio.run(run())
    engine.close()


def test_a_failing_pass_fails_its_requests_and_no_others(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = engine._runner.decode

    def fail(*args: Any) -> torch.Tensor:
        raise RuntimeError("out of memory")

    async def run() -> None:
        expected = await text_of(engine, (5, 6), GREEDY)
        monkeypatch.setattr(engine._runner, "decode", fail)
        with pytest.raises(EngineError, match="out of memory"):
            await text_of(engine, (5, 6), GREEDY)
        monkeypatch.setattr(engine._runner, "decode", decode)
        assert await text_of(engine, (5, 6), GREEDY) == expected

    asyncio.run(run())


def test_a_closed_engine_refuses_and_ends_what_waits(engine: TorchEngine) -> None:
    async def run() -> None:
        stream = engine.generate(GenerationRequest((5,), Sampling(max_tokens=900, ignore_eos=True), stream=True))
        await anext(stream)
        engine.close()
        with pytest.raises(EngineError):
            async for _ in stream:
                pass
        with pytest.raises(EngineError):
            await text_of(engine, (5,), GREEDY)

    asyncio.run(run())


def test_the_context_bounds_an_answer(tiny_llama: Path) -> None:
    engine = TorchEngine(load_for_generation(str(tiny_llama), dtype="float32", max_model_len=16), max_batch_size=2)
    sampling = Sampling(max_tokens=99, temperature=0, ignore_eos=True)

    async def run() -> list[Piece]:
        return await collect(engine, GenerationRequest(tuple(range(5, 15)), sampling))

    pieces = asyncio.run(run())
    engine.close()
    assert (pieces[-1].tokens, pieces[-1].finish_reason) == (6, "length")


def test_a_length_beyond_the_model_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="max_model_len 5000"):
        load_for_generation(str(tiny_llama), max_model_len=5000)
