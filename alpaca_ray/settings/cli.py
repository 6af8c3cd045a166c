"""From a command line and a YAML file to resolved settings: flags win over the file, the file over defaults."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from alpaca_ray.errors import SettingsError
from alpaca_ray.settings.base import Settings, choices, field_names, is_bool, is_list, metadata, value_types

S = TypeVar("S", bound=Settings)

_INT = "tag:yaml.org,2002:int"
_GIVEN = argparse.SUPPRESS  # a flag that was not given leaves no trace, so defaults stay in one place: the model


class Parser(argparse.ArgumentParser):
    """Argparse's parser, whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message} (see --help)")


def parse_settings(cls: type[S], argv: Sequence[str] | None = None, *, description: str, prog: str | None = None) -> S:
    """Parse a command line into settings. ``--help`` prints and exits.

    Accepts ``--flag value``, ``--flag=value``, hyphens for underscores, and both ways of writing booleans
    (``--bf16``, ``--bf16 True``, ``--no_bf16``, ``--nobf16``).

    Raises:
        SettingsError: an unknown flag or key, a wrong type, an impossible combination; one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    names = field_names(cls)
    parser = _build_parser(cls, description, prog)
    namespace, unknown = parser.parse_known_args(_normalise(arguments, cls, names))
    flags = {names[key]: value for key, value in vars(namespace).items() if key in names}
    _refuse_doubles(arguments, names)
    passthrough = _passthrough(cls, unknown, names)

    given: dict[str, Any] = {}
    sources: dict[str, str] = {}
    config = getattr(namespace, "config", None)
    if config:
        for key, value in _read_config(config, cls, names).items():
            given[key], sources[key] = value, f"config {config}"
    for key, value in flags.items():
        given[key], sources[key] = value, "flag"
    if passthrough and cls.passthrough_field:
        given[cls.passthrough_field] = {**given.get(cls.passthrough_field, {}), **passthrough}
        sources[cls.passthrough_field] = "flag"
    return cls.resolve(given, sources)


def formatter(prog: str) -> argparse.HelpFormatter:
    """Return how ``--help`` is laid out."""
    return argparse.HelpFormatter(prog, max_help_position=32, width=110)


def _build_parser(cls: type[Settings], description: str, prog: str | None) -> Parser:
    positional = [name.upper() for name, field in cls.model_fields.items() if metadata(field)["positional"]]
    parser = Parser(
        prog=prog,
        usage=" ".join(["%(prog)s", *positional, "[flags]"]),  # sixty flags in brackets would hide the description
        description=description,
        allow_abbrev=False,
        formatter_class=formatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", default=_GIVEN, help="YAML file with any of these settings; flags win over it."
    )
    # First, also where a class inherits the fields of other groups.
    general = [field for field in cls.model_fields.values() if metadata(field)["group"] == "general"]
    groups: dict[str, Any] = {"general": parser.add_argument_group("general")} if general else {}
    for name, field in cls.model_fields.items():
        if name == cls.passthrough_field:
            continue
        meta = metadata(field)
        if meta["group"] not in groups:
            groups[meta["group"]] = parser.add_argument_group(meta["group"])
        group = groups[meta["group"]]
        options: dict[str, Any] = {"help": _help(name, field), "default": _GIVEN}
        if is_list(field):
            options["nargs"] = "*" if meta["positional"] else "+"
        elif is_bool(field):
            options |= {"nargs": "?", "const": "true"}
        options["metavar"] = _metavar(field)
        if meta["positional"]:
            options |= {"nargs": options.get("nargs", "?"), "metavar": name.upper()}
            group.add_argument(name, **options)
            continue
        group.add_argument(f"--{name}", *[f"--{alias}" for alias in meta["aliases"]], dest=name, **options)
    return parser


def _help(name: str, field: Any) -> str:
    text = (field.description or "").replace("%", "%%")
    if field.is_required() or field.default is None:
        return text
    default = field.get_default(call_default_factory=True)
    shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return (
        f"{text} Default: {shown or repr(shown)}.".replace("%", "%%")
        if "%" not in text
        else f"{text} Default: {shown}."
    )


def _metavar(field: Any) -> str:
    if is_bool(field):
        return "|".join(["BOOL", *choices(field)])
    if choices(field):
        return "{" + ",".join(choices(field)) + "}"
    kinds = value_types(field)
    if float in kinds:
        return "X"
    if int in kinds:
        return "N"
    return "TEXT"


def _normalise(arguments: Sequence[str], cls: type[Settings], names: dict[str, str]) -> list[str]:
    """Turn hyphens in flag names into underscores, and ``--no_x`` / ``--nox`` of a boolean into ``--x=false``."""
    result = []
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            flag, equals, value = argument[2:].partition("=")
            flag = flag.replace("-", "_")
            if flag not in names and flag != "config" and not equals:
                for prefix in ("no_", "no"):
                    positive = names.get(flag.removeprefix(prefix)) if flag.startswith(prefix) else None
                    if positive and is_bool(cls.model_fields[positive]):
                        flag, equals, value = positive, "=", "false"
                        break
            argument = f"--{flag}{equals}{value}"
        result.append(argument)
    return result


def _refuse_doubles(arguments: Sequence[str], names: dict[str, str]) -> None:
    """Refuse two different names of one setting: one would silently win."""
    used: dict[str, str] = {}
    for argument in arguments:
        flag = argument[2:].partition("=")[0].replace("-", "_") if argument.startswith("--") else ""
        if flag in names and used.setdefault(names[flag], flag) != flag:
            raise SettingsError(f"--{used[names[flag]]} and --{flag} are the same setting: give one of them")


def _passthrough(cls: type[Settings], unknown: Iterable[str], names: dict[str, str]) -> dict[str, Any]:
    """Sort arguments that argparse did not know into another library's flags, or refuse them by name."""
    found: dict[str, Any] = {}
    current: str | None = None
    known: set[str] | None = None
    for argument in unknown:
        if not argument.startswith("--"):
            if current is None:
                raise SettingsError(f"unexpected argument {argument!r} (see --help)")
            found[current] = _literal(argument)
            current = None
            continue
        current, equals, value = argument[2:].partition("=")
        if known is None:
            known = cls.passthrough_names() if cls.passthrough_field else set()
        if current not in known:
            close = difflib.get_close_matches(current, [*names, *known, "config"], n=1)
            hint = f": did you mean --{close[0]}?" if close else " (see --help)"
            raise SettingsError(f"unknown flag --{current}{hint}")
        found[current] = _literal(value) if equals else True
        if equals:
            current = None
    return found


