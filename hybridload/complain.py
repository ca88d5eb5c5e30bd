"""Logging an error where nothing more may go wrong."""

from __future__ import annotations

import logging
import traceback


def complain(logger: logging.Logger, words: str, *args: object, error: BaseException | None = None) -> None:
    """Log an error, with its traceback; what a log handler raises is printed on standard error instead."""
    try:
        logger.error(words, *args, exc_info=error)
    except BaseException:
        traceback.print_exc()
