"""How the inner loops are compiled: once a machine, without the interpreter's lock, in strict float arithmetic."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import types
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])
_CACHED = re.compile(r"_([0-9a-f]{12})-\d+\.")  # in the names that numba gives to its files


def compiled(function: F) -> F:
    """Compile a function with numba; the machine code is kept beside the source, or in the user's cache folder.

    Where neither can be written, it is compiled anew in every process.
    """
    # numba looks at a function's own file only, and would keep what it inlined from a neighbour that has changed.
    function.__qualname__ = f"{function.__qualname__}_{_sources()}"
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # "no locator available": nowhere to keep it
        return numba.njit(**options)(function)


@functools.cache
def _sources() -> str:
    """Return a digest of this package's sources, and remove the machine code of others from beside them."""
    folder = Path(__file__).parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()[:12]
    for path in folder.glob("__pycache__/*.nb[ic]"):
        named = _CACHED.search(path.name)
        if named and named[1] != digest:
            with suppress(OSError):  # another process removes it too, or nobody may
                path.unlink()
    return digest


@intrinsic
def popcount(context: Any, value: Any) -> Any:
    """Return how many bits of an integer are set, in the integer's own type."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return (value(value), emit) if isinstance(value, types.Integer) else None
