"""TCP between simulated hosts: delays, stalls, one-way cuts, resets.

Owns listeners and connections. Bytes of one connection arrive in order or not at all, as TCP has it: a cut link holds
them back, and when it heals they come late; a connection that is held back for too long breaks on the sender's side.
A host that is down swallows everything; one that is up again answers what belongs to an earlier life with a reset.
"""

from __future__ import annotations

import asyncio
from contextvars import Context
from random import Random
from typing import TYPE_CHECKING, Any, Final

from tests.simulation.loop import Process, SimLoop, current

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.trace import Trace

_KERNEL: Final = 128 * 1024
"""Bytes that the kernel takes from a sender whose peer does not take them."""
_HIGH: Final = _KERNEL + 64 * 1024
_RESEND: Final = 0.4
"""Seconds after a cut heals within which TCP tries again."""
_FIRST_PORT: Final = 30_000
_NOBODY: Final = Context()
"""What the network does belongs to no process."""


class Refused(ConnectionRefusedError):
    """Nobody listens there."""


class Network:
    """See the module. `delay` is the least latency of a link in seconds, `jitter` the mean of what comes on top."""

    def __init__(self, loop: SimLoop, random: Random, trace: Trace) -> None:
        loop.network = self
        self.loop = loop
        self.random = random
        self.trace = trace
        self.delay = 0.0003
        self.jitter = 0.0003
        self.patience = 15.0
        """Seconds that a sender's TCP goes on trying."""
        self.slow: dict[str, float] = {}
        """Hosts whose links take so many seconds more."""
        self.cut: set[tuple[str, str]] = set()
        """(from, to): nothing gets through."""
        self.down: set[str] = set()
        self.listeners: dict[tuple[str, int], Listener] = {}
        self.open: dict[Transport, None] = {}
        self._stalled: dict[Flow, None] = {}
        self._ports = _FIRST_PORT

    def blocked(self, sender: str, to: str) -> bool:
        """Whether nothing gets from one host to another now."""
        return (sender, to) in self.cut or sender in self.down or to in self.down

    def latency(self, sender: str, to: str) -> float:
        """Seconds that the next packet takes."""
        more = self.slow.get(sender, 0.0) + self.slow.get(to, 0.0)
        return self.delay + (self.jitter + more) * self.random.expovariate(1.0)

    # What the loop asks for

    def listen(self, factory: Callable[[], Any], host: str, port: int) -> Listener:
        """A new listener of the process that asks."""
        process = current()
        assert process is not None and host == process.host, f"{host} is not here"
        if not port:
            self._ports += 1
            port = self._ports
        found = self.listeners.get((host, port))
        if found is not None and not found.process.dead:
            raise OSError(98, "Address already in use")
        listener = self.listeners[host, port] = Listener(self, process, factory, host, port)
        return listener

    async def connect(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Transport, Any]:
        """Connect the process that asks."""
        process = current()
        assert process is not None
        self._ports += 1
        mine = (process.host, self._ports)
        tries = 0
        while self.blocked(process.host, host) or self.blocked(host, process.host):
            tries += 1
            if tries > 6:
                raise TimeoutError(110, "Connection timed out")
            await asyncio.sleep(2.0**tries * 0.5)
        await asyncio.sleep(self.latency(process.host, host))
        listener = self.listeners.get((host, port))
        if listener is None or listener.process.dead:
            raise Refused(111, f"Connect call failed ('{host}', {port})")
        kind = "r" if port == 6222 else "c"
        near = Transport(self, process, mine, (host, port), kind)
        far = Transport(self, listener.process, (host, port), mine, kind)
        near.out, far.out = Flow(near, far), Flow(far, near)
        listener.process.call(_accept, far, listener.factory)
        await asyncio.sleep(self.latency(host, process.host))
        return near, near.attach(factory)

    # Faults

    def change(self) -> None:
        """`cut` or `down` was changed: what is not held back any more goes on."""
        for flow in list(self._stalled):
            if not self.blocked(flow.near.host, flow.far.host):
                del self._stalled[flow]
                flow.go_on()

    def stall(self, flow: Flow) -> None:
        """A flow waits for its link."""
        if flow not in self._stalled:
            self._stalled[flow] = None
            pause = self.patience * (0.5 + self.random.random())
            self.loop.call_later(pause, self._give_up, flow, flow.sent, context=_NOBODY)

    def _give_up(self, flow: Flow, sent: int) -> None:
        if flow in self._stalled and flow.sent == sent:
            del self._stalled[flow]
            flow.near.lose(TimeoutError(110, "Connection timed out"))

    def reset(self, transport: Transport) -> None:
        """Break a connection for both sides."""
        transport.lose(ConnectionResetError(104, "Connection reset by peer"))
        far = transport.out.far
        far.lose(ConnectionResetError(104, "Connection reset by peer"))

    def killed(self, process: Process) -> None:
        """The kernel closes what a process leaves behind; a host that is down says nothing."""
        for listener in list(self.listeners.values()):
            if listener.process is process:
                listener.close()
        for transport in [each for each in self.open if each.process is process]:
            transport.finish()
            if process.host not in self.down:
                transport.out.end(ConnectionResetError(104, "Connection reset by peer"))


