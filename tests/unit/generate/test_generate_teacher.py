from __future__ import annotations

import asyncio
import socket
import time
from email.utils import formatdate
from typing import Any

import pytest

from alpaca_ray.errors import SettingsError, TeacherError
from alpaca_ray.generate.client import TeacherClient, retry_after
from alpaca_ray.generate.journal import Outcome
from alpaca_ray.generate.teacher import OPENAI_URL, Teacher, choose_teacher, probe
from alpaca_ray.settings.cli import parse_settings
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.testing.teacher import StandIn, StandInServer, standin

KEY = {"OPENAI_API_KEY": "k"}


def choose(environ: dict[str, str], **given: Any) -> Teacher:
    return choose_teacher(GenerateSettings.resolve(given), environ)


@pytest.mark.parametrize(
    ("given", "environ", "url", "api"),
    [
        ({}, {"OPENAI_BASE_URL": "http://x/v1"}, "", "completions"),
        ({"model_name": "embedded"}, KEY, "", "completions"),
        ({"model_name": "embedded", "base_url": "http://h:1/v1/"}, {}, "http://h:1/v1", "completions"),
        ({"model_name": "gpt-4o-mini"}, KEY, OPENAI_URL, "chat"),
        ({"model_name": "gpt-3.5-turbo-instruct"}, KEY, OPENAI_URL, "completions"),
        ({"model_name": "gpt-4o-mini", "api": "completions"}, KEY, OPENAI_URL, "completions"),
        ({"model_name": "text-davinci-003"}, {"OPENAI_BASE_URL": "http://h/v1"}, "http://h/v1", "completions"),
        (
            {"model_name": "m", "base_url": "http://a/v1", "api": "chat"},
            {"OPENAI_BASE_URL": "http://b"},
            "http://a/v1",
            "chat",
        ),
    ],
)
def test_the_endpoint_follows_from_what_is_given(given: Any, environ: Any, url: str, api: str) -> None:
    teacher = choose(environ, **given)
    assert (teacher.base_url, teacher.api, teacher.local) == (url, api, url == "")


@pytest.mark.parametrize("model", ["text-davinci-003", "code-davinci-002", "curie"])
def test_a_model_that_is_gone_names_its_successors(model: str) -> None:
    with pytest.raises(SettingsError, match=r"gpt-3\.5-turbo-instruct .*gpt-4o-mini"):
        choose(KEY, model_name=model)


