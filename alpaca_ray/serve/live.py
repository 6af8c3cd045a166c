"""The catalogue as the adapters' folder is now: adapters that appear, change or go need no restart."""

from __future__ import annotations

import asyncio
import logging
import time

from alpaca_ray.errors import UserError
from alpaca_ray.serve.registry import Catalogue, catalogue_of
from alpaca_ray.settings.serve import ServeArgs

logger = logging.getLogger("ray.serve")

_RESCAN_S = 1.0


class LiveCatalogue:
    """Gives the catalogue, looking at the folder anew at most once in ``rescan_s`` seconds and only when asked.

    What cannot be served (two of one name, a folder that cannot be read) leaves the catalogue as it was, with a line
    in the log: a folder that somebody is writing to must not end the serving of the others.
    """

    def __init__(self, args: ServeArgs, catalogue: Catalogue, *, rescan_s: float = _RESCAN_S) -> None:
        self._args = args
        self._catalogue = catalogue
        self._rescan_s = rescan_s
        self._scanned = time.monotonic()
        self._lock = asyncio.Lock()
        self._complaint = ""

    async def __call__(self) -> Catalogue:
        """Return the models that are served now."""
        if self._is_due():
            async with self._lock:
                if self._is_due():
                    await asyncio.to_thread(self._rescan)
                    self._scanned = time.monotonic()
        return self._catalogue

    def _is_due(self) -> bool:
        return self._args.adapters is not None and time.monotonic() - self._scanned >= self._rescan_s

    def _rescan(self) -> None:
        before = self._catalogue
        try:
            now = catalogue_of(self._args, before)
        except (UserError, OSError) as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("the adapters stay as they were: %s", error)
            return
        self._complaint = ""
        self._catalogue = now
        old = {adapter.name: adapter.identity for adapter in before.adapters}
        new = {adapter.name: adapter.identity for adapter in now.adapters}
        for name in new.keys() - old.keys():
            logger.warning("adapter %s: served from now on", name)
        for name in old.keys() - new.keys():
            logger.warning("adapter %s: no longer served, its folder holds no usable adapter", name)
        for name in new.keys() & old.keys():
            if new[name] != old[name]:
                logger.warning("adapter %s: has changed, later requests get the new one", name)
        for reason in now.skipped:
            if reason not in before.skipped:
                logger.warning("not served: %s", reason)
