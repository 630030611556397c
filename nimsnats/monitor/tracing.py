"""Reports the ways of traced messages (ADR-41) to the subjects that these name.

Owns the report's shape. Which messages are traced, and what happens to them, is `broker.msgtrace`.
"""

from __future__ import annotations

from collections.abc import Callable

from nimsnats.broker.msgtrace import Report, header_fields
from nimsnats.jetstream.api.decode import encode
from nimsnats.jetstream.clock import format_time
from nimsnats.monitor.format import JsonObject, present
from nimsnats.monitor.view import NodeView


class TraceReports:
    """One server's reports between `start` and `stop`. `server` makes the `server` object of a message."""

    def __init__(self, view: NodeView, server: Callable[[], JsonObject]) -> None:
        self._view = view
        self._server = server

    def start(self) -> None:
        """Begin to trace."""
        self._view.broker.tracer = self._tell

    def stop(self) -> None:
        """Messages are not traced any more. Idempotent."""
        self._view.broker.tracer = None

    def _tell(self, report: Report) -> None:
        body: JsonObject = {
            "server": self._server(),
            "request": {"header": header_fields(report.header), "msgsize": report.size},
            **present({"hops": report.hops}),
            "events": [{**event, "ts": format_time(event["ts"])} for event in report.events],
        }
        report.account.publish(report.destination, encode(body))
