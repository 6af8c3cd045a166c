"""Which adapters are served, and under which names. Pure: reads folders, loads no weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from alpaca_ray.errors import SettingsError, UserError
from alpaca_ray.models import check_model_name, is_adapter
from alpaca_ray.prompts import load_template
from alpaca_ray.serve.adapter_folder import AdapterInfo, fingerprint, read_adapter
from alpaca_ray.settings.serve import ServeArgs


@dataclass(frozen=True)
class Catalogue:
    """The base model's name and the adapters beside it; ``skipped`` says of each other adapter why it is not served."""

    base: str
    adapters: tuple[AdapterInfo, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names that are listed, the base model's first; an adapter also answers to ``<base>:<name>``."""
        return [self.base, *[adapter.name for adapter in self.adapters]]

    def find(self, name: str) -> AdapterInfo | None:
        """Return the adapter that a request's model name means, None for the base model.

        Raises:
            KeyError: no such model.
        """
        if name == self.base:
            return None
        wanted = name.removeprefix(f"{self.base}:")
        for adapter in self.adapters:
            if adapter.name == wanted:
                return adapter
        raise KeyError(name)


@dataclass(frozen=True)
class Found:
    """What lies in a folder: the adapters that can be served, and of each other one why it cannot."""

    adapters: list[AdapterInfo] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def catalogue_of(args: ServeArgs, before: Catalogue | None = None) -> Catalogue:
    """Return the models that these arguments serve, after checking all that can be checked without loading anything.

    Adapters that have not changed since ``before`` are not read again.

    Raises:
        UserError: as ``scan``, ``build_catalogue``, ``check_model_name`` and ``load_template``.
    """
    check_model_name(args.base_model, flag="base_model")
    if args.prompt_template:
        load_template(args.prompt_template)
    found = scan(args.adapters, {adapter.folder: adapter for adapter in before.adapters} if before else None)
    return replace(build_catalogue(args.base_model, found.adapters), skipped=tuple(found.skipped))


def scan(folder: str | Path | None, known: Mapping[Path, AdapterInfo] | None = None) -> Found:
    """Return the adapters of a folder: itself, if it holds one, else those of its folders that do, by name.

    Training checkpoints (``checkpoint-N``), hidden folders and folders without an adapter are left out. In a folder of
    folders, one that cannot be served does not keep the others from it: it is skipped, with its reason. A folder that
    does not exist has no adapters.

    Args:
        folder: where to look.
        known: adapters by folder, as an earlier scan found them; those that have not changed are not read again.

    Raises:
        UserError: the path is a file, or is itself an adapter that cannot be served (as ``read_adapter``).
    """
    if folder is None:
        return Found()
    root = Path(folder).expanduser()
    if root.exists() and not root.is_dir():
        raise SettingsError(f"adapters {folder}: is a file; give an adapter's folder, or a folder of such folders")
    if not root.is_dir():
        return Found()
    root = root.resolve()
    if is_adapter(root):
        return Found([_read(root, known or {})])
    found = Found()
    for entry in sorted(root.iterdir()):
        if not _is_offered(entry):
            continue
        try:
            found.adapters.append(_read(entry, known or {}))
        except UserError as error:
            found.skipped.append(str(error))
    return found


def build_catalogue(base: str, adapters: Iterable[AdapterInfo]) -> Catalogue:
    """Return the models that are served under the base model's name and the adapters'.

    Raises:
        SettingsError: two of them have the same name.
    """
    taken: dict[str, str] = {base: "the base model"}
    result: list[AdapterInfo] = []
    for adapter in adapters:
        for name in (adapter.name, f"{base}:{adapter.name}"):
            if name in taken:
                raise SettingsError(
                    f"adapters: {taken[name]} and {adapter.folder} would both be served as {name!r}: rename one"
                )
            taken[name] = str(adapter.folder)
        result.append(adapter)
    return Catalogue(base, tuple(result))


def foreign(catalogue: Catalogue, known_names: Sequence[str]) -> list[AdapterInfo]:
    """Return the adapters that record another base model: only a hint, since one base has many names."""
    return [a for a in catalogue.adapters if a.base_model and a.base_model not in known_names]


def _is_offered(folder: Path) -> bool:
    if folder.name.startswith(".") or not is_adapter(folder):
        return False
    suffix = folder.name.removeprefix("checkpoint-")
    return suffix == folder.name or not suffix.isdigit()


def _read(folder: Path, known: Mapping[Path, AdapterInfo]) -> AdapterInfo:
    before = known.get(folder)
    return before if before and before.identity == fingerprint(folder) else read_adapter(folder)
