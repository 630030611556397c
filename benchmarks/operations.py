"""Single operations, one at a time, and what each costs a server: the columns of the matrix of operations by crowds.

Owns the bytes of seventeen operations and the loop that repeats each for a while. The cost is processor time of all the
server's threads less what it uses at rest, because that is what a crowd makes an operation pay and what other load on
the machine disturbs least; the median of the round trips is kept beside it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.wire import Address, Connection
from benchmarks.workers import Signals

STREAM: Final = "OPS"
SUBJECTS: Final = "op.js.>"
BUCKET: Final = "KV_OPS"
_PULLED: Final = "PULLED"
_PUSHED: Final = "PUSHED"
_INBOX: Final = "_INBOX.op"
_PATIENCE: Final = 30.0
_REST: Final = 0.5
_BURST: Final = 10
_WINDOW: Final = 1000
_MANY: Final = 100_000
"""Consumers of the stream: nats-server allows fewer where a stream does not say it."""
_STOCK: Final = 20_000
"""Messages for the pulls of one."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operation costs: processor seconds of the server, and the median of the round trips in seconds."""

    cpu: float
    median: float


class Client:
    """The connections of the operations, and the names that they have used so far."""

    def __init__(self, address: Address, replicas: int) -> None:
        self.address = address
        self.replicas = replicas
        self._stack = ExitStack()
        self.one = self._stack.enter_context(Connection(address, timeout=_PATIENCE))
        self.other = self._stack.enter_context(Connection(address, timeout=_PATIENCE))
        self.one.send(f"SUB {_INBOX}.* 1\r\nSUB op.pushed 2\r\n".encode())
        self.other.send(b"SUB op.service 1\r\n")
        self.one.flush()
        self.other.flush()
        self.streams: list[str] = []
        self.consumers: list[str] = []
        self.number = 0

    def close(self) -> None:
        """Close the connections."""
        self._stack.close()

    def next(self) -> int:
        """A number that was not used before."""
        self.number += 1
        return self.number

    def ask(self, subject: str, body: bytes = b"") -> bytes:
        """A request on the standing inbox; returns the payload. Raises ValueError on an error."""
        self.one.send(f"PUB {subject} {_INBOX}.1 {len(body)}\r\n".encode() + body + b"\r\n")
        message = self.one.next_message()
        if b'"error"' in message.payload[:200]:
            raise ValueError(f"{subject}: {message.payload[:300]!r}")
        return message.payload

    def api(self, subject: str, body: dict[str, Any] | None = None) -> None:
        """A JetStream API request."""
        self.ask(f"$JS.API.{subject}", json.dumps(body).encode() if body else b"")


