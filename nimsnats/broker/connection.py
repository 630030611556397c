"""Bytes in and out of one peer: the shared read buffer, the output queue, back-pressure, closing.

Owns the asyncio protocol callbacks and everything that is true of any connection, whatever it speaks; the verbs of
clients are in `client`. One write per loop turn (`outbox`), no task and no timer per connection.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from nimsnats.broker.reasons import UNFLUSHED, Reason
from nimsnats.broker.tls import Accepting, Secured
from nimsnats.broker.tls_transport import Handshake, TlsTransport
from nimsnats.broker.turns import FIRST, FRONT, MOST, Halt

if TYPE_CHECKING:
    from nimsnats.broker.brake import Brake
    from nimsnats.broker.server import Broker
    from nimsnats.protocol.parser import Parser

_LARGE: Final = 2048
"""Average size of queued chunks from which they are handed to the kernel as they are, not joined first. Only on uvloop:
`writelines` of asyncio's own transports in Python 3.12 and 3.13 never tells the protocol to pause."""

_CHUNK: Final = 256 * 1024
"""Bytes of output that becomes one chunk when it has to wait: a peer that reads again is not sent millions of pieces at
once."""

_A_TURN: Final = 2 * 1024 * 1024
"""Bytes after which the next chunk is written in the next turn."""

_LINGER: Final = 1.0
"""Seconds that a peer has to read why TLS has failed, and to hang up."""

_STALL: Final = 0.005
"""Seconds that a publisher pauses when a receiver of its messages is three quarters full."""


