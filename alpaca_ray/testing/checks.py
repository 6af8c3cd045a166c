"""What the stand-in teacher does not take in a request: it says so as OpenAI's API does, with a 400 that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
# name: lowest value, highest value, whether it must be whole
_NUMBERS: dict[str, tuple[float, float, bool]] = {
    "max_tokens": (1, 2**31 - 1, True),
    "max_completion_tokens": (1, 2**31 - 1, True),
    "temperature": (0, 2, False),
    "top_p": (0, 1, False),
    "presence_penalty": (-2, 2, False),
    "frequency_penalty": (-2, 2, False),
    "n": (1, 128, True),
    "best_of": (1, 20, True),
    "seed": (-(2**63), 2**63 - 1, True),
}
_MOST_STOPS = 4
_FORMATS = ("text", "json_object", "json_schema")
_JSON_TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
_DEEPEST = 10  # levels of a schema, as OpenAI's limit is


class BadRequestError(ValueError):
    """A request that is answered 400. Its text is the message; ``param`` and ``code`` go with it."""

    def __init__(self, message: str, *, param: str | None, code: str) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


def check_body(body: Mapping[str, Any], *, chat: bool) -> None:
    """Check the parameters of a request that the stand-in reads, or that every server checks.

    Raises:
        BadRequestError: one has a type or a value that the API does not know, or asks for what the stand-in cannot do.
    """
    if not isinstance(body.get("model"), str):
        raise BadRequestError("'model' must be given, as a text.", param="model", code="invalid_type")
    if chat:
        _check_messages(body["messages"])
    for name, (lowest, highest, whole) in _NUMBERS.items():
        _check_number(name, body.get(name), lowest, highest, whole)
    for name in ("n", "best_of"):
        if body.get(name) not in (None, 1):
            words = f"Unsupported value: '{name}' must be 1: one answer a request is all that there is here."
            raise BadRequestError(words, param=name, code="unsupported_value")
    if body.get("stream"):
        raise BadRequestError("Answers are not streamed here.", param="stream", code="unsupported_parameter")
    _check_stop(body.get("stop"))
    _check_format(body.get("response_format"))


def stats_arguments(query: bytes) -> dict[str, Any]:
    """Return the arguments of ``StandInServer.stats`` that a query gives: ``at_least`` (1 or more), ``skip`` (seconds).

    Raises:
        BadRequestError: one is no such number.
    """
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    found: dict[str, Any] = {}
    for name, kind, lowest in (("at_least", int, 1), ("skip", float, 0)):
        if name not in given:
            continue
        try:
            found[name] = kind(given[name][-1])
        except ValueError:
            found[name] = -1  # no number: refused with the numbers that are too small
        if not lowest <= found[name] < 1e9:
            raise BadRequestError(f"'{name}' must be a number from {lowest} on.", param=name, code="invalid_value")
    return found


def _check_messages(messages: list[Any]) -> None:
    for number, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            words = f"'messages[{number}]' must be an object whose 'role' is one of {', '.join(sorted(_ROLES))}."
            raise BadRequestError(words, param=f"messages[{number}].role", code="invalid_value")


def _check_number(name: str, value: Any, lowest: float, highest: float, whole: bool) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        kind = "an integer" if whole else "a number"
        raise BadRequestError(
            f"Invalid type for '{name}': it must be {kind}, not {_kind(value)}.", param=name, code="invalid_type"
        )
    if not lowest <= value <= highest:
        words = f"Invalid value for '{name}': it must be from {lowest} to {highest}."
        raise BadRequestError(words, param=name, code="invalid_value")


def _check_stop(stop: Any) -> None:
    marks = stop if isinstance(stop, list) else [] if stop is None else [stop]
    if not all(isinstance(mark, str) for mark in marks):
        words = "Invalid type for 'stop': it must be a text or a list of texts."
        raise BadRequestError(words, param="stop", code="invalid_type")
    if len(marks) > _MOST_STOPS or "" in marks:
        words = f"Invalid value for 'stop': at most {_MOST_STOPS} texts, none of them empty."
        raise BadRequestError(words, param="stop", code="invalid_value")


def _check_format(wanted: Any) -> None:
    if wanted is None:
        return
    if not isinstance(wanted, dict):
        words = f"Invalid type for 'response_format': it must be an object, not {_kind(wanted)}."
        raise BadRequestError(words, param="response_format", code="invalid_type")
    kind = wanted.get("type")
    if not isinstance(kind, str) or kind not in _FORMATS:
        words = f"Invalid value for 'response_format.type': it must be one of {', '.join(_FORMATS)}."
        raise BadRequestError(words, param="response_format.type", code="invalid_value")
    if kind != "json_schema":
        return
    named = wanted.get("json_schema")
    for part, type_ in (("name", str), ("schema", dict)):
        if not isinstance(named, dict) or not isinstance(named.get(part), type_):
            param = f"response_format.json_schema.{part}"
            words = f"'{param}' must be given, as {'a text' if type_ is str else 'an object'}."
            raise BadRequestError(words, param=param, code="missing_required_parameter")
    assert isinstance(named, dict)  # the loop saw to it
    _check_schema(named["schema"], "schema", 0)


def _check_schema(schema: Any, where: str, depth: int) -> None:
    """Check that the stand-in can fill a schema: objects of named properties, lists of items, and plain values."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        raise _bad_schema(f"{where} must be an object, at most {_DEEPEST} levels deep")
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in _JSON_TYPES:
        raise _bad_schema(f"{where}.type must be one of {', '.join(_JSON_TYPES)}")
    if kind == "object":
        properties = schema.get("properties", {})
        if not isinstance(properties, dict):
            raise _bad_schema(f"{where}.properties must be an object")
        for name, part in properties.items():
            _check_schema(part, f"{where}.properties.{name}", depth + 1)
    elif kind == "array":
        _check_schema(schema.get("items"), f"{where}.items", depth + 1)


def _bad_schema(what: str) -> BadRequestError:
    return BadRequestError(
        f"Invalid schema for 'response_format': {what}.",
        param="response_format.json_schema.schema",
        code="invalid_value",
    )


def _kind(value: Any) -> str:
    """Return what JSON calls a value's type."""
    names = {bool: "a boolean", str: "a text", int: "an integer", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