class Listener:
    """An open port. Stands in for asyncio.Server."""

    def __init__(self, network: Network, process: Process, factory: Any, host: str, port: int) -> None:
        self.network = network
        self.process = process
        self.factory = factory
        self.address = (host, port)
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        """As a socket has it."""
        return self.address

    def close(self) -> None:
        """Accept no more."""
        if self.network.listeners.get(self.address) is self:
            del self.network.listeners[self.address]


class Flow:
    """One direction of a connection."""

    def __init__(self, near: Transport, far: Transport) -> None:
        self.near = near
        self.far = far
        self.sent = 0
        self._network = near.network
        self._at = 0.0
        self.waiting: list[bytes] = []
        self.held = 0
        """Bytes in `waiting`."""
        self._ending: tuple[BaseException | None] | None = None

    def write(self, data: bytes) -> None:
        """Send bytes."""
        network = self._network
        if self.waiting or network.blocked(self.near.host, self.far.host):
            self.waiting.append(data)
            self.held += len(data)
            network.stall(self)
        else:
            self._send(data)

    def _send(self, data: bytes, late: float = 0.0) -> None:
        network, near, far = self._network, self.near, self.far
        self.sent += 1
        self._at = at = max(self._at, network.loop.now + late + network.latency(near.host, far.host))
        if len(data) > 1 and network.random.random() < 0.03:
            split = network.random.randrange(1, len(data))
            network.loop.call_at(at, self._arrive, data[:split], context=_NOBODY)
            data = data[split:]
        network.loop.call_at(at, self._arrive, data, context=_NOBODY)

    def end(self, error: BaseException | None) -> None:
        """Send the end of the stream, or a reset, behind what was sent."""
        if self._ending is None:
            self._ending = (error,)
            if not self.waiting:
                self._send_end()

    def _send_end(self) -> None:
        assert self._ending is not None
        network, near, far = self._network, self.near, self.far
        if network.blocked(near.host, far.host):
            network.stall(self)
            return
        self._at = at = max(self._at, network.loop.now + network.latency(near.host, far.host))
        network.loop.call_at(at, self._arrive_end, self._ending[0], context=_NOBODY)

    def go_on(self) -> None:
        """The link works again."""
        late = self._network.random.random() * _RESEND
        waiting, self.waiting, self.held = self.waiting, [], 0
        if waiting:
            self._send(b"".join(waiting), late)
        if self._ending is not None:
            self._send_end()
        self.near.drained()

    def _arrive(self, data: bytes) -> None:
        far = self.far
        if far.process.dead or far.gone:
            if far.host not in self._network.down:
                self.near.lose(ConnectionResetError(104, "Connection reset by peer"))
            return
        far.process.call(far.receive, data)

    def _arrive_end(self, error: BaseException | None) -> None:
        far = self.far
        if error is not None:
            far.lose(error)
        else:
            far.process.call(far.receive_end)


