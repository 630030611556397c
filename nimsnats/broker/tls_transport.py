"""TLS of one connection: the transport that a protocol sees, and the protocol that its TCP transport sees.

Owns the handshake, the records and the end: its time-out, the alert of one that fails (RFC 8446, section 6), the
close_notify of one that ends. It works on memory (`ssl.SSLObject`) and behaves the same on every event loop. It never
touches what the bytes mean, and keeps no plain text: what is written is encrypted at once, what is read is handed over
in the same turn.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from nimsnats.broker.tls import Accepting, Secured, presented_session, reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from nimsnats.runtime import Runtime

_PIECE: Final = 256 * 1024
"""Bytes that are encrypted at a time: OpenSSL's buffer keeps the size that it has once had."""


class _Stage(Enum):
    """How far the one life of a connection is: shaking hands, speaking, nothing is sent any more."""

    HANDSHAKE = 0
    UP = 1
    ENDED = 2


@dataclass(slots=True, frozen=True)
class Handshake:
    """What a handshake needs: as the server what accepts, else the one context and `server_hostname`, whom we have
    dialled. `timeout` in seconds.
    """

    contexts: Accepting | ssl.SSLContext
    timeout: float
    server_hostname: str | None = None


class SecuredProtocol(Protocol):
    """Who speaks through TLS: an `asyncio.BufferedProtocol` that also hears of the handshake.

    `tls_up` or `tls_failed` is called once, unless the connection is closed from this side before; `tls_failed` also
    when a connection breaks later, by an alert or by records that are none. Then it is over for this side, while the
    TCP transport stays open for the peer to read our alert, until the peer hangs up or `abort` is called.
    """

    def get_buffer(self, sizehint: int, /) -> memoryview: ...
    def buffer_updated(self, nbytes: int, /) -> None: ...
    def eof_received(self) -> bool: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def connection_lost(self, exc: Exception | None, /) -> None: ...

    def tls_up(self, secured: Secured) -> None:
        """The handshake is done."""
        ...

    def tls_failed(self, why: str, *, early: bool) -> None:
        """There is no TLS, or none any more; `early` when no word has come through it."""
        ...


class TlsTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """One peer's TLS over `below`, whose protocol it becomes. `view` is a buffer that is free between two reads.

    It reads no faster than the protocol does: once in a turn of the loop, and nothing while there is something left
    to decrypt, so that what the protocol has not taken waits in the socket.
    """

    def __init__(
        self,
        runtime: Runtime,
        below: asyncio.Transport,
        protocol: SecuredProtocol,
        view: memoryview,
        handshake: Handshake,
    ) -> None:
        super().__init__()
        self._runtime = runtime
        self._below = below
        self._protocol = protocol
        self._view = view
        self._handshake: Handshake | None = handshake
        self._stage = _Stage.HANDSHAKE
        self._held = False
        """Whether the protocol reads nothing now."""
        self._resting = False
        """Whether nothing is read from the TCP transport now."""
        self._finished = False
        """Whether the peer has ended its side; the protocol hears of it when it does not pause."""
        self._heard = False
        self._early: list[bytes] = []
        """What was written before the handshake is done."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self._hello = b""
        """A client's first words, while they are too few to choose a context by."""
        self._timer = runtime.call_later(handshake.timeout, self._fail, "TLS handshake timeout")

    def begin(self) -> None:
        """Take over the TCP transport; the side that has dialled speaks first."""
        handshake = self._handshake
        assert handshake is not None
        self._below.set_protocol(self)
        contexts = handshake.contexts
        if isinstance(contexts, ssl.SSLContext):
            name = handshake.server_hostname
            try:
                self._tls = contexts.wrap_bio(self._incoming, self._outgoing, False, name)
            except ValueError as error:  # a name that no certificate can hold
                self._fail(f"{name}: {error}")
            else:
                self._shake()
        elif contexts.resuming:
            self._tls = contexts.context().wrap_bio(self._incoming, self._outgoing, True)

    def _meet(self, data: bytes) -> None:
        """Choose the context by the client's first words, as soon as they say which session it presents."""
        contexts = self._handshake.contexts if self._handshake is not None else None
        assert isinstance(contexts, Accepting)
        self._hello += data
        session = presented_session(self._hello)
        if session is not None:
            self._tls = contexts.context(session).wrap_bio(self._incoming, self._outgoing, True)
            self._incoming.write(self._hello)
            self._hello = b""

    # -- from the TCP transport ---------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """The buffer that all connections of the loop share: its content is taken over before the next read."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Records have come. Nobody looks at what comes after the end."""
        if self._stage is _Stage.ENDED:
            return
        if self._tls is None:
            self._meet(bytes(self._view[:nbytes]))
        else:
            self._incoming.write(self._view[:nbytes])
        if nbytes == len(self._view):  # there may be more, and others wait
            self._rest()
            self._runtime.call_soon(self._read_on)
        if self._stage is _Stage.UP or self._shake():
            self._pump()

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            self._below.pause_reading()

    def _read_on(self) -> None:
        """Hand over what is left, and read from the TCP transport again once the protocol has taken all of it; in the
        next turn, because this one has had its read."""
        self._pump()
        if self._resting and not self._held:
            self._runtime.call_soon(self._wake)

    def _wake(self) -> None:
        if self._resting and not self._held and self._stage is not _Stage.ENDED:
            self._resting = False
            self._below.resume_reading()

    def eof_received(self) -> bool:
        """The peer sends nothing any more, with or without a close_notify; what has come before is heard."""
        if self._stage is _Stage.HANDSHAKE:
            self._fail("the connection was closed")
        elif self._stage is _Stage.UP:
            self._finished = True
            self._pump()
        return self._stage is _Stage.UP  # the protocol has paused: it goes on with what it has before it hears of this

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone, and with it everything that was kept for it."""
        shaking = self._stage is _Stage.HANDSHAKE
        self._over()
        if shaking:
            why = reason(exc) if isinstance(exc, OSError) else "the connection was closed"
            self._protocol.tls_failed(why, early=True)
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._protocol.resume_writing()

    # -- handshake ----------------------------------------------------------------------------------------------

    def _shake(self) -> bool:
        """Go on with the handshake; whether it is done."""
        handshake, tls = self._handshake, self._tls
        if handshake is None or tls is None:
            return False
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._pass_on()
            return False
        except ssl.SSLError as error:
            self._fail(reason(error))
            return False
        self._pass_on()
        secured = Secured.of(tls)
        objection = handshake.contexts.done(tls) if isinstance(handshake.contexts, Accepting) else ""
        if tls.context.verify_mode is ssl.CERT_REQUIRED:
            objection = objection or secured.objection(self._runtime.time_ns())
        if objection:
            self._fail(objection)
            return False
        self._timer.cancel()
        self._handshake = None
        self._stage = _Stage.UP
        early, self._early = self._early, []
        self.writelines(early)
        self._protocol.tls_up(secured)
        return True

    def _fail(self, why: str) -> None:
        """It is over. The peer hears our alert, if there is one, and FIN at once, but what it has sent is still read:
        closing a socket with unread input would take the alert back (RFC 2525, section 2.17).

        There is no close_notify: OpenSSL forgets the session of a connection that ends without one.
        """
        if self._stage is _Stage.ENDED:
            return
        self._pass_on()
        self._over()
        if not self._below.is_closing():
            try:
                self._below.write_eof()
            except OSError:
                pass  # the peer has reset the connection, which is the next that we hear
        self._protocol.tls_failed(why, early=not self._heard)

    # -- reading ------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Hand over what can be decrypted, in pieces of the protocol's own buffer, until it pauses or ends."""
        incoming, tls, protocol = self._incoming, self._tls, self._protocol
        if tls is None or self._stage is not _Stage.UP:
            return
        read = cast("Callable[[int, memoryview], int]", tls.read)
        while self._stage is _Stage.UP and not self._held:
            view = protocol.get_buffer(-1)
            size, room = 0, len(view)
            more = ended = False
            broken: ssl.SSLError | None = None
            try:
                while size < room:
                    count = read(room - size, view[size:])  # one record
                    if not count:
                        ended = True
                        break
                    size += count
                    if not incoming.pending and not tls.pending():
                        break
                else:
                    more = True
            except ssl.SSLWantReadError:
                pass  # half a record
            except ssl.SSLZeroReturnError:
                ended = True
            except ssl.SSLError as error:
                broken = error
            if size:
                self._heard = True
                protocol.buffer_updated(size)
            if broken is not None:
                self._fail(reason(broken))
            self._finished = self._finished or ended
            if not more:
                break
        if self._finished and self._stage is _Stage.UP and not self._held:
            self._protocol.eof_received()
            self.close()

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._held = True
        self._rest()

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`; what has been read from the socket already comes first."""
        self._held = False
        if self._finished or self._incoming.pending or (self._tls is not None and self._tls.pending()):
            self._runtime.call_soon(self._read_on)
        else:
            self._wake()

    def is_reading(self) -> bool:
        """See `asyncio.ReadTransport`."""
        return not self._held and self._stage is not _Stage.ENDED

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """See `asyncio.WriteTransport`. Ignored after the end."""
        tls = self._tls
        if self._stage is not _Stage.UP or tls is None:
            if self._stage is _Stage.HANDSHAKE:
                self._early.append(bytes(data))
            return
        length = len(data)
        sent = 0
        try:
            if length <= _PIECE:
                sent = tls.write(data) if length else 0
            if sent < length:
                rest = memoryview(data)
                while sent < length:
                    sent += tls.write(rest[sent : sent + _PIECE])
                    self._pass_on()
        except ssl.SSLError as error:
            self._fail(reason(error))
        else:
            self._pass_on()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        """See `asyncio.WriteTransport`: a record holds many of them."""
        data = b"".join(list_of_data)
        if data:
            self.write(data)

    def _pass_on(self) -> None:
        """Give to the TCP transport what OpenSSL wants to say."""
        if self._outgoing.pending:
            self._below.write(self._outgoing.read())

    def get_write_buffer_size(self) -> int:
        """See `asyncio.WriteTransport`; in encrypted bytes."""
        return self._below.get_write_buffer_size() + sum(map(len, self._early))

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """See `asyncio.WriteTransport`."""
        return self._below.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.WriteTransport`."""
        self._below.set_write_buffer_limits(high, low)

    def can_write_eof(self) -> bool:
        """A close_notify ends both directions here, as in Go's crypto/tls."""
        return False

    # -- the end ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Send what is written and a close_notify, and close the TCP connection; the peer's close_notify is not waited
        for (RFC 8446, section 6.1, allows that, and Go does the same). After a failed handshake nothing is left to do.
        """
        if self._stage is _Stage.ENDED:
            return
        if self._stage is _Stage.UP and self._tls is not None:
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # ours is out; that the peer's is not there yet, or other data before it, does not matter
            self._pass_on()
        self._over()
        self._below.close()

    def abort(self) -> None:
        """End at once; what is not sent yet is lost."""
        self._over()
        self._below.abort()

    def _over(self) -> None:
        """Nothing is sent or heard from now on; the SSL object goes, with the session if that has not ended well."""
        self._stage = _Stage.ENDED
        self._timer.cancel()
        self._handshake = None
        self._tls = None
        self._early.clear()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self._stage is _Stage.ENDED

    # -- the rest of what a transport is ------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: object = None) -> Any:
        """Of the SSL object by its usual name, else of the TCP transport."""
        return self._tls if name == "ssl_object" else self._below.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See `asyncio.BaseTransport`."""
        return cast("asyncio.BaseProtocol", self._protocol)