def _literal(text: str) -> Any:
    """Return a value for a field whose type only the other library knows. YAML alone would read ``1e-8`` as text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return yaml.safe_load(text)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but a key may stand only once, and ``2:8`` is no number in base 60."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (pyyaml declares it so)
        first: [(tag, pattern) for tag, pattern in known if tag != _INT]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping.

        Raises:
            yaml.constructor.ConstructorError: a key stands twice.
        """
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(problem=f"{key} stands twice", problem_mark=key_node.start_mark)
            seen.add(key if isinstance(key, str) else "")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    _INT, re.compile(r"^[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789")
)


def _read_config(path: str, cls: type[Settings], names: dict[str, str]) -> dict[str, Any]:
    try:
        content = yaml.load(Path(path).expanduser().read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", error)
        twice = isinstance(error, yaml.constructor.ConstructorError)
        raise SettingsError(f"{path}{where}: {'' if twice else 'not valid YAML: '}{problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: must hold settings as `name: value` lines")
    result: dict[str, Any] = {}
    used: dict[str, str] = {}
    for raw, value in content.items():
        key = str(raw).replace("-", "_")
        if key not in names:
            if cls.passthrough_field and key in cls.passthrough_names():
                result.setdefault(cls.passthrough_field, {})[key] = value
                continue
            close = difflib.get_close_matches(key, names, n=1)
            raise SettingsError(f"{path}: unknown setting {key!r}" + (f": did you mean {close[0]!r}?" if close else ""))
        if names[key] in used:
            raise SettingsError(f"{path}: {used[names[key]]} and {key} are the same setting: give one of them")
        used[names[key]] = key
        result[names[key]] = value
    return result
