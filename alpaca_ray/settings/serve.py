"""Settings of the serve stage: the ``args`` of a Serve YAML file, and the flags of ``jobs/serve.py``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from alpaca_ray.errors import SettingsError
from alpaca_ray.models import EMBEDDED
from alpaca_ray.settings.base import Settings, setting

Dtype = Literal["auto", "bfloat16", "float32"]


class _ModelSettings(BaseModel):
    """What the command line and the YAML files have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    base_model: str = setting(
        EMBEDDED,
        "Base model: hub id, path, or `embedded`; requests give this name.",
        group="model",
        aliases=("model",),
    )
    load_8bit: bool = setting(False, "Quantise the base model to 8 bits.", group="model")
    prompt_template: str | None = setting(
        None, "Prompt template for chat, by name or JSON file, where an adapter's folder brings none.", group="model"
    )
    dtype: Dtype = setting(
        "auto", "Data type of the base model; `auto`: the checkpoint's, or what computes fastest.", group="model"
    )
    max_batch_size: int = setting(16, "Answers that are generated at once.", group="engine", ge=1, le=1024)
    max_model_len: int | None = setting(None, "Tokens of prompt and answer together.", group="engine", ge=2)
    max_loaded_adapters: int = setting(8, "Adapters that a replica keeps in memory.", group="engine", ge=1)
    threads: int | None = setting(
        None, "CPU threads of a replica; none: the machine's cores, shared among the replicas.", group="engine", ge=1
    )


class ServeArgs(_ModelSettings):
    """What an application serves, and how. In a Serve YAML file these stand under ``args``."""

    adapters: str | None = Field(
        default=None,
        description="Folder of an adapter, or of adapter folders; if it is missing, the base alone.",
    )
    max_ongoing_requests: int = Field(
        default=1024,
        ge=1,
        description="Requests that a replica holds, running and waiting.",
    )
    num_replicas: int = Field(default=1, ge=1, description="Copies of the base model.")
    num_cpus: float = Field(default=1.0, ge=0, description="CPUs that Ray reserves for each copy.")
    num_gpus: float | Literal["auto"] = Field(
        default="auto", description="GPUs of each copy; `auto` is 1 where the cluster has or can start any."
    )

    @classmethod
    def parse(cls, given: Mapping[str, Any] | Self) -> Self:
        """Return checked arguments.

        Raises:
            SettingsError: an unknown key, a wrong type or a value out of range; one line that names the key.
        """
        if isinstance(given, cls):
            return given
        try:
            return cls.model_validate(dict(given))
        except pydantic.ValidationError as error:
            raise SettingsError(_explain(cls, error)) from None


class ServeSettings(_ModelSettings, Settings):
    """Flags of ``jobs/serve.py``, Alpaca-LoRA's among them."""

    lora_weights: str | None = setting(
        None,
        "LoRA adapter, or folder of adapters, served beside the base model.",
        group="model",
        aliases=("adapters",),
    )
    server_name: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 for all of the machine's.", group="server")
    server_port: int = setting(8000, "Port to listen on.", group="server", ge=1, le=65535)
    share_gradio: bool = setting(
        False, "Alpaca-LoRA's public link to its web page; this version has no page.", group="server"
    )

    @pydantic.field_validator("share_gradio")
    @classmethod
    def _no_page(cls, value: bool) -> bool:
        if value:
            raise ValueError("the web page is not part of this version; the API is served without it")
        return value

    def to_args(self) -> ServeArgs:
        """Return what the application is built from."""
        common = {name: getattr(self, name) for name in _ModelSettings.model_fields}
        return ServeArgs(adapters=self.lora_weights, **common)


def _explain(cls: type[BaseModel], error: pydantic.ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, cls.model_fields, n=1)
        return f"serve args: unknown key {name!r}" + (f": did you mean {close[0]!r}?" if close else "")
    message = str(first["msg"]).removeprefix("Input should be ")
    return f"serve args: {name} {first.get('input')!r}: must be {message}"
