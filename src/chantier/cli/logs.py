# SPDX-License-Identifier: Apache-2.0
"""The engine's log, on standard error: levels and format as the config says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from chantier.display.logfmt import JsonFormatter, TextFormatter

if TYPE_CHECKING:
    from chantier.config import Config

_LEVELS = {"trace": logging.DEBUG, "panic": logging.CRITICAL, "fatal": logging.CRITICAL, "warn": logging.WARNING}


@contextmanager
def logging_to(stream: TextIO, config: Config | None, *, debug: bool) -> Iterator[None]:
    """While the block runs. Without a level in the config only warnings are shown: a command is not a daemon."""
    level, form = (config.log.level, config.log.format) if config is not None else ("", "")
    name = "debug" if debug or (config is not None and config.debug) else level or "warning"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logger = logging.getLogger("chantier")
    logger.setLevel(_LEVELS.get(name, name.upper()))
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