def prepare(client: Client) -> None:
    """Make the stream, the bucket and the consumers that the operations use."""
    common = {"storage": "file", "num_replicas": client.replicas}
    client.api(
        f"STREAM.CREATE.{STREAM}",
        {"name": STREAM, "subjects": [SUBJECTS], "allow_direct": True, "max_consumers": _MANY, **common},
    )
    bucket = {"name": BUCKET, "subjects": ["$KV.OPS.>"], "allow_direct": True, "max_msgs_per_subject": 1, **common}
    client.api(f"STREAM.CREATE.{BUCKET}", bucket)
    for _ in range(_STOCK // _WINDOW):
        client.one.send(b"PUB op.js.pulled 5\r\nhello\r\n" * (_WINDOW - 1))
        client.ask("op.js.pulled", b"hello")
    pulled = {"durable_name": _PULLED, "ack_policy": "none", "filter_subject": "op.js.pulled", "max_waiting": 10}
    _create(client, _PULLED, pulled)
    pushed = {"durable_name": _PUSHED, "ack_policy": "none", "filter_subject": "op.js.pushed"}
    _create(client, _PUSHED, pushed | {"deliver_subject": "op.pushed"})


def _create(client: Client, name: str, config: dict[str, Any]) -> None:
    body = {"stream_name": STREAM, "config": {"name": name, **config}}
    client.api(f"CONSUMER.DURABLE.CREATE.{STREAM}.{name}", body)


def _publish(client: Client) -> None:
    client.one.send(b"PUB op.core 5\r\nhello\r\n" * _BURST)
    client.one.flush()


def _publish_stream(client: Client) -> None:
    client.ask("op.js.one", b"hello")


def _literal(client: Client) -> None:
    numbers = [client.next() for _ in range(_BURST)]
    client.one.send("".join(f"SUB op.literal.{n} l{n}\r\nUNSUB l{n}\r\n" for n in numbers).encode())
    client.one.flush()


def _wildcard(client: Client) -> None:
    numbers = [client.next() for _ in range(_BURST)]
    client.one.send("".join(f"SUB _INBOX.other{n}.* w{n}\r\nUNSUB w{n}\r\n" for n in numbers).encode())
    client.one.flush()


def _connect(client: Client) -> None:
    Connection(client.address, timeout=_PATIENCE).close()


def _request(client: Client) -> None:
    client.one.send(f"PUB op.service {_INBOX}.2 5\r\nhello\r\n".encode())
    reply = client.other.next_message().reply
    client.other.send(b"PUB %b 5\r\nhello\r\n" % reply)
    client.one.next_message()


def _stream_create(client: Client) -> None:
    n = client.next()
    config = {"name": f"OP{n}", "subjects": [f"created.{n}"], "storage": "file", "num_replicas": client.replicas}
    client.api(f"STREAM.CREATE.OP{n}", config)
    client.streams.append(f"OP{n}")


def _stream_info(client: Client) -> None:
    client.api(f"STREAM.INFO.{STREAM}")


def _account_info(client: Client) -> None:
    client.api("INFO")


def _stream_delete(client: Client) -> None:
    client.api(f"STREAM.DELETE.{client.streams.pop()}")


def _consumer_create(client: Client) -> None:
    n = client.next()
    _create(client, f"OP{n}", {"durable_name": f"OP{n}", "ack_policy": "explicit", "filter_subject": "op.js.other"})
    client.consumers.append(f"OP{n}")


def _consumer_info(client: Client) -> None:
    client.api(f"CONSUMER.INFO.{STREAM}.{_PULLED}")


def _consumer_delete(client: Client) -> None:
    client.api(f"CONSUMER.DELETE.{STREAM}.{client.consumers.pop()}")


def _pull(client: Client) -> None:
    client.ask(f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{_PULLED}", b'{"batch":1,"no_wait":true}')


def _direct_get(client: Client) -> None:
    client.ask(f"$JS.API.DIRECT.GET.{BUCKET}.$KV.OPS.key")


def _put(client: Client) -> None:
    client.ask("$KV.OPS.key", b"hello")


def _push(client: Client) -> None:
    client.one.send(b"PUB op.js.pushed 5\r\nhello\r\n")
    client.one.next_message()


@dataclass(frozen=True, slots=True)
class Operation:
    """A column of the matrix: `run` does it `each` times; with `left` it goes on until nothing is left."""

    name: str
    run: Callable[[Client], None]
    each: int = 1
    left: Callable[[Client], Sequence[str]] | None = None


OPERATIONS: Final = (
    Operation("publish", _publish, _BURST),
    Operation("stream publish", _publish_stream),
    Operation("SUB", _literal, _BURST),
    Operation("SUB wildcard", _wildcard, _BURST),
    Operation("connect", _connect),
    Operation("request", _request),
    Operation("stream create", _stream_create),
    Operation("stream info", _stream_info),
    Operation("account info", _account_info),
    Operation("stream delete", _stream_delete, left=lambda client: client.streams),
    Operation("consumer create", _consumer_create),
    Operation("consumer info", _consumer_info),
    Operation("consumer delete", _consumer_delete, left=lambda client: client.consumers),
    Operation("pull one", _pull),
    Operation("kv put", _put),
    Operation("direct get", _direct_get),
    Operation("push", _push),
)


def processor_seconds(pids: Sequence[int]) -> float:
    """Processor time of all threads of some processes, to the nanosecond."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except FileNotFoundError:
                continue  # the thread has ended; servers keep theirs
    return total / 1e9


def operate(signals: Signals, address: Address, replicas: int, pids: Sequence[int], seconds: float) -> dict[str, Cost]:
    """Worker: the cost of every operation alone, then, when the parent has raised a crowd, beside it.

    Says that it is ready with the costs alone, waits until it is stopped, and returns those beside the crowd.
    """
    client = Client(address, replicas)
    try:
        prepare(client)
        _round(client, pids, seconds / 4)  # what happens for the first time is no crowd's cost
        signals.ready(_round(client, pids, seconds))
        signals.wait_stopped(900)
        return _round(client, pids, seconds)
    finally:
        client.close()


def _round(client: Client, pids: Sequence[int], seconds: float) -> dict[str, Cost]:
    time.sleep(_REST)
    before, began = processor_seconds(pids), time.perf_counter()
    time.sleep(_REST)
    rest = (processor_seconds(pids) - before) / (time.perf_counter() - began)
    return {operation.name: _repeat(client, operation, pids, seconds, rest) for operation in OPERATIONS}


def _repeat(client: Client, operation: Operation, pids: Sequence[int], seconds: float, rest: float) -> Cost:
    times: list[float] = []
    before, began = processor_seconds(pids), time.perf_counter()
    now = began
    while operation.left(client) if operation.left else now - began < seconds:
        operation.run(client)
        end = time.perf_counter()
        times.append(end - now)
        now = end
    spent = processor_seconds(pids) - before - rest * (now - began)
    number = len(times) * operation.each
    return Cost(max(spent, 1e-9) / number, statistics.median(times) / operation.each)