class Transport(asyncio.Transport):
    """One side of a connection."""

    def __init__(self, network: Network, process: Process, mine: tuple[str, int], peer: Any, kind: str) -> None:
        super().__init__({"peername": peer, "sockname": mine, "socket": None})
        self.network = network
        self.process = process
        self.host = process.host
        self.protocol: Any = None
        self.out: Flow = None  # type: ignore[assignment]
        self.gone = False
        self.closing = False
        self._label = f"{kind} >{process.name}"
        self._reading = True
        self._unread: list[bytes] = []
        self._ended = False
        self._paused = False
        network.open[self] = None

    def attach(self, factory: Callable[[], Any]) -> Any:
        """Give the connection its protocol."""
        if self.gone:
            raise ConnectionResetError(104, "Connection reset by peer")
        self.protocol = factory()
        self.protocol.connection_made(self)
        if self._unread or self._ended:
            self.network.loop.call_soon(self._read_on)
        return self.protocol

    # What comes in

    def receive(self, data: bytes) -> None:
        """Bytes have come."""
        if self.gone or self.closing:
            return
        if not self._reading or self.protocol is None:
            self._unread.append(data)
            return
        self.network.trace.packet(self._label, data)
        protocol = self.protocol
        if not isinstance(protocol, asyncio.BufferedProtocol):
            protocol.data_received(data)
            return
        while data and not self.gone and not self.closing:
            buffer = protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            protocol.buffer_updated(size)
            data = data[size:]
            if data and not self._reading:
                self._unread.insert(0, data)
                return

    def receive_end(self) -> None:
        """The peer has closed its side."""
        if self.gone or self.closing:
            return
        if not self._reading or self._unread or self.protocol is None:
            self._ended = True
            return
        if not self.protocol.eof_received():
            self.close()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            self.network.loop.call_soon(self._read_on)

    def is_reading(self) -> bool:
        return self._reading

    def _read_on(self) -> None:
        while self._unread and self._reading and not self.gone:
            self.receive(self._unread.pop(0))
        if self._ended and self._reading and not self._unread:
            self.receive_end()

    # What goes out

    def write(self, data: Any) -> None:
        if self.gone or self.closing:
            return
        self.out.write(bytes(data))
        if self.out.held > _HIGH and not self._paused:
            self._paused = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def get_write_buffer_size(self) -> int:
        return max(0, self.out.held - _KERNEL)

    def drained(self) -> None:
        """The kernel has room again."""
        if self._paused and not self.gone:
            self._paused = False
            self.process.call(self.protocol.resume_writing)

    # The end

    def is_closing(self) -> bool:
        return self.closing or self.gone

    def close(self) -> None:
        if self.closing or self.gone:
            return
        self.closing = True
        self.out.end(None)
        self.network.loop.call_soon(self._lost, None)

    def abort(self) -> None:
        if self.gone:
            return
        self.closing = True
        self.out.waiting.clear()
        self.out.held = 0
        self.out.end(ConnectionResetError(104, "Connection reset by peer"))
        self.network.loop.call_soon(self._lost, None)

    def lose(self, error: BaseException | None) -> None:
        """The connection breaks, seen from this side."""
        if not self.gone and not self.process.dead:
            self.process.call(self._lost, error)

    def _lost(self, error: BaseException | None) -> None:
        if not self.gone:
            self.finish()
            if self.protocol is not None:
                self.protocol.connection_lost(error)

    def finish(self) -> None:
        """Nothing comes or goes any more."""
        self.gone = True
        self.network.open.pop(self, None)


def _accept(far: Transport, factory: Callable[[], Any]) -> None:
    if not far.gone:  # else it was broken before a frozen process could accept it
        far.attach(factory)
