from __future__ import annotations

import socket
from typing import Any

import pytest
from generate_support import scripted, teacher_at

from alpaca_ray.errors import SettingsError, TeacherError
from alpaca_ray.generate.teacher import OPENAI_URL, Teacher, choose_teachers, probe, recorded_teachers
from alpaca_ray.settings.generate import GenerateSettings
from alpaca_ray.testing.teacher import StandIn, standin

KEY = {"OPENAI_API_KEY": "k"}


def choose(environ: dict[str, str], **given: Any) -> Teacher:
    (teacher,) = choose_teachers(GenerateSettings.resolve(given), environ)
    return teacher


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


def several(*endpoints: str, environ: dict[str, str] | None = None, **given: Any) -> list[Teacher]:
    return choose_teachers(GenerateSettings.resolve({"endpoints": list(endpoints), **given}), environ or {})


def test_several_endpoints_and_keys() -> None:
    found = several("http://a:1/v1/ weight=3 key=A model=m", "  https://b/v1   ", model_name="n", api_key_env="B")
    assert found == [
        Teacher("http://a:1/v1", "m", "completions", "A", weight=3.0),
        Teacher("https://b/v1", "n", "completions", "B"),
    ]
    (openai,) = several(f"{OPENAI_URL} key=K weight=0.5", environ={"K": "k"}, model_name="gpt-4o-mini")
    assert (openai.api, openai.weight, openai.key({"K": "k"})) == ("chat", 0.5, "k")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("http://a/v1 wieght=3", "unknown 'wieght': give weight=, key= or model="),
        ("http://a/v1 http://b/v1", "unknown 'http://b/v1'"),
        ("http://a/v1 weight=x", "weight must be a number above 0"),
        ("http://a/v1 weight=0", "weight must be a number above 0"),
        ("http://a/v1 weight=-1", "weight must be a number above 0"),
        ("http://a/v1 weight=inf", "weight must be a number above 0"),
        ("http://a/v1 weight=nan", "weight must be a number above 0"),
        ("http://a/v1 weight", "weight must be a number above 0"),
        ("http://a/v1 key=", "'key=' names no value"),
        ("http://a/v1 model", "'model' names no value"),
        ("a/v1", "'a/v1': must be an address"),
        ("weight=2", "must be an address"),
        ("", "must be an address"),
        ("  ", "must be an address"),
    ],
)
def test_an_endpoint_that_is_none(given: str, words: str) -> None:
    with pytest.raises(SettingsError, match="--endpoints") as raised:
        several("http://ok/v1", given)
    assert words in str(raised.value)


def test_an_endpoint_of_openais_needs_its_own_key() -> None:
    with pytest.raises(TeacherError, match=r"OTHER is not set"):
        several(f"{OPENAI_URL} model=gpt-4o-mini", f"{OPENAI_URL} model=gpt-4o-mini key=OTHER", environ=KEY)
    with pytest.raises(SettingsError, match="--model_name is required"):
        several(OPENAI_URL, environ=KEY)
    with pytest.raises(SettingsError, match=r"text-davinci-003: OpenAI has shut it down"):
        several(f"{OPENAI_URL} model=text-davinci-003", environ=KEY)


def test_a_run_remembers_an_endpoint_without_the_port_of_this_machine() -> None:
    same = {teacher_at(f"http://127.0.0.1:{port}/v1").identity for port in (1, 2)}
    assert same == {"http://127.0.0.1"}
    assert teacher_at("http://h:1/v1").identity == "http://h:1/v1"
    assert choose({}).identity == "embedded"


def test_a_replay_knows_its_teacher_from_the_journal() -> None:
    there = {"model_name": "m", "base_url": "http://h/v1", "api": "chat", "temperature": 1}
    assert recorded_teachers(there, "KEY") == [Teacher("http://h/v1", "m", "chat", "KEY")]


def test_the_key_is_neither_shown_nor_sent_with_the_teacher() -> None:
    teacher = teacher_at("http://h/v1")
    assert teacher.client_options({"KEY": "secret"})["api_key"] == "secret"
    assert "secret" not in repr(teacher)


def test_the_first_listed_model_is_taken_where_none_is_named() -> None:
    with standin(StandIn.resolve({"models": ["a", "b"]})) as server:
        assert probe(teacher_at(server.url, model=""), {}).model == "a"
        assert probe(teacher_at(server.url, model="b", weight=2.0), {}) == teacher_at(server.url, model="b", weight=2.0)
        assert sum(server.prompts.values()) == 0


def test_a_wrong_key_is_found_before_the_first_request() -> None:
    with standin(StandIn.resolve({"key": "right"})) as server:
        with pytest.raises(TeacherError, match=r"401: Incorrect API key provided.*\$KEY"):
            probe(teacher_at(server.url), {})
        assert probe(teacher_at(server.url), {"KEY": "right"}).model == "stand-in"


@pytest.mark.parametrize(
    "reply", [(404, {}), (500, b"busy"), (200, b"<html>"), (200, [1]), (200, {"data": None}), (200, {"data": []})]
)
def test_an_endpoint_without_a_list_of_models_is_believed(reply: Any) -> None:
    with scripted(reply) as server:
        assert probe(teacher_at(server.url), {}) == teacher_at(server.url)
        with pytest.raises(TeacherError, match=r"lists no models: name one with --model_name"):
            probe(teacher_at(server.url, model=""), {})


def test_nobody_at_the_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(TeacherError, match=rf"{url} cannot be reached: .*[Rr]efused"):
            probe(Teacher(url, "m", "completions", "KEY"), {})


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_is_left_aside_for_this_machine(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with standin() as server:
        assert probe(teacher_at(server.url, model=""), {}).model == "stand-in"


def test_a_key_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match="must hold no user name or password") as caught:
        choose({}, base_url="http://me:secret@h/v1", model_name="m")
    assert "secret" not in str(caught.value)
