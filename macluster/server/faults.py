"""Faults of our own, in the log of the server."""

from __future__ import annotations

import traceback
from logging import Logger


def report(log: Logger, what: str, error: BaseException) -> None:
    """Say what went wrong and where, without the error's words: they may have data in them."""
    places = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    log.error("macluster: %s: %s\n%s", what, type(error).__name__, places)
