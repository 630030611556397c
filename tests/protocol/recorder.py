"""A `Commands` that writes down what the parser tells it."""

from __future__ import annotations

from nimsnats.protocol.acks import AckRun
from nimsnats.protocol.parser import AcksTaker, Failure, Line, Parser, Way


class Recorder:
    """Events as tuples. Runs are written down message by message, so that they compare with the other way through.

    With `routed`, every subject without an `x` has a way of its own, so that the parser's fast path is exercised:
    `a` as one receiver with a prefix, others as lanes that put the prefix in front themselves.
    """

    def __init__(self, *, routed: bool = True, headers: bool = True, max_payload: int = 1024) -> None:
        self.lines: dict[bytes, Line[bytes]] = {}
        self.headers = headers
        self.routed = routed
        self.runs = 0
        self.in_columns = 0
        self.delivered = 0
        self.events: list[tuple[object, ...]] = []
        self.early_allowed = False
        self.parser: Parser[bytes] = Parser(self, max_payload, 64)

    def route(self, subject: bytes, headers: bool, reply: bytes) -> Way[bytes] | None:
        if not self.routed or b"x" in subject:
            return None
        return (b"H" if headers else b"") + subject, self, b"MSG a 1 " if subject == b"a" else b""

    def run(self, lane: bytes, pieces: list[bytes], size: int) -> None:
        self.runs += 1
        header = lane.startswith(b"H")
        subject = lane[1:] if header else lane
        assert pieces.pop(0) == b""
        if subject == b"a":
            assert set(pieces[::2]) == {b"MSG a 1 "}
            pieces = pieces[1::2]
        for tail in pieces:
            line, _, body = tail.partition(b"\r\n")
            words = line.split(b" ")
            reply = words[0] if len(words) > 1 + header else b""
            body = body[:-2]
            assert int(words[-1]) == len(body)
            size -= len(body)
            self.events.append(("message", subject, reply, int(words[-2]) if header else -1, body))
        assert size == 0

    def rows(self, subject: bytes) -> bytes | None:
        return subject if self.routed and b"x" not in subject and subject != b"a" else None

    def run_rows(self, lane: bytes, replies: list[bytes], payloads: list[bytes], size: int) -> None:
        self.in_columns += len(replies)
        for reply, body in zip(replies, payloads, strict=True):
            assert len(body) == size
            self.events.append(("message", lane, reply, -1, body))

    def acks(self, run: AckRun) -> AcksTaker | None:
        if not self.routed or run.consumer.startswith(b"x"):
            return None

        def take(seqs: list[int], text: bytes) -> None:
            assert text.count(run.head) == len(seqs) and text.startswith(run.head) and text.endswith(b"\r\n")
            self.in_columns += len(seqs)
            self.events += [("ack", run.consumer, seq, run.size) for seq in seqs]

        return take

    def message(self, subject: bytes, reply: bytes, header: int, data: bytes, start: int, end: int) -> None:
        assert data[end : end + 2] == b"\r\n"
        self.events.append(("message", subject, reply, header, data[start:end]))

    def over(self, *, first: bool) -> bool:
        return False

    def announced(self, subject: bytes) -> None:
        pass

    def subscribe(self, subject: bytes, queue: bytes, sid: bytes) -> None:
        self.events.append(("sub", subject, queue, sid))

    def unsubscribe(self, sid: bytes, limit: int) -> None:
        self.events.append(("unsub", sid, limit))

    def ping(self) -> None:
        self.events.append(("ping",))

    def pong(self) -> None:
        self.events.append(("pong",))

    def connect(self, arg: bytes) -> None:
        self.events.append(("connect", arg))
        if b"wait" in arg:
            self.parser.paused = True
        self.parser.awaiting_connect = False

    def info(self, arg: bytes) -> None:
        self.events.append(("info", arg))

    def error(self, text: bytes) -> None:
        self.events.append(("error", text))

    def early(self) -> bool:
        return self.early_allowed

    def fail(self, failure: Failure, detail: str) -> None:
        self.events.append(("fail", failure))
