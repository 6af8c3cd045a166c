"""How settings are declared: one pydantic model a job, each field with its description beside it."""

from __future__ import annotations

import json
import types
from contextlib import suppress
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from pydantic.fields import FieldInfo

from alpaca_ray.errors import SettingsError


def setting(
    default: Any,
    help: str,
    *,
    group: str = "general",
    aliases: tuple[str, ...] = (),
    positional: bool = False,
    **limits: Any,
) -> Any:
    """Declare one setting.

    Args:
        default: its default; ``...`` makes it required.
        help: one or two sentences for ``--help``, with units.
        group: the heading under which ``--help`` lists it.
        aliases: other names for the same setting (the originals'), accepted as flag and as config key.
        positional: given without a flag on the command line.
        limits: pydantic's bounds: ``ge``, ``gt``, ``le``, ``lt``.
    """
    extra: dict[str, Any] = {"group": group, "aliases": list(aliases), "positional": positional}
    return Field(default, description=help, json_schema_extra=extra, **limits)


class Settings(BaseModel):
    """Base of every job's settings: unknown keys are refused, and each value knows where it came from."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    # Name of a dict field that takes flags known to another library (see ``passthrough_names``), or None.
    passthrough_field: ClassVar[str | None] = None

    _sources: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def passthrough_names(cls) -> set[str]:
        """Return the flag names that go, unchanged, into ``passthrough_field``. Called only when one is met."""
        return set()

    @classmethod
    def dialect(cls, given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the name of the dialect that the given settings speak, and the defaults it brings.

        Args:
            given: canonical name to raw value, of every setting that the user gave; may be changed in place.

        Raises:
            SettingsError: two dialects are mixed.
        """
        return "", {}

    @classmethod
    def resolve(cls, given: dict[str, Any], sources: dict[str, str] | None = None) -> Self:
        """Build settings from what the user gave, the dialect's defaults, and our own.

        Raises:
            SettingsError: a value has the wrong type or is out of range; the text names the flag.
        """
        sources = dict(sources or {})
        dialect, defaults = cls.dialect(given)
        for name, value in defaults.items():
            if name not in given:
                given[name] = value
                sources[name] = f"{dialect} default"
        try:
            settings = cls.model_validate(
                {name: _adapt(cls.model_fields.get(name), value) for name, value in given.items()}
            )
        except pydantic.ValidationError as error:
            raise SettingsError(_one_line(error, given, sources)) from error
        settings._sources = sources
        return settings

    def source(self, name: str) -> str:
        """Return where a value came from: ``flag``, ``config FILE``, ``… default`` or ``default``."""
        return self._sources.get(name, "default")

    def was_given(self, name: str) -> bool:
        """Whether the user gave this setting, as a flag or in a config file."""
        return self.source(name) == "flag" or self.source(name).startswith("config ")

    def describe(self) -> list[str]:
        """Return a line for each value that differs from our default or was given, with where it came from."""
        return [
            f"  {name} = {getattr(self, name)!r}  ({self.source(name)})"
            for name in type(self).model_fields
            if name in self._sources
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return every resolved value, JSON-serialisable."""
        return self.model_dump(mode="json")


def field_names(cls: type[Settings]) -> dict[str, str]:
    """Return every accepted name of every setting, mapped to its canonical name."""
    names = {}
    for name, field in cls.model_fields.items():
        names[name] = name
        for alias in metadata(field)["aliases"]:
            names[alias] = name
    return names


def metadata(field: FieldInfo) -> dict[str, Any]:
    """Return what ``setting`` declared beside a field's type, default and description."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return {"group": "general", "aliases": [], "positional": False, **extra}


def value_types(field: FieldInfo) -> tuple[Any, ...]:
    """Return the types that a field admits, ``X | None`` taken apart."""
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def is_bool(field: FieldInfo) -> bool:
    """Whether a field is a boolean flag."""
    return bool in value_types(field)


def is_list(field: FieldInfo) -> bool:
    """Whether a field takes several values."""
    return any(get_origin(kind) is list for kind in value_types(field))


def is_dict(field: FieldInfo) -> bool:
    """Whether a field takes names with values."""
    return any(get_origin(kind) is dict for kind in value_types(field))


def choices(field: FieldInfo) -> list[str]:
    """Return the values that a ``Literal`` field admits, else an empty list."""
    return [str(value) for kind in value_types(field) if get_origin(kind) is Literal for value in get_args(kind)]


def _adapt(field: FieldInfo | None, value: Any) -> Any:
    """Bridge what a command line or YAML can express and what a field expects."""
    if field is None:
        return value
    if isinstance(value, str) and value.strip().lower() in ("none", "null") and type(None) in value_types(field):
        return None
    if isinstance(value, bool) and not is_bool(field):  # YAML reads `no` as false where a word was meant
        return "yes" if value else "no"
    if is_dict(field) and isinstance(value, str):  # on a command line: JSON in one word
        with suppress(ValueError):
            return json.loads(value)
    if is_list(field) and value is not None:
        parts = value if isinstance(value, list) else [value]
        return [item for part in parts for item in _split(part)]
    if str in value_types(field) and isinstance(value, int | float):
        return str(value)
    return value


def _split(part: Any) -> list[Any]:
    """Take ``[a,b]``, the way Alpaca-LoRA's launcher writes a list in one word, apart."""
    if isinstance(part, str) and part.startswith("[") and part.endswith("]"):
        return [item.strip().strip("'\"") for item in part[1:-1].split(",") if item.strip()]
    return [part]


def _one_line(error: pydantic.ValidationError, given: dict[str, Any], sources: dict[str, str]) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    message = str(first["msg"])
    if not name:
        return message.removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"--{name} is required"
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name!r}"
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    message = message.replace("a valid integer", "an integer").replace("a valid ", "a ").partition(", unable to")[0]
    source = sources.get(name, "")
    where = f"{source.removeprefix('config ')}: {name}" if source.startswith("config ") else f"--{name}"
    if first["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where} {given.get(name)!r}: must be {message}"