class Connection(asyncio.BufferedProtocol):
    """One peer of the broker."""

    __slots__ = (
        "_chunked", "_chunks", "_late", "_ready", "_told_in_bytes", "_told_in_msgs", "_told_out_bytes",
        "_told_out_msgs", "brake", "brakes", "broker", "cid", "closed", "due", "ends", "halts", "in_bytes", "in_msgs",
        "ip", "label", "last_in", "last_ns", "mark", "out", "out_bytes", "out_msgs", "parser", "paused", "port",
        "queued", "reason", "room", "secured", "share", "stalled", "stalls", "start_ns", "stop_ns", "transport",
    )  # fmt: skip

    KIND: ClassVar[str] = "Client"
    """What log lines call it."""
    ID: ClassVar[str] = "cid"
    """What log lines put before its number."""
    STALLS: ClassVar[bool] = True
    """Whether it is slowed down when it sends more than its receivers can take."""

    parser: Parser[Any]

    def __init__(self, broker: Broker, cid: int) -> None:
        self.broker = broker
        self.cid = cid
        self.transport: asyncio.Transport | None = None
        self.out: list[bytes] = []
        """What is queued last; what has been queued before it waits in chunks."""
        self.queued = 0
        """Bytes that are queued."""
        self._chunks: deque[list[bytes]] = deque()
        self._chunked = 0
        """Bytes in `_chunks`."""
        self._late = 0
        """Bytes still queued of those that were when the deadline for writing was set."""
        self.room = self.most
        """Most bytes that may be queued; less than max_pending while the transport holds some."""
        self.mark = self.room - self.most // 4
        """From that many queued bytes on, publishers are slowed down."""
        self.brake = min(self.mark, _CHUNK)
        """At that many queued bytes `overfull` is to be called."""
        self.paused = False
        self.closed = False
        self.reason: Reason | None = None
        self.share = FIRST
        """Bytes that are read from it before others have their turn; see `Turns`."""
        self.ends = 0
        """When the slice of its input that is worked off now ends (`Slices`)."""
        self.halts = 0
        """Why it is not read from now: the bits of `Halt`."""
        self.brakes: dict[Brake, None] | None = None
        """Full queues that it is held for."""
        self.due = False
        """Whether its next slice waits for the end of a stall."""
        self.stalled = False
        self.stalls = 0
        self.in_msgs: int = 0
        self.in_bytes: int = 0
        self.out_msgs: int = 0
        self.out_bytes: int = 0
        self._told_in_msgs: int = 0
        self._told_in_bytes: int = 0
        self._told_out_msgs: int = 0
        self._told_out_bytes: int = 0
        self.ip = ""
        self.port = 0
        self.label = ""
        self.start_ns = self.last_ns = broker.runtime.time_ns()
        self.stop_ns = 0
        self.last_in = broker.runtime.monotonic()
        self.secured: Secured | None = None
        """What the TLS handshake ended with, once it is done."""
        self._ready: Callable[[], None] | None = None
        """What is to happen when the handshake is done."""

    @property
    def most(self) -> int:
        """Most bytes that may wait for this peer."""
        return self.broker.options.max_pending

    @property
    def pending(self) -> int:
        """Bytes accepted for this peer and not yet taken by the kernel."""
        return self.queued + (0 if self.transport is None else self.transport.get_write_buffer_size())

    # -- reading ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        peer: object = transport.get_extra_info("peername")
        if isinstance(peer, tuple):
            host, port, *_ = cast("tuple[object, ...]", peer)
            self.ip = str(host)
            self.port = port if isinstance(port, int) else 0
        self.label = f"{self.ip}:{self.port} - {self.ID}:{self.cid}"
        self.opened()

    def upgrade(
        self,
        contexts: Accepting | ssl.SSLContext,
        timeout: float,
        ready: Callable[[], None],
        server_hostname: str | None = None,
    ) -> None:
        """Change to TLS, after what is queued; `ready` is called when that has worked, else the connection ends.

        `contexts` and `server_hostname` are as in `Handshake`. `timeout` in seconds.
        """
        self.flush()
        if self.transport is None or self.closed:
            return
        self._ready = ready
        handshake = Handshake(contexts, timeout, server_hostname)
        tls = TlsTransport(self.broker.runtime, self.transport, self, self.broker.turns.view[:MOST], handshake)
        self.transport = tls
        if self.halts:
            tls.pause_reading()
        tls.begin()

    def tls_up(self, secured: Secured) -> None:
        """See `SecuredProtocol`."""
        ready, self._ready = self._ready, None
        self.secured = secured
        if ready is not None:
            ready()

    def tls_failed(self, why: str, *, early: bool) -> None:
        """See `SecuredProtocol`. With TLS 1.3 the one that dialled hears only after its handshake that its certificate
        was refused."""
        if self.closed:
            return
        self._ready = None
        if early:
            self.handshake_failed(why)
            self.close(Reason.TLS_HANDSHAKE)
        else:
            self.close(Reason.READ_ERROR)
        if self.transport is not None:
            self.broker.deadlines.set(self, _LINGER)

    def handshake_failed(self, why: str) -> None:
        """A TLS handshake has failed: say so in the log."""
        raise NotImplementedError

    def get_buffer(self, sizehint: int) -> memoryview:
        """As much of the read buffer that all connections of the loop share as this one may fill: its content is
        consumed before the next read."""
        view = self.broker.turns.view
        front = self.parser.front(FRONT)
        if front:
            length = len(front)
            view[:length] = front
            return view[length : length + self.share]
        return view[: self.share]

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes < self.share:
            self._consume(nbytes)
            return
        clock = self.broker.runtime.boot_time_ns  # the loop's own stands still within a turn
        began = clock()
        self._consume(nbytes)
        if not self.closed:
            self.broker.turns.taken(self, clock() - began)

    def _consume(self, nbytes: int) -> None:
        """Work off what has been read."""
        try:
            front = len(self.parser.front(FRONT))
            data = bytes(self.broker.turns.view[: front + nbytes])
            if front:
                self.parser.joined(data)
            else:
                self.parser.feed(data)
        except Exception as error:
            self.input_broke(error)
        self._received()

    def resume(self) -> None:
        """Go on with the input that was held back while something was awaited."""
        try:
            self.parser.resume()
        except Exception as error:
            self.input_broke(error)
        self._received()

    def over(self, *, first: bool) -> bool:
        """See `Commands.over`."""
        if first:
            self.ends = self.broker.slices.end()
            return False
        return self.broker.slices.over(self.ends)

    def _go_on_parsing(self) -> None:
        if self.halts & Halt.STALL:
            self.due = True
            return
        self.go_on(Halt.SLICE)
        if not self.closed:
            self.resume()

    # -- errors of ours -----------------------------------------------------------------------------------------

    def input_broke(self, error: Exception) -> None:
        """What the peer has sent made an error of ours that is more than a message's: the connection ends, because its
        next words could be taken for something else, or it believes in a subscription that does not exist."""
        self.broker.runtime.fence.caught(self.buffer_updated, error)
        self.close(Reason.INTERNAL_ERROR)

    def output_broke(self, error: Exception) -> None:
        """Something could not be queued or written, perhaps in the middle of a message: the peer gets no more."""
        self.broker.runtime.fence.caught(self.send, error)
        self.close(Reason.WRITE_ERROR)

    def _received(self) -> None:
        if self.in_msgs != self._told_in_msgs:
            self.active()
            stats = self.broker.stats
            stats.in_msgs += self.in_msgs - self._told_in_msgs
            stats.in_bytes += self.in_bytes - self._told_in_bytes
            self._told_in_msgs = self.in_msgs
            self._told_in_bytes = self.in_bytes
        if self.parser.held and not self.halts & Halt.SLICE and not self.closed:
            self.halt(Halt.SLICE)
            self.broker.slices.later(self._go_on_parsing)
        if self.stalled and not self.halts & Halt.STALL and not self.closed:
            self.halt(Halt.STALL)
            self.broker.runtime.call_later(_STALL, self._unstall)

    def halt(self, why: Halt) -> None:
        """Read nothing more until `go_on` is called for the same reason."""
        if not self.halts and not self.closed and self.transport is not None:
            self.transport.pause_reading()
        self.halts |= why

    def go_on(self, why: Halt) -> None:
        """This is no reason any more not to read; nothing happens if it was none."""
        if self.halts & why:
            self.halts ^= why
            if not self.halts and not self.closed and self.transport is not None:
                self.transport.resume_reading()

    def held_by(self, brake: Brake) -> None:
        """A queue that this peer fills has much to do: nothing is read until `freed_by`, at latest when it closes."""
        if self.brakes is None:
            self.brakes = {}
        self.brakes[brake] = None
        self.stalls += 1
        self.halt(Halt.BRAKE)

    def freed_by(self, brake: Brake) -> None:
        """See `held_by`; other queues may hold it still."""
        if self.brakes is not None:
            self.brakes.pop(brake, None)
            if not self.brakes:
                self.go_on(Halt.BRAKE)

    def active(self) -> None:
        """The peer did something that counts as activity."""
        self.last_ns = self.broker.runtime.time_ns()
        self.last_in = self.broker.runtime.monotonic()

    def _unstall(self) -> None:
        self.stalled = False
        self.go_on(Halt.STALL)
        if self.due:
            self.due = False
            self.broker.slices.later(self._go_on_parsing)

    def eof_received(self) -> bool:
        self.close(Reason.CLIENT_CLOSED)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(Reason.CLIENT_CLOSED if exc is None else Reason.READ_ERROR)
        self.transport = None
        self.broker.deadlines.cancel(self)
        self.parser.release()  # a cycle that has become old would stay for ever (`collector`)

    # -- writing ------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Queue bytes for the end of this loop turn."""
        if not self.queued:
            self.broker.outbox.mark(self)
        self.out.append(data)
        self.queued += len(data)
        if self.queued > self.brake:
            self.overfull(None)

    def flush(self, most: int = _A_TURN) -> None:
        """Write what is queued, as few writes; what is more than `most` bytes goes on in the next turn of the loop.
        Nothing is written while the peer does not read."""
        if self.closed:
            self._discard()
            return
        self._tell()
        if not self.paused:
            self._write(most)

    def _tell(self) -> None:
        """Add what was queued since the last turn to the broker's totals."""
        if self.out_msgs != self._told_out_msgs:
            self.last_ns = self.broker.runtime.time_ns()
            stats = self.broker.stats
            stats.out_msgs += self.out_msgs - self._told_out_msgs
            stats.out_bytes += self.out_bytes - self._told_out_bytes
            self._told_out_msgs = self.out_msgs
            self._told_out_bytes = self.out_bytes

    def _write(self, most: int) -> None:
        chunks = self._chunks
        while chunks:
            if most <= 0:
                self.broker.outbox.mark(self)
                return
            chunk = chunks.popleft()
            size = sum(map(len, chunk))
            self._chunked -= size
            self.queued -= size
            self._late -= size
            most -= size
            self._hand_over(chunk, size)
            if self.paused:
                break
        self.brake = min(self.mark, self._chunked + _CHUNK)
        if not self.paused and self.out:
            out, size = self.out, self.queued
            self.out = []
            self.queued = self._late = 0
            self._hand_over(out, size)

    def _hand_over(self, out: list[bytes], size: int) -> None:
        """Give output to the kernel."""
        transport = self.transport
        if transport is None:
            return
        if len(out) == 1:
            transport.write(out[0])
        elif size > _LARGE * len(out) and type(transport).__module__.startswith("uvloop"):
            transport.writelines(out)
        else:
            transport.write(b"".join(out))

    def _seal(self) -> None:
        """What is queued last becomes a chunk. Small pieces are joined; large ones may be shared with other peers."""
        out, size = self.out, self.queued - self._chunked
        self._chunks.append(out if size > _LARGE * len(out) else [b"".join(out)])
        self.out = []
        self._chunked = self.queued
        self.brake = min(self.mark, self.queued + _CHUNK)

    def _discard(self) -> None:
        self.out = []
        self._chunks.clear()
        self.queued = self._chunked = self._late = 0

    def pause_writing(self) -> None:
        self.paused = True
        if self._late <= 0:
            self._late = self.queued
            self.broker.deadlines.set(self, self.broker.options.write_deadline)
        self._measure()

    def resume_writing(self) -> None:
        self.paused = False
        if self.closed:
            return  # the deadline for the last words still holds
        if self._late <= 0:
            self.broker.deadlines.cancel(self)
        self._measure()
        self._write(_A_TURN)
        if not self.paused:
            self._late = 0
            self.broker.deadlines.cancel(self)

    def _measure(self) -> None:
        most = self.most
        held = 0 if self.transport is None or not self.paused else self.transport.get_write_buffer_size()
        self.room = most - held
        self.mark = self._mark(held)
        self.brake = min(self.mark, self._chunked + _CHUNK)

    def _mark(self, held: int) -> int:
        """See `mark`, while the transport holds so many bytes."""
        del held
        return self.room - self.most // 4

    def overfull(self, publisher: Connection | None) -> None:
        """Output passed the brake: let what waits be one chunk, slow its publisher down from the mark on, and cut a
        peer that is beyond its limit."""
        if self.closed:
            return
        if self.queued - self._chunked > _CHUNK:
            self._seal()
        if self.queued <= self.mark:
            return
        if self.queued <= self.room:
            if publisher is not None and publisher is not self and publisher.STALLS and not publisher.stalled:
                publisher.stalled = True
                publisher.stalls += 1
                self.broker.stats.stalled_clients += 1
            return
        self.broker.stats.slow_consumers += 1
        self.log(logging.INFO, "Slow Consumer Detected: MaxPending of %d Exceeded", self.most)
        self.close(Reason.SLOW_PENDING)

    def write_deadline_passed(self) -> None:
        """The peer has not taken what was written within the write deadline."""
        if self.closed:
            if self.transport is not None:
                self.transport.abort()
            return
        self.broker.stats.slow_consumers += 1
        deadline = self.broker.options.write_deadline
        chunks = len(self._chunks) + len(self.out)
        text = "Slow Consumer Detected: WriteDeadline of %gs exceeded with %d chunks of %d total bytes."
        self.log(logging.INFO, text, deadline, chunks, self.pending)
        self.close(Reason.SLOW_DEADLINE)

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self, reason: Reason) -> None:
        """End the connection: what is queued goes out first, unless the reason is that it cannot."""
        if self.closed:
            return
        self._tell()
        if reason not in UNFLUSHED:
            self.paused = False
            try:
                if reason is Reason.INTERNAL_ERROR:
                    self.send(b"-ERR '%b'\r\n" % reason.value.encode())
                self.flush(self.queued)
                while self.queued and not self.closed:  # a transport that is full takes the last words all the same
                    self.paused = False
                    self._write(self.queued)
            except Exception as error:
                self.broker.runtime.fence.caught(self.flush, error)
            if self.closed:
                return  # there was no room even for the last words
        self.closed = True
        self.reason = reason
        self.stop_ns = self.broker.runtime.time_ns()
        self.parser.close()
        self._discard()
        held, self.brakes = self.brakes, None
        for brake in held or ():
            brake.forget(self)
        try:
            self.ended()
        except Exception as error:
            self.broker.runtime.fence.caught(self.ended, error)
        self.log(logging.DEBUG, "%s connection closed: %s", self.KIND, reason.value)
        if self.transport is None:
            return
        if reason in UNFLUSHED and not self.transport.is_closing():
            self.transport.abort()
            return
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.broker.deadlines.set(self, self.broker.options.write_deadline)

    def log(self, level: int, text: str, *args: object) -> None:
        """Log with the connection's address and id in front, as nats-server does."""
        log = self.broker.log
        if log.isEnabledFor(level):
            log.log(level, "%s - " + text, self.label, *args)

    def opened(self) -> None:
        """The transport is there."""
        raise NotImplementedError

    def ended(self) -> None:
        """The connection is over; release what it held."""
        raise NotImplementedError
