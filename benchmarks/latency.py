"""Request and reply through the server: one requester, one responder, one request in flight."""

from __future__ import annotations

from typing import Final

from benchmarks.jetstream import percentiles, round_trips
from benchmarks.scenario import Metric, Scenario, Settings
from benchmarks.servers import Server
from benchmarks.wire import Address, Connection
from benchmarks.workers import Crew, Signals

_SUBJECT: Final = b"bench.service"
_PAYLOAD: Final = b"x" * 128


def respond(signals: Signals, address: Address) -> None:
    """Worker: answer every request with its own payload until stopped."""
    with Connection(address) as connection:
        connection.send(b"SUB %b 1\r\n" % _SUBJECT)
        connection.flush()
        signals.ready()
        sock = connection.socket
        sock.settimeout(0.2)
        pending = b""
        whole = len(_PAYLOAD) + 2
        while not signals.stopped():
            try:
                data = sock.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return
            pending += data
            line, found, rest = pending.partition(b"\r\n")
            if found and len(rest) >= whole:
                reply = line.split()[3]
                sock.sendall(b"PUB %b %d\r\n%b" % (reply, len(_PAYLOAD), rest[:whole]))
                pending = rest[whole:]


def ask(signals: Signals, address: Address, settings: Settings) -> list[float]:
    """Worker: seconds from each request to its reply."""
    request = b"PUB %b _INBOX.bench.rr.1 %d\r\n%b\r\n" % (_SUBJECT, len(_PAYLOAD), _PAYLOAD)
    with Connection(address) as connection:
        connection.send(b"SUB _INBOX.bench.rr.* 1\r\n")
        connection.flush()
        signals.ready()
        return round_trips(connection, request, 2, settings)


def request_latency(server: Server, settings: Settings) -> dict[str, float]:
    """p50 and p99 of a request in seconds."""
    with Crew() as crew:
        responder = crew.start(respond, server.address)
        responder.wait_ready()
        requester = crew.start(ask, server.address, settings)
        requester.wait_ready()
        times = requester.result(settings.warm + settings.duration + 30)
        responder.stop()
    return percentiles(times)


SCENARIOS: Final = (
    Scenario(
        "core/request",
        "request and reply, 1 in flight, 128 B: latency",
        (Metric("p50", "s", "lower"), Metric("p99", "s", "lower")),
        request_latency,
    ),
)
