"""Which adapters are served, and under which names. Pure: reads folders, loads no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_ray.errors import DataError, ModelError, SettingsError
from alpaca_ray.models import cache_folder, check_model_name, is_adapter
from alpaca_ray.prompts import PromptTemplate, load_template
from alpaca_ray.settings.serve import ServeArgs

_WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"

# What rows of one batch cannot have each for themselves, with the values that ask for nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False,),
    "bias": ("none",),
    "modules_to_save": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
    "layer_replication": ([],),
    "alora_invocation_tokens": ([],),
    "kasa_config": (),
}


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter as it lies on disk.

    ``template`` is the instruction template that it was trained with, ``chat_template`` the Jinja text of one for chat;
    at most one of them matters, ``template`` first.
    """

    name: str
    folder: Path
    base_model: str
    created: int
    template: PromptTemplate | None = None
    chat_template: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """The base model's name and the adapters beside it."""

    base: str
    adapters: tuple[AdapterInfo, ...] = ()

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


def catalogue_of(args: ServeArgs) -> Catalogue:
    """Return the models that these arguments serve, after checking all that can be checked without loading anything.

    Raises:
        UserError: as ``scan``, ``build_catalogue``, ``check_model_name`` and ``load_template``.
    """
    check_model_name(args.base_model, flag="base_model")
    if args.prompt_template:
        load_template(args.prompt_template)
    return build_catalogue(args.base_model, scan(args.adapters))


def scan(folder: str | Path | None) -> list[AdapterInfo]:
    """Return the adapters of a folder: itself, if it holds one, else those of its folders that do, by name.

    Training checkpoints (``checkpoint-N``), hidden folders and folders without weights (a training run that has not
    finished) are left out. A folder that does not exist has no adapters.

    Raises:
        ModelError: an adapter's weights are a pickle, or its config cannot be read.
        DataError: its prompt template cannot be read.
        SettingsError: the path is a file.
    """
    if folder is None:
        return []
    root = Path(folder).expanduser()
    if root.exists() and not root.is_dir():
        raise SettingsError(f"adapters {folder}: is a file; give an adapter's folder, or a folder of such folders")
    if not root.is_dir():
        return []
    if is_adapter(root):
        return [_read(root.resolve())]
    return [_read(entry) for entry in sorted(root.iterdir()) if _is_offered(entry)]


def resolve_adapters(name: str) -> str:
    """Return the folder of an adapter that was named by path or hub id; one from the hub is fetched.

    Raises:
        ModelError: there is no such folder, and none on the hub that can be reached.
    """
    if Path(name).expanduser().exists():
        return name
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ModelError(f"adapters {name}: no such folder")
    import huggingface_hub

    target = cache_folder() / "adapters" / name
    wanted = ["adapter_config.json", _WEIGHTS, _PICKLE, "prompt_template.json", "chat_template.jinja"]
    try:
        huggingface_hub.snapshot_download(name, allow_patterns=wanted, local_dir=target)
    except (OSError, ValueError, RuntimeError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ModelError(f"adapters {name}: no such folder, and not on the hub that can be reached: {error}") from error
    return str(target)


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
    if suffix != folder.name and suffix.isdigit():
        return False
    return (folder / _WEIGHTS).is_file() or (folder / _PICKLE).is_file()


def _read(folder: Path) -> AdapterInfo:
    if not (folder / _WEIGHTS).is_file():
        if (folder / _PICKLE).is_file():
            raise ModelError(
                f"adapter {folder}: its weights are a pickle ({_PICKLE}), which may run code: convert it to {_WEIGHTS}"
            )
        raise ModelError(f"adapter {folder}: {_WEIGHTS} is missing")
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise ModelError(f"adapter {folder}: is of the kind {kind}, only LORA adapters are served")
    for name, harmless in _UNSUPPORTED.items():
        if config.get(name) is not None and config[name] not in harmless:
            raise ModelError(
                f"adapter {folder}: uses {name}, which cannot be served beside others: merge it into a model"
            )
    template, chat = folder / "prompt_template.json", folder / "chat_template.jinja"
    try:
        return AdapterInfo(
            name=folder.name,
            folder=folder,
            base_model=str(config.get("base_model_name_or_path") or ""),
            created=int((folder / _WEIGHTS).stat().st_mtime),
            template=load_template(str(template)) if template.is_file() else None,
            chat_template=chat.read_text(encoding="utf-8") if chat.is_file() else None,
        )
    except OSError as error:
        raise DataError(f"adapter {folder}: cannot be read: {error}") from error
