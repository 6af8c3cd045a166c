"""Whether a model that is named by a hub id can be had: asked once, before a library asks for file after file.

Without a network transformers and huggingface_hub try each file several times, with growing pauses: more than a minute
of warnings before an error.
"""

from __future__ import annotations

from pathlib import Path

from alpaca_ray.errors import ModelError

_SECONDS = 10  # for one answer of the hub, whatever it says
_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")  # one of them is in the cache if the model is


def reachable(name: str, *, flag: str = "--model", cache_dir: str | None = None) -> str:
    """Return what transformers is to load for a folder or hub id: the same, or what was downloaded of it earlier.

    The latter where the hub cannot be reached: told to use local files only, transformers would still ask it for some.

    Args:
        flag: what gave the name, for the error.
        cache_dir: where downloads are, if not where huggingface_hub puts them.

    Raises:
        ModelError: the hub cannot be reached, and nothing of the model is in the cache.
    """
    if Path(name).expanduser().is_dir():
        return name
    from huggingface_hub import constants, get_session, try_to_load_from_cache

    if constants.is_offline_mode():
        return name
    try:  # any answer will do: transformers knows what they mean
        get_session().head(f"{constants.ENDPOINT}/{name}/resolve/main/{_FILES[0]}", timeout=_SECONDS)
    except Exception as error:  # of whichever library carries the hub's requests
        cached = (try_to_load_from_cache(name, file, cache_dir=cache_dir) for file in _FILES)
        there = next((file for file in cached if isinstance(file, str)), None)
        if there is not None:
            return str(Path(there).parent)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{flag} {name}: there is no such folder, it was not downloaded before, and the hub at "
            f"{constants.ENDPOINT} cannot be reached ({reason}): mend the network (HTTPS_PROXY, HF_ENDPOINT), or give "
            "a folder that holds the model"
        ) from error
    return name
