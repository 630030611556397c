"""Why a connection was closed, in nats-server's words (connz `reason`, logs)."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """Closed-connection reasons; the value is the text that monitoring shows."""

    CLIENT_CLOSED = "Client Closed"
    AUTHENTICATION_TIMEOUT = "Authentication Timeout"
    AUTHENTICATION_FAILURE = "Authentication Failure"
    SLOW_PENDING = "Slow Consumer (Pending Bytes)"
    SLOW_DEADLINE = "Slow Consumer (Write Deadline)"
    WRITE_ERROR = "Write Error"
    READ_ERROR = "Read Error"
    PARSE_ERROR = "Parse Error"
    STALE = "Stale Connection"
    PROTOCOL_VIOLATION = "Protocol Violation"
    BAD_PROTOCOL_VERSION = "Bad Client Protocol Version"
    MAX_CONNECTIONS = "Maximum Connections Exceeded"
    MAX_PAYLOAD = "Maximum Message Payload Exceeded"
    MAX_CONTROL_LINE = "Maximum Control Line Exceeded"
    SERVER_SHUTDOWN = "Server Shutdown"
    NO_RESPONDERS_HEADERS = "No Responders Requires Headers"
    KICKED = "Kicked"
    DUPLICATE_ROUTE = "Duplicate Route"
    DUPLICATE_NAME = "Duplicate Server Name"
    WRONG_CLUSTER = "Cluster Name Conflict"
    WRONG_PORT = "Incorrect Port"
    ROUTE_REMOVED = "Route Removed"
    SELF_ROUTE = "Self Route"
    INTERNAL_ERROR = "Internal Server Error"
    TLS_HANDSHAKE = "TLS Handshake Failure"


UNFLUSHED = frozenset(
    {Reason.SLOW_PENDING, Reason.SLOW_DEADLINE, Reason.WRITE_ERROR, Reason.READ_ERROR, Reason.TLS_HANDSHAKE},
)
"""Reasons after which nothing more is written: the connection is cut, not closed."""
