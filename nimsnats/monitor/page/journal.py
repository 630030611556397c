"""The latest lines of this process's log, for people who look at a node without having its log at hand.

Owns a bounded memory of them. What is written where is `nimsnats.log`'s.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from nimsnats.monitor.format import JsonObject

_LOGGERS: Final = {"nimsnats": logging.INFO, "forest": logging.WARNING}
"""From which level: the forest tells of each event it handles, which would leave room for nothing else."""
_LINES: Final = 60
_LENGTH: Final = 400


class Journal(logging.Handler):
    """Keeps the latest lines between `start` and `stop`: the first line of each, no tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[JsonObject] = deque(maxlen=_LINES)

    def start(self) -> None:
        """Begin to listen."""
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)

    def stop(self) -> None:
        """Stop listening. Idempotent."""
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < _LOGGERS[record.name.partition(".")[0]]:
            return
        try:
            text = record.getMessage()
        except Exception:
            self.handleError(record)
            return
        first = text.partition("\n")[0][:_LENGTH]
        self._lines.append({"at": round(record.created * 1e9), "level": record.levelname.lower(), "text": first})

    def lines(self) -> list[JsonObject]:
        """`at` (nanoseconds since the epoch), `level`, `text`, oldest first."""
        return list(self._lines)
