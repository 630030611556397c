"""`$JS.API.STREAM.MSG.…`: reading and deleting single messages, as JSON.

Owns what these requests mean and the rules for selecting a message, which `direct.py` shares.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.api.decode import BOOL, INT, STRING, STRINGS, TIME, UINT64, JsonObject, Struct
from nimsnats.jetstream.api.dispatch import ApiRequest, Body, Endpoint
from nimsnats.jetstream.clock import format_time, parse_time
from nimsnats.jetstream.kinds import STREAM_DELETE_MESSAGE
from nimsnats.jetstream.message import StoredMessage
from nimsnats.jetstream.stream import Stream
from nimsnats.protocol.subject import has_wildcard
from nimsnats.storage import StorageError

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount

GET: Final = Struct(
    "JSApiMsgGetRequest",
    {
        "seq": UINT64,
        "last_by_subj": STRING,
        "next_by_subj": STRING,
        "batch": INT,
        "max_bytes": INT,
        "start_time": TIME,
        "multi_last": STRINGS,
        "up_to_seq": UINT64,
        "up_to_time": TIME,
        "no_hdr": BOOL,
    },
)
_DELETE: Final = Struct("JSApiMsgDeleteRequest", {"seq": UINT64, "no_erase": BOOL})


def selects(params: JsonObject) -> bool:
    """Whether a request says which message it wants."""
    return any(params.get(key) for key in ("seq", "last_by_subj", "next_by_subj", "start_time", "multi_last"))


def conflicting(params: JsonObject) -> bool:
    """Whether a request says so in more ways than one."""
    last, following = params.get("last_by_subj"), params.get("next_by_subj")
    return bool(
        (params.get("seq") and (last or params.get("start_time")))
        or (params.get("start_time") and last)
        or (last and following)
        or (last and (params.get("batch") or params.get("multi_last")))
        or (following and params.get("multi_last"))
    )


def start_of(stream: Stream, params: JsonObject) -> int:
    """The sequence at which a request's search starts; 0 when it names none."""
    if params.get("start_time"):
        return stream.seq_at_time(parse_time(params["start_time"]))
    return params.get("seq", 0)


def select(stream: Stream, params: JsonObject) -> int:
    """The sequence of the message that a request wants, 0 when there is none."""
    seq = start_of(stream, params)
    if params.get("next_by_subj"):
        return stream.next_match((params["next_by_subj"].encode(),), seq)
    if params.get("last_by_subj"):
        return stream.last_match((params["last_by_subj"].encode(),))
    return seq if stream.live(seq) else 0


def searches(params: JsonObject) -> bool:
    """Whether a request names its message by a wildcard: then `seek` finds it, without keeping others waiting."""
    return has_wildcard((params.get("next_by_subj") or params.get("last_by_subj") or "").encode())


async def seek(stream: Stream, params: JsonObject) -> int:
    """`select` by a wildcard, or once no entry is half applied."""
    await stream.settled_down()
    if not searches(params):
        return select(stream, params)
    if params.get("next_by_subj"):
        return await stream.seek_next((params["next_by_subj"].encode(),), start_of(stream, params))
    return await stream.seek_last((params["last_by_subj"].encode(),))


class MessageApi:
    """The message endpoints of one account."""

    def __init__(self, account: JetStreamAccount) -> None:
        self._account = account

    def endpoints(self) -> list[Endpoint]:
        """What to register with the dispatcher."""
        return [
            Endpoint("STREAM.MSG.GET.*", "stream_msg_get_response", self.get, Body.REQUIRED, GET),
            Endpoint("STREAM.MSG.DELETE.*", "stream_msg_delete_response", self.delete, Body.REQUIRED, _DELETE),
        ]

    async def get(self, request: ApiRequest) -> JsonObject:
        """`STREAM.MSG.GET.<stream>`."""
        stream = self._account.stream(request.tokens[3])
        params = request.params
        if params.get("batch") or params.get("max_bytes") or params.get("multi_last"):
            raise errors.BAD_REQUEST()
        if not selects(params) or conflicting(params):
            raise errors.BAD_REQUEST()
        seq = await seek(stream, params)
        try:
            message = (stream.get(seq) or await stream.load(seq)) if seq else None
        except StorageError as error:
            raise errors.CLUSTER_NOT_AVAIL() from error
        if message is None:
            raise errors.NO_MESSAGE_FOUND()
        return {"message": _as_json(message, headers=not params.get("no_hdr"))}

    async def delete(self, request: ApiRequest) -> JsonObject:
        """`STREAM.MSG.DELETE.<stream>`."""
        stream = self._account.stream(request.tokens[3])
        seq: int = request.params.get("seq", 0)
        if stream.config.sealed:
            raise errors.STREAM_SEALED()
        if stream.config.deny_delete:
            raise errors.STREAM_MSG_DELETE_FAILED(err="message delete not permitted")
        if not seq:
            raise errors.STREAM_MSG_DELETE_FAILED(err="no message found")
        if seq > stream.last_seq:
            raise errors.STREAM_MSG_DELETE_FAILED(err="stream store EOF")
        return {"success": await stream.change(STREAM_DELETE_MESSAGE, {"seq": seq})}


def _as_json(message: StoredMessage, *, headers: bool) -> JsonObject:
    body: JsonObject = {"subject": message.subject.decode("utf-8", "replace"), "seq": message.seq}
    if message.headers and headers:
        body["hdrs"] = b64encode(message.headers).decode()
    if message.payload:
        body["data"] = b64encode(message.payload).decode()
    body["time"] = format_time(message.time)
    return body
