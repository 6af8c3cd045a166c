"""What a library refuses to make, as an error of the settings that asked for it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from alpaca_ray.errors import AlpacaRayError, SettingsError

T = TypeVar("T")


def asked(make: Callable[..., T], *values: Any, **options: Any) -> T:
    """Return ``make(*values, **options)``.

    Raises:
        SettingsError: a library refuses a value, or a package that the value needs is not installed. Anything else
            that goes wrong is no matter of settings and goes through.
    """
    try:
        return make(*values, **options)
    except AlpacaRayError:
        raise
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"this model cannot be trained as asked: {reason}") from error
