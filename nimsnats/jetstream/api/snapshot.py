"""`$JS.API.STREAM.SNAPSHOT.…` and `STREAM.RESTORE.…`: a stream as an archive, and back.

Owns what these requests mean and the shape of the answers; `nimsnats.jetstream.snapshot` does the work.

One header is our own: `Nimsnats-Snapshot-After: <sequence>` asks for the messages above a sequence only. It is for
whoever already holds the others, out of a snapshot of the same stream: `state.json` then says which of them are gone.
Other servers ignore it, and send everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.advisory import client_of
from nimsnats.jetstream.api.decode import BOOL, INT, STRING, TIME, UINT64, JsonObject, Listed, Mapped, Struct
from nimsnats.jetstream.api.dispatch import ApiRequest, Body, Endpoint
from nimsnats.jetstream.api.stream import asked_config
from nimsnats.jetstream.config import FIELDS
from nimsnats.jetstream.snapshot.outflow import Flow
from nimsnats.jetstream.snapshot.view import SnapshotView
from nimsnats.protocol.headers import header_value
from nimsnats.protocol.subject import has_wildcard, is_configurable

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount
    from nimsnats.jetstream.snapshot.transfers import Transfers

AFTER: Final = b"Nimsnats-Snapshot-After"

_SNAPSHOT: Final = Struct(
    "JSApiStreamSnapshotRequest",
    {"deliver_subject": STRING, "no_consumers": BOOL, "chunk_size": INT, "window_size": INT, "jsck": BOOL},
)
_STATE: Final = Struct(
    "StreamState",
    {
        "messages": UINT64,
        "bytes": UINT64,
        "first_seq": UINT64,
        "first_ts": TIME,
        "last_seq": UINT64,
        "last_ts": TIME,
        "num_subjects": INT,
        "subjects": Mapped(UINT64, "map[string]uint64"),
        "num_deleted": INT,
        "deleted": Listed(UINT64, "[]uint64"),
        "lost": Struct("LostStreamData", {"msgs": Listed(UINT64, "[]uint64"), "bytes": UINT64}),
        "consumer_count": INT,
    },
)
_RESTORE: Final = Struct("JSApiStreamRestoreRequest", {"config": Struct("StreamConfig", FIELDS), "state": _STATE})


class SnapshotApi:
    """The endpoints of one account."""

    def __init__(self, account: JetStreamAccount, transfers: Transfers) -> None:
        self._account = account
        self._transfers = transfers

    def endpoints(self) -> list[Endpoint]:
        """What to register with the dispatcher."""
        nowhere: JsonObject = {"deliver_subject": ""}
        return [
            Endpoint("STREAM.SNAPSHOT.*", "stream_snapshot_response", self.snapshot, Body.REQUIRED, _SNAPSHOT),
            Endpoint("STREAM.RESTORE.*", "stream_restore_response", self.restore, Body.REQUIRED, _RESTORE, nowhere),
        ]

    def snapshot(self, request: ApiRequest) -> JsonObject:
        """`STREAM.SNAPSHOT.<stream>`: the answer, then the chunks on `deliver_subject`."""
        stream = self._account.stream(request.tokens[2])
        params = request.params
        to = params.get("deliver_subject", "").encode()
        if not is_configurable(to) or has_wildcard(to):
            raise errors.SNAPSHOT_DELIVER_SUBJECT_INVALID()
        after = header_value(request.headers, AFTER) if request.headers else None
        known = int(after) if after is not None and after.isdigit() and len(after) < 20 else 0
        view = SnapshotView(stream, consumers=not params.get("no_consumers"), after=min(known, stream.last_seq))
        flow = Flow.asked(params.get("chunk_size", 0), params.get("window_size", 0))
        self._transfers.send(self._account, stream.name, view, to, flow, client_of(request))
        return {"config": view.config, "state": view.state}

    async def restore(self, request: ApiRequest) -> JsonObject:
        """`STREAM.RESTORE.<stream>`: the subject to which the chunks are to go."""
        asked = asked_config(request.params.get("config", {}), request.tokens[2])
        subject = await self._transfers.receive(self._account, asked, client_of(request))
        return {"deliver_subject": subject}