def test_a_missing_key_names_its_variable() -> None:
    with pytest.raises(TeacherError, match="OPENAI_API_KEY is not set"):
        choose({}, model_name="gpt-4o-mini")
    with pytest.raises(TeacherError, match="MY_KEY is not set"):
        choose(KEY, model_name="gpt-4o-mini", api_key_env="MY_KEY")
    assert choose({}, model_name="m", base_url="http://h/v1").key({}) == "none"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://h/v1", "http://", ""])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(SettingsError, match=r"--base_url .*must be an address"):
        choose({}, base_url=url)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--temperature -0.1", "--temperature"),
        ("--temperature nan", "--temperature"),
        ("--top_p 1.2", "--top_p"),
        ("--top_p 0", "--top_p"),
        ("--similarity_threshold 1.5", "--similarity_threshold"),
        ("--num_instructions_to_generate 0", "--num_instructions_to_generate"),
        ("--request_batch_size 0", "--request_batch_size"),
        ("--max_in_flight x", "--max_in_flight"),
        ("--api soap", "--api"),
        ("--num_prompt_instructions 20", "--num_tasks_per_prompt 20 .*must be larger"),
        ("--resume --overwrite", "contradict"),
        ("--modelname x", "unknown flag --modelname: did you mean --model_name"),
    ],
)
def test_flags_out_of_range_are_one_line(flags: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as raised:
        parse_settings(GenerateSettings, flags.split(), description="")
    assert "\n" not in str(raised.value)


def test_the_originals_flags_parse() -> None:
    line = (
        "--output_dir out --seed_tasks_path seed_tasks.jsonl --num_instructions_to_generate 100 --model_name "
        "text-davinci-003 --num_prompt_instructions 3 --request_batch_size 5 --temperature 1.0 --top_p 1.0 --num_cpus 8"
    )
    settings = parse_settings(GenerateSettings, line.split(), description="")
    assert (settings.model_name, settings.num_cpus, settings.max_tokens) == ("text-davinci-003", 8, 3072)


def test_stops_may_be_written_with_escapes() -> None:
    assert GenerateSettings.resolve({"stop": ["\\n20.", "###"]}).stops() == ["\n20.", "###"]
    assert GenerateSettings.resolve({"num_tasks_per_prompt": 20}).stops() == ["\n21. Instruction"]


def teacher_of(server: StandInServer, **given: Any) -> Teacher:
    return Teacher(server.url, **{"model": "stand-in", "api": "completions", "key_env": "KEY", **given})


def ask(teacher: Teacher, *prompts: str, environ: dict[str, str] | None = None, **options: Any) -> list[Outcome]:
    async def scene() -> list[Outcome]:
        client = TeacherClient(
            teacher,
            {"temperature": 1.0, "top_p": 1.0, "max_tokens": options.pop("max_tokens", 500), "stop": None},
            environ or {},
            **{"timeout": 30.0, "max_retries": 8, **options},
        )
        try:
            found = await asyncio.gather(*[client.ask(n, ["a"], "sha", text) for n, text in enumerate(prompts)])
            return [outcome for outcome in found if outcome is not None]
        finally:
            await client.close()

    return asyncio.run(scene())


PROMPT = "###\n4. Instruction:"


@pytest.mark.parametrize("api", ["completions", "chat"])
def test_an_answer_is_taken_with_its_usage(api: str) -> None:
    with standin(StandIn.resolve({"bad_tasks": False})) as server:
        (found,) = ask(teacher_of(server, api=api), PROMPT)
        assert found.text
        assert "4. Input:" in found.text
        assert (found.finish_reason, found.error, found.failures, found.model) == ("stop", None, {}, "stand-in")
        assert found.usage["prompt_tokens"] == 5
        assert found.usage["completion_tokens"] > 50
        (cut,) = ask(teacher_of(server, api=api), PROMPT, max_tokens=10)
        assert (cut.finish_reason, len(cut.text or "")) == ("length", 40)


def test_passing_errors_are_tried_again_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpaca_ray.generate.client._FIRST_WAIT", 0.001)
    settings = StandIn.resolve({"rate_429": 0.2, "rate_500": 0.2, "rate_drop": 0.2, "seed": 3})
    with standin(settings) as server:
        found = ask(teacher_of(server), *[f"{number} {PROMPT}" for number in range(40)], max_retries=30)
    assert all(outcome.error is None and outcome.text for outcome in found)
    failures = {
        kind: sum(outcome.failures.get(kind, 0) for outcome in found)
        for kind in ("rate_limit", "status_500", "connection")
    }
    assert failures == {
        "rate_limit": server.statuses[429],
        "status_500": server.statuses[500],
        "connection": server.statuses[0],
    }
    assert min(failures.values()) > 0


def test_retries_are_bounded_and_the_outcome_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpaca_ray.generate.client._FIRST_WAIT", 0.001)
    with standin(StandIn.resolve({"rate_500": 1.0})) as server:
        (found,) = ask(teacher_of(server), PROMPT, max_retries=3)
    assert (found.text, found.error, found.failures) == (None, "status_500", {"status_500": 4})
    assert found.message == "The server had an error."
    assert server.statuses[500] == 4


def test_retry_after_is_obeyed_by_every_request_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def pause(self: TeacherClient, seconds: float) -> bool:
        waits.append(seconds)
        return True

    monkeypatch.setattr("alpaca_ray.generate.client.TeacherClient._pause", pause)
    with standin(StandIn.resolve({"rate_429": 1.0, "retry_after": 37})) as server:
        ask(teacher_of(server), PROMPT, max_retries=1)
    before_first, after_first, before_second = waits
    assert before_first < 0
    assert 37 <= after_first < 38
    assert 36 < before_second < 37, "other requests of this client wait as well"


def test_a_drained_client_takes_what_is_under_way_and_tries_nothing_again() -> None:
    async def scene(server: StandInServer) -> list[Outcome | None]:
        client = TeacherClient(teacher_of(server), {"max_tokens": 500}, {}, timeout=30.0, max_retries=8)
        under_way = asyncio.ensure_future(client.ask(0, [], "", PROMPT))
        while not server.prompts:
            await asyncio.sleep(0.01)
        client.drain()
        try:
            return [await under_way, await client.ask(1, [], "", "late " + PROMPT)]
        finally:
            await client.close()

    with standin(StandIn.resolve({"latency": 0.3})) as server:
        first, late = asyncio.run(scene(server))
        assert first is not None
        assert first.text
        assert late is None
        assert len(server.prompts) == 1
    with standin(StandIn.resolve({"latency": 0.3, "rate_429": 1.0, "retry_after": 3600})) as server:
        assert asyncio.run(scene(server)) == [None, None]


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after": "2.5"}, 2.5, 2.5),
        ({"retry-after-ms": "300", "retry-after": "9"}, 0.3, 0.3),
    ],
)
def test_forms_of_retry_after(headers: dict[str, str], low: float, high: float) -> None:
    assert low <= (retry_after(headers) or 0.0) <= high


