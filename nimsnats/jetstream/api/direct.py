"""`$JS.API.DIRECT.GET.…`: reading messages as messages, one or many, without JSON around them.

Owns the batch and multi-last forms and the status lines. A stream that is missing or does not allow direct reads is as
if nobody listened (503). What is in memory is answered at once; the rest by an owned task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream.api.decode import JsonObject, decode
from nimsnats.jetstream.api.dispatch import ApiRequest, Body, Endpoint, level_too_high
from nimsnats.jetstream.api.message import GET, conflicting, searches, seek, select, selects, start_of
from nimsnats.jetstream.clock import format_time, parse_time
from nimsnats.jetstream.errors import ApiError
from nimsnats.jetstream.message import StoredMessage
from nimsnats.jetstream.stream import Stream
from nimsnats.protocol.headers import header_text, status_block, with_headers
from nimsnats.storage import StorageError

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount

MAX_SUBJECTS: Final = 1024
MAX_BYTES: Final = 64 * 1024 * 1024
_BREATH: Final = 64
"""Messages of an answer between which others have their turn."""

Pairs = tuple[tuple[bytes, bytes], ...]


class _Batch:
    """The running state of an answer of several messages."""

    def __init__(self, pending: int, params: JsonObject) -> None:
        self.pending = pending
        self.last = self.sent = 0
        self.room = params.get("max_bytes") or MAX_BYTES
        self.headers = not params.get("no_hdr")

    def pairs(self) -> Pairs:
        """The headers that every message of a batch has in addition."""
        return ((b"Nats-Num-Pending", b"%d" % self.pending), (b"Nats-Last-Sequence", b"%d" % self.last))


class DirectApi:
    """The direct endpoints of one account."""

    def __init__(self, account: JetStreamAccount) -> None:
        self._account = account
        self._tasks: set[asyncio.Task[None]] = set()

    def endpoints(self) -> list[Endpoint]:
        """What to register with the dispatcher."""
        return [
            Endpoint("DIRECT.GET.*", "", self.get, Body.RAW),
            Endpoint("DIRECT.GET.*.>", "", self.get_last, Body.RAW),
        ]

    async def close(self) -> None:
        """Give up answers under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stream(self, request: ApiRequest) -> Stream | None:
        served = self._account.streams.get(request.tokens[2])
        if served is None or not served.stream.leading or not served.stream.config.allow_direct:
            return None
        return served.stream

    def get(self, request: ApiRequest) -> bool | None:
        """`DIRECT.GET.<stream>`."""
        stream = self._stream(request)
        if stream is None:
            return False
        if not request.reply or self._too_old(request):
            return None
        if not request.body:
            return self._status(request, 408, "Empty Request")
        try:
            params = decode(request.body, GET, strict=False)
        except ApiError:
            return self._status(request, 408, "Malformed Request")
        if not selects(params):
            return self._status(request, 408, "Empty Request")
        if conflicting(params) or (params.get("up_to_seq") and params.get("up_to_time")):
            return self._status(request, 408, "Bad Request")
        if params.get("multi_last"):
            self._run(request, self._send_multi(request, stream, params))
            return None
        if params.get("batch"):
            self._run(request, self._send_batch(request, stream, params))
            return None
        if stream.unsettled or searches(params):
            self._run(request, self._seek_one(request, stream, params))
            return None
        return self._one(request, stream, select(stream, params), params)

    def get_last(self, request: ApiRequest) -> bool | None:
        """`DIRECT.GET.<stream>.<subject>`."""
        stream = self._stream(request)
        if stream is None:
            return False
        if not request.reply or self._too_old(request):
            return None
        try:
            params = decode(request.body, GET, strict=False)
        except ApiError:
            return self._status(request, 408, "Malformed Request")
        if any(params.get(key) for key in params if key != "no_hdr"):
            return self._status(request, 408, "Bad Request")
        params["last_by_subj"] = ".".join(request.tokens[3:])
        if stream.unsettled or searches(params):
            self._run(request, self._seek_one(request, stream, params))
            return None
        return self._one(request, stream, select(stream, params), params)

    def _too_old(self, request: ApiRequest) -> bool:
        if not request.headers or not level_too_high(request.headers):
            return False
        self._status(request, 412, "Required Api Level")
        return True

    def _status(self, request: ApiRequest, code: int, text: str, pairs: Pairs = ()) -> None:
        self._account.account.publish(request.reply, headers=status_block(code, text, pairs))

    def _run(self, request: ApiRequest, answer: Coroutine[Any, Any, None]) -> None:
        task = self._account.engine.runtime.spawn(self._finish(request, answer), "direct get")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, request: ApiRequest, answer: Coroutine[Any, Any, None]) -> None:
        try:
            await answer
        except StorageError:
            self._status(request, 503, "Message Cannot Be Read Now")
        except Exception as error:
            self._account.account.failed(self._finish, request.subject, request.reply, error)

    def _one(self, request: ApiRequest, stream: Stream, seq: int, params: JsonObject) -> None:
        if not seq:
            return self._status(request, 404, "Message Not Found")
        message = stream.get(seq)
        if message is None:
            self._run(request, self._load_one(request, stream, seq, params))
        else:
            self._send(request, stream, message, not params.get("no_hdr"))
        return None

    async def _seek_one(self, request: ApiRequest, stream: Stream, params: JsonObject) -> None:
        seq = await seek(stream, params)
        if seq:
            await self._load_one(request, stream, seq, params)
        else:
            self._status(request, 404, "Message Not Found")

    async def _load_one(self, request: ApiRequest, stream: Stream, seq: int, params: JsonObject) -> None:
        message = stream.get(seq) or await stream.load(seq)
        if message is None:
            self._status(request, 404, "Message Not Found")
        else:
            self._send(request, stream, message, not params.get("no_hdr"))

    def _send(
        self, request: ApiRequest, stream: Stream, message: StoredMessage, headers: bool, extra: Pairs = ()
    ) -> None:
        block = b""
        if headers:
            pairs: Pairs = (
                (b"Nats-Stream", stream.name.encode()),
                (b"Nats-Subject", header_text(message.subject)),
                (b"Nats-Sequence", b"%d" % message.seq),
                (b"Nats-Time-Stamp", format_time(message.time).encode()),
            )
            block = with_headers(message.headers, (*pairs, *extra))
        self._account.account.publish(request.reply, message.payload, headers=block)

    async def _send_batch(self, request: ApiRequest, stream: Stream, params: JsonObject) -> None:
        """Up to `batch` messages from a sequence, subject or time on, then the end of batch."""
        await stream.settled_down()
        filters = (params["next_by_subj"].encode(),) if params.get("next_by_subj") else ()
        seq = await stream.seek_next(filters, start_of(stream, params))
        if not seq:
            self._status(request, 404, "Message Not Found")
            return
        batch = _Batch(await stream.tally(filters, seq), params)
        left: int = params["batch"]
        while seq and left > 0 and batch.room > 0:
            message = stream.get(seq) or await stream.load(seq)
            if message is not None:
                left -= 1
                await self._send_of(request, stream, message, batch)
            seq = await stream.seek_next(filters, seq + 1)
        self._status(request, 204, "EOB", batch.pairs())

    async def _send_of(self, request: ApiRequest, stream: Stream, message: StoredMessage, batch: _Batch) -> None:
        batch.pending -= 1
        self._send(request, stream, message, batch.headers, batch.pairs())
        batch.last = message.seq
        batch.room -= len(message.payload) + len(message.headers)
        batch.sent += 1
        if batch.sent % _BREATH == 0:
            await asyncio.sleep(0)

    async def _send_multi(self, request: ApiRequest, stream: Stream, params: JsonObject) -> None:
        """The last message of each subject, as of a sequence or time."""
        await stream.settled_down()
        end = params.get("up_to_seq", 0) or stream.last_seq
        if params.get("up_to_time"):
            end = stream.seq_at_time(parse_time(params["up_to_time"])) - 1
        filters = tuple(subject.encode() for subject in params["multi_last"])
        start: int = params.get("seq", 0)
        found = await stream.last_of_each(filters, end, MAX_SUBJECTS)
        if len(found) > MAX_SUBJECTS:
            self._status(request, 413, "Too Many Results")
            return
        seqs = [seq for seq in found if seq >= start]
        if not seqs:
            self._status(request, 404, "No Results")
            return
        batch = _Batch(len(seqs), params)
        left: int = params.get("batch") or len(seqs)
        for seq in seqs:
            if left <= 0 or batch.room <= 0:
                break
            message = stream.get(seq) or await stream.load(seq)
            if message is not None:
                left -= 1
                await self._send_of(request, stream, message, batch)
        self._status(request, 204, "EOB", (*batch.pairs(), (b"Nats-UpTo-Sequence", b"%d" % end)))
