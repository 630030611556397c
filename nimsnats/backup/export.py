"""Messages for people and other programs: JSON lines or CSV.

Owns the two forms. Payloads that are UTF-8 are text, others are base64 and say so; headers keep order and repetition.
"""

from __future__ import annotations

import csv
import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final, TextIO

from nimsnats.jetstream.clock import format_time
from nimsnats.protocol.archive import ArchivedMessage
from nimsnats.protocol.headers import LINE

COLUMNS: Final = ("stream", "seq", "time", "subject", "headers", "data", "encoding")

Write = Callable[[str, ArchivedMessage], None]
"""Takes the stream's name and a message."""


def row(stream: str, message: ArchivedMessage) -> dict[str, Any]:
    """A message as columns."""
    data, encoding = _text(message.payload)
    return {
        "stream": stream,
        "seq": message.seq,
        "time": format_time(message.time),
        "subject": message.subject.decode("utf-8", "replace"),
        "headers": _headers(message.headers),
        "data": data,
        "encoding": encoding,
    }


def json_lines(out: TextIO) -> Write:
    """One JSON object a line."""

    def write(stream: str, message: ArchivedMessage) -> None:
        out.write(json.dumps(row(stream, message), ensure_ascii=False, separators=(",", ":")) + "\n")

    return write


def csv_rows(out: TextIO) -> Write:
    """A header line, then a line a message; headers are JSON in one column."""
    writer = csv.writer(out)
    writer.writerow(COLUMNS)

    def write(stream: str, message: ArchivedMessage) -> None:
        found = row(stream, message)
        found["headers"] = json.dumps(found["headers"]) if found["headers"] else ""
        writer.writerow([found[name] for name in COLUMNS])

    return write


def _text(data: bytes) -> tuple[str, str]:
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return b64encode(data).decode(), "base64"


def _headers(block: bytes) -> list[list[str]]:
    lines = block.removeprefix(LINE).decode("utf-8", "replace").split("\r\n")
    pairs = [line.partition(":") for line in lines if line]
    return [[name, value.strip(" \t")] for name, _, value in pairs]