@pytest.mark.parametrize(("ahead", "low", "high"), [(3600, 3000, 3600), (-60, 0, 0)])
def test_retry_after_as_a_date(ahead: float, low: float, high: float) -> None:
    # The date is made here: a parameter would be made at collection, many minutes before a long run comes to it.
    headers = {"retry-after": formatdate(time.time() + ahead, usegmt=True)}
    assert low <= (retry_after(headers) or 0.0) <= high


@pytest.mark.parametrize("headers", [{}, {"retry-after": "soon"}, {"retry-after": "nan"}, {"retry-after": "-1"}])
def test_what_is_no_retry_after(headers: dict[str, str]) -> None:
    assert retry_after(headers) is None


def test_an_answer_without_text_is_recorded() -> None:
    with standin(StandIn.resolve({"rate_empty": 1.0})) as server:
        (found,) = ask(teacher_of(server), PROMPT)
    assert (found.text, found.error, found.failures) == (None, "no_text", {"no_text": 1})


def test_a_wrong_key_or_model_stops_with_the_servers_words() -> None:
    with standin(StandIn.resolve({"key": "right"})) as server:
        with pytest.raises(TeacherError, match=r"127\.0\.0\.1.*401: Incorrect API key provided.*\$KEY"):
            ask(teacher_of(server), PROMPT, environ={"KEY": "wrong"})
        with pytest.raises(TeacherError, match="401"):
            probe(teacher_of(server), {})
        with pytest.raises(TeacherError, match="404: The model 'other' does not exist"):
            ask(teacher_of(server, model="other"), PROMPT, environ={"KEY": "right"})
        assert ask(teacher_of(server), PROMPT, environ={"KEY": "right"})[0].text
        assert "right" not in repr(teacher_of(server))


def test_the_first_listed_model_is_taken_where_none_is_named() -> None:
    with standin(StandIn.resolve({"models": ["a", "b"]})) as server:
        assert probe(teacher_of(server, model=""), {}).model == "a"
        assert probe(teacher_of(server, model="b"), {}).model == "b"
        assert sum(server.prompts.values()) == 0


def test_nobody_at_the_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(TeacherError, match=rf"{url} cannot be reached: .*[Rr]efused"):
            probe(Teacher(url, "m", "completions", "KEY"), {})


def test_answers_depend_on_seed_and_prompt_alone() -> None:
    texts = []
    for seed in (0, 0, 1):
        with standin(StandIn.resolve({"seed": seed})) as server:
            texts.append([found.text for found in ask(teacher_of(server), "a " + PROMPT, "b " + PROMPT)])
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]
