"""``export.py state-dict``: a Llama in the layout that Meta released it in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from alpaca_ray.console import say, show_settings
from alpaca_ray.export import llama, source
from alpaca_ray.export.output import check, staged
from alpaca_ray.export.record import record, say_done
from alpaca_ray.export.weights import TYPES, Weights, open_weights
from alpaca_ray.settings.export import StateDictSettings
from alpaca_ray.storage import resolve_output

WEIGHTS = "consolidated.00.pth"
PARAMS = "params.json"
_TOKENIZER = "tokenizer.model"


def state_dict(settings: StateDictSettings) -> Path:
    """Write ``consolidated.00.pth``, ``params.json`` and ``tokenizer.model`` (where there is one); return the folder.

    Raises:
        ModelError, OutputError: as a line that says what to do; nothing is written then.
    """
    output = resolve_output(settings.output_dir)
    check(output, overwrite=settings.overwrite)
    folder = source.model_folder(settings.model, flag="--model")
    source.check_apart(output, [folder])
    config = source.config_of(folder)
    llama.check_config(config, settings.model)
    weights = open_weights(folder, flag="--model")
    names = llama.names(weights, config, settings.model)
    show_settings("export state-dict", settings)
    size = sum(weights[name].cast(settings.dtype).nbytes for name in set(names.values()))
    with staged(output, overwrite=settings.overwrite, size=size + (16 << 20)) as staging:
        _save(staging / WEIGHTS, names, weights, config, settings.dtype)
        say(f"wrote {WEIGHTS} ({size / 1e9:.2f} GB)")
        (staging / PARAMS).write_text(json.dumps(llama.params(config), indent=2) + "\n", encoding="utf-8")
        written = [WEIGHTS, PARAMS]
        if (folder / _TOKENIZER).is_file():
            shutil.copyfile(folder / _TOKENIZER, staging / _TOKENIZER)
            written.append(_TOKENIZER)
        else:
            say(f"{folder} holds no {_TOKENIZER}: Meta's code wants one beside the weights")
        inputs = source.describe(settings.model, folder, [folder / source.CONFIG, *weights.files])
        record(staging, settings, inputs=inputs, outputs=written)
    say_done(output, model_bytes=weights.nbytes)
    return output


def _save(path: Path, names: dict[str, str], weights: Weights, config: dict[str, Any], dtype: str | None) -> None:
    """Save with torch, from views of the files: only what is reordered or converted takes memory of its own."""
    import torch

    made: dict[tuple[str, int | None], Any] = {}  # tied embeddings are two names of one tensor, also in the file
    tensors = {}
    for name, tensor in names.items():
        heads = llama.rotary_heads(name, config)
        if (tensor, heads) not in made:
            value = weights.read(tensor)
            if heads:
                value = llama.to_neighbours(value, heads)
            value = value.to(getattr(torch, TYPES[weights[tensor].cast(dtype).dtype][0])).contiguous()
            if value.untyped_storage().nbytes() != value.nbytes:
                value = value.clone()  # torch saves the whole storage of a view
            made[tensor, heads] = value
        tensors[name] = made[tensor, heads]
    torch.save(tensors, path)
