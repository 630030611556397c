"""Messages between nodes: ordinary messages on the system account, which routes carry.

Owns the subjects (`$NIMS.RAFT.<hash>`, `$NIMS.API.<hash>`), questions with their answers, and the way of Raft's frames.
What a question means is the business of whoever registers for it, and so is to read its body into typed values before
anything is done (`body.py`). Only members of the cluster can publish and listen here, which is
the broker's doing (`broker.reserved`).

What cannot be read is counted and logged once a sender, and whoever asked is refused with error 10003. Any other error
of a listener is our own: logged with its stack, counted at the fence, and answered with error 10051.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from msgpack import UnpackException

from nimsnats.identity import node_hash
from nimsnats.jetstream import errors
from nimsnats.jetstream.body import Nonsense, fields, headed
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.packing import pack, unpack
from nimsnats.protocol.packed_bounds import Bounds, check
from nimsnats.raft.transport import node_of
from nimsnats.runtime import Runtime

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.client import ClientConnection
    from nimsnats.broker.subscription import Subscription
    from nimsnats.raft.host import Host

_TELL: Final = 0
_ASK: Final = 1
_ANSWER: Final = 2
_REFUSAL: Final = 3
_FORMS: Final = (_TELL, _ASK, _ANSWER, _REFUSAL)
_TOLD_KEPT: Final = 1024
_BOUNDS: Final = Bounds(size=96 << 20, elements=1 << 20, containers=1 << 18, depth=32)
"""Of a message, whatever kind it is. The largest are batches on their way to a leader (`publish.MAX_BATCH_BYTES` and
one message, which a route carries up to 64 MiB) and the answers to them (`publish.MAX_BATCH` outcomes)."""
PATIENCE: Final = 2.0
"""Seconds to wait for an answer unless told otherwise."""

Listener = Callable[[str, Any], Any]
"""(sender's member name, body) -> an answer, or an awaitable of one. May raise ApiError, and Nonsense for the body."""


class Unreachable(Exception):
    """The other node has no route, or did not answer in time."""


def mailbox(member: str) -> bytes:
    """The subject of a member's, or of any node's, questions."""
    return b"$NIMS.API." + node_hash(member).encode()


class RaftMail:
    """Raft's frames over routes; implements `nimsnats.raft.transport.Transport`."""

    def __init__(self, system: Account, host: Host) -> None:
        self._system = system
        self._host = host
        self._subjects: dict[str, bytes] = {}
        self._subscription: Subscription | None = system.subscribe(
            self._subject(host.member), self._receive, routed=True
        )

    def _subject(self, member: str) -> bytes:
        subject = self._subjects.get(member)
        if subject is None:
            subject = self._subjects[member] = b"$NIMS.RAFT." + node_hash(member).encode()
        return subject

    def send(self, peer: str, frame: bytes) -> None:
        """Send a frame to a member, or drop it."""
        self._system.publish(self._subject(peer), frame)

    def _receive(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> bool | None:
        del subject, reply, headers
        if origin is None:
            self._host.receive("", payload)
        return None

    def close(self) -> None:
        """Receive no more."""
        if self._subscription is not None:
            self._system.unsubscribe(self._subscription)
            self._subscription = None


class Mail:
    """Questions and messages between nodes. `member` is this node with its disk."""

    def __init__(self, system: Account, member: str, runtime: Runtime, log: logging.Logger) -> None:
        self.member = member
        self.refused = 0
        """Messages that could not be read, or whose body was not what their kind has."""
        self._told: set[str] = set()
        self._system = system
        self._runtime = runtime
        self._log = log
        self._listeners: dict[str, Listener] = {}
        self._hearers: dict[str, Callable[[str, Any], None]] = {}
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._numbers = runtime.random.getrandbits(48)
        """Of questions. Drawn, so that an answer to an earlier process answers nothing of this one."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscriptions = [
            system.subscribe(mailbox(name), self._receive, routed=True) for name in (member, node_of(member))
        ]

    def listen(self, what: str, listener: Listener) -> None:
        """Answer questions of one kind."""
        self._listeners[what] = listener

    def hear(self, what: str, hearer: Callable[[str, Any], None]) -> None:
        """Take messages of one kind, in the turn in which they come. Nobody can ask for an answer to them."""
        self._hearers[what] = hearer

    def tell(self, to: str, what: str, body: Any) -> bool:
        """Send without expecting an answer; False when there is no way there."""
        return self._send(to, _TELL, 0, what, body)

    def reaches(self, to: str) -> bool:
        """Whether there is a way to a member, or a node by its bare name."""
        return self._system.has_interest(mailbox(to))

    async def ask(self, to: str, what: str, body: Any, patience: float = PATIENCE) -> Any:
        """Ask a member, or a node by its bare name. Raises Unreachable, and the ApiError that it answers with."""
        self._numbers += 1
        number = self._numbers
        waiting: asyncio.Future[Any] = self._runtime.loop.create_future()
        self._waiting[number] = waiting
        try:
            if not self._send(to, _ASK, number, what, body):
                raise Unreachable(f"no route to {node_of(to)}")
            async with asyncio.timeout(patience):
                return await waiting
        except TimeoutError as error:
            raise Unreachable(f"{node_of(to)} does not answer") from error
        finally:
            del self._waiting[number]

    def _send(self, to: str, form: int, number: int, what: str, body: Any) -> bool:
        frame = pack([form, number, self.member, to, what, body])
        return self._system.publish(mailbox(to), frame) > 0

    def _receive(
        self, subject: bytes, reply: bytes, headers: bytes, payload: bytes, origin: ClientConnection | None
    ) -> bool | None:
        del subject, reply, headers, origin
        try:
            check(payload, _BOUNDS)
            message = unpack(payload)
        except (ValueError, TypeError, RecursionError, UnpackException) as error:
            self._refuse("", f"no message of ours ({type(error).__name__})")
            return None
        try:
            (form, number, sender, to, what), body = headed(message, int, int, str, str, str)
        except Nonsense as error:
            self._refuse("", f"no message of ours ({error})")
            return None
        if form not in _FORMS:
            self._refuse("", "a message of an unknown form")
        elif to not in (self.member, node_of(self.member)):
            return None
        elif form in (_ANSWER, _REFUSAL):
            self._answered(form, number, sender, body)
        elif form == _TELL and what in self._hearers:
            self._hear(sender, what, body)
        elif what in self._listeners:
            self._handle(form, number, sender, what, body)
        else:
            self._refuse(sender, "a question of an unknown kind")
        return None

    def _refuse(self, sender: str, why: str) -> None:
        """Count a message that was not accepted; the log hears of it once a sender and reason."""
        self.refused += 1
        key = f"{sender[:64]} {why}"
        if key not in self._told and len(self._told) < _TOLD_KEPT:
            self._told.add(key)
            self._log.warning("Refused from %s: %s", ascii(sender[:64]) if sender else "an unknown peer", why)

    def _answered(self, form: int, number: int, sender: str, body: Any) -> None:
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():
            return
        if form == _ANSWER:
            waiting.set_result(body)
            return
        try:
            code, err_code, description = fields(body, int, int, str)
        except Nonsense:
            self._refuse(sender, "a refusal that says nothing")
            return
        waiting.set_exception(ApiError(code, err_code, description))

    def _hear(self, sender: str, what: str, body: Any) -> None:
        try:
            self._hearers[what](sender, body)
        except Nonsense as error:
            self._refuse(sender, f"no {what}: {error}")

    def _handle(self, form: int, number: int, sender: str, what: str, body: Any) -> None:
        task = self._runtime.spawn(self._answer(form, number, sender, what, body), f"mail {what}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, form: int, number: int, sender: str, what: str, body: Any) -> None:
        try:
            answer: Any = self._listeners[what](sender, body)
            if inspect.isawaitable(answer):
                answer = await _resolved(answer)
            if form == _ASK:
                self._send(sender, _ANSWER, number, what, answer)
            return
        except ApiError as error:
            refusal = error
        except Nonsense as error:
            self._refuse(sender, f"no {what}: {error}")
            refusal = errors.BAD_REQUEST()
        except Exception as error:
            self._runtime.fence.caught(self._listeners[what], error)
            refusal = errors.STREAM_GENERAL_ERROR(err="internal error")
        if form == _ASK:
            self._send(sender, _REFUSAL, number, what, [refusal.code, refusal.err_code, refusal.description])

    async def close(self) -> None:
        """Hear and answer nothing more."""
        for subscription in self._subscriptions:
            self._system.unsubscribe(subscription)
        self._subscriptions.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _resolved(answer: Awaitable[Any]) -> Any:
    return await answer
