"""The client protocol, server side: bytes in, calls on a `Commands` out. No socket, clock or loop in here.

Owns framing: verbs, arguments, sizes, what is an error and what only ends the connection. It never decides what a
command means; it does not know subscriptions, and lanes are opaque values that it got from `Commands.route`.

Three ways through:

- **The run** (`Parser.parse`). A control line that was seen before (`Commands.lines`) costs one dictionary look-up.
  The *tail* of a PUB after its subject, `[reply ]size CRLF payload CRLF`, is byte for byte the tail of the MSG that it
  becomes, so the output for consecutive messages in one *lane* is collected as a list of prefixes and slices of the
  input and handed over at once. No call, no object per message.
- **The rows** (`Parser._columns`). Requests of one kind in a row, to a lane that wants their replies and payloads as
  columns, are cut in C (`rows.Rows`); so are acknowledgements (`acks.AckRun`).
- **The line** (`Parser._line`). Everything else, one control line at a time, by nats-server's rules and quirks.

The yardstick is nats-server's state machine; where it looks at bytes before the line is complete (unknown verbs, the
control line limit, who may speak before CONNECT) so does this.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from nimsnats.protocol.acks import PREFIX, AckRun, AckWatch
from nimsnats.protocol.rows import Rows, RowsWatch

L = TypeVar("L")

LINES_KEPT: Final = 8192
"""Known control lines kept per account; when full the table starts anew."""

_UNASKED: Final = 32
"""Control lines that are processed one by one before the connection is asked whether that is enough."""

_CONNECT_FIRST: Final = frozenset(b"Cc")
_BLANKS: Final = frozenset(b" \t")
_VERBS: Final = (
    b"PUB", b"HPUB", b"SUB", b"UNSUB", b"PING", b"PONG", b"CONNECT", b"INFO", b"+OK", b"-ERR",
)  # fmt: skip
_BARE: Final = (b"PING", b"PONG", b"+OK")
_JSON: Final = (b"CONNECT", b"INFO")
_VERB: Final = re.compile(
    rb"(?i:(PUB|HPUB|SUB|UNSUB|-ERR)[ \t]+|(CONNECT|INFO)[ \t]*|(PING|PONG|\+OK))",
)
_FIELDS: Final = re.compile(rb"[^ \t\r\n]+").findall
_PUBLISH_FIELDS: Final = re.compile(rb"[^ \t]+").findall  # nats-server: a CR or LF is part of the word here
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | {9: "\\t", 10: "\\n", 13: "\\r", 34: '\\"'}
"""What must not get into a line of the log as it is."""


class Failure(Enum):
    """Why a connection cannot go on. The value is the text of the `-ERR` line, empty for a silent close."""

    UNKNOWN = "Unknown Protocol Operation"
    CONTROL_LINE = "maximum control line exceeded"
    PAYLOAD = "Maximum Payload Violation"
    AUTHORIZATION = "Authorization Violation"
    VIOLATION = ""


class Tally(Protocol):
    """Something that counts messages."""

    delivered: int


Way = tuple[L, Tally, bytes]
"""Lane, who counts the message, and the prefix that goes in front of its tail (b"": the lane does that itself)."""

Line = tuple[L, Tally, bytes, int, int]
"""A way, then payload size and the offset of the tail in the control line."""


AcksTaker = Callable[[list[int], bytes], None]
"""Takes acknowledgements as stream sequences, and as they came."""


class Commands(Protocol[L]):
    """What a parser drives: one connection. A call may close it by setting `Parser.stopped`."""

    lines: dict[bytes, Line[L]]
    """Known control lines, up to and without LF."""

    headers: bool
    """Whether HPUB is allowed."""

    def route(self, subject: bytes, headers: bool, reply: bytes) -> Way[L] | None:
        """Where messages on `subject` go when runs of them may be handed over; None: one by one."""
        ...

    def run(self, lane: L, pieces: list[bytes], size: int) -> None:
        """Consecutive messages of one lane; `size` is the sum of their payload bytes. The list is the callee's.

        Never raises. The list starts with an empty piece. Then comes prefix, tail, prefix, tail, … where the way had a
        prefix, else only tails, so that `prefix.join(pieces)` puts any prefix in front of every message.
        """
        ...

    def rows(self, subject: bytes) -> L | None:
        """The lane of requests on `subject`, if it takes them in columns and so many replies are welcome."""
        ...

    def run_rows(self, lane: L, replies: list[bytes], payloads: list[bytes], size: int) -> None:
        """Consecutive requests of one lane; `size` is that of each payload. The lists are the callee's."""
        ...

    def acks(self, run: AckRun) -> AcksTaker | None:
        """What takes the acknowledgements of a run together; None when they have to go one by one."""
        ...

    def message(self, subject: bytes, reply: bytes, header: int, data: bytes, start: int, end: int) -> None:
        """One message: `data[start:end]` is header and payload, CRLF follows; `header` is its length, -1 for PUB."""
        ...

    def announced(self, subject: bytes) -> None:
        """The control line of a message that will go to `message` is valid (the payload may not have come yet)."""
        ...

    def subscribe(self, subject: bytes, queue: bytes, sid: bytes) -> None: ...

    def unsubscribe(self, sid: bytes, limit: int) -> None:
        """`limit` is 0 when absent and -1 when it is not a number."""
        ...

    def ping(self) -> None: ...

    def pong(self) -> None: ...

    def connect(self, arg: bytes) -> None: ...

    def info(self, arg: bytes) -> None: ...

    def error(self, text: bytes) -> None: ...

    def early(self) -> bool:
        """A verb other than CONNECT before authentication: whether it may be processed."""
        ...

    def over(self, *, first: bool) -> bool:
        """Whether the input has kept the others waiting for long enough: the rest is held back until `Parser.resume`.
        `first`: asked for the first time since bytes have come."""
        ...

    def fail(self, failure: Failure, detail: str) -> None:
        """The input is invalid; the parser has stopped."""
        ...


def parse_size(text: bytes) -> int:
    """A size of 1 to 9 ASCII digits; -1 for anything else."""
    if 0 < len(text) <= 9 and text.isdigit():
        return int(text)
    return -1


class Parser(Generic[L]):
    """Turns one client's bytes into calls on `commands`."""

    __slots__ = (
        "_ack_watch", "_announced", "_asked", "_commands", "_have", "_parts", "_rows", "_split", "_wanted", "_watch",
        "awaiting_connect", "held", "left", "max_control_line", "max_payload", "paused", "stopped", "strict", "tail",
        "weight",
    )  # fmt: skip

    def __init__(self, commands: Commands[L], max_payload: int, max_control_line: int) -> None:
        self._commands = commands
        self.max_payload = max_payload
        self.max_control_line = max_control_line
        self.awaiting_connect = False
        """Authentication is required and has not happened: any verb but CONNECT asks `Commands.early` first."""
        self.strict = True
        """Tell `Commands.announced` of each control line, once, before its payload is there."""
        self.stopped = False
        self.paused = False
        self.held = False
        """Paused because the input asks for much (`Commands.over`)."""
        self.left = 0
        """Work until `Commands.over` is asked, in control lines; commands that cost more take more off."""
        self.weight = 0
        """Set by `Commands.route`: how many control lines' work a message of this way is; it is counted each time."""
        self.tail = b""
        """Input that waits for more; always begins with a control line."""
        self._asked = False
        self._parts: list[bytes] | None = None
        self._have = 0
        self._wanted = 0
        self._announced = False
        self._split: list[bytes] | None = None
        self._rows: Rows | AckRun | None = None
        self._watch = RowsWatch()
        self._ack_watch = AckWatch()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the connection, cut anywhere."""
        if self.stopped:
            return
        parts = self._parts
        if parts is not None:
            parts.append(data)
            self._have += len(data)
            if self._have < self._wanted - 1 or self.paused:  # the byte after the payload may be wrong already
                return
            self._parts = None
            self.parse(b"".join(parts))
            return
        tail = self.tail
        if tail:
            if len(tail) + len(data) < self._wanted - 1 or self.paused:
                self._parts = [tail, data]
                self._have = len(tail) + len(data)
                self.tail = b""
                return
            data = tail + data
            self.tail = b""
        elif self.paused:
            self.tail = data
            return
        self.parse(data)

    def front(self, most: int) -> bytes:
        """What a reader may put in front of its next read before it calls `joined`; b"" when it should call `feed`.

        Spares `feed` the copy that joins the leftover with the next read. Nothing changes until `joined`.
        """
        tail = self.tail
        return b"" if len(tail) > most or self._wanted > most or self.paused else tail

    def joined(self, data: bytes) -> None:
        """Take the next bytes, with what `front` returned put before them."""
        if not self.stopped:
            self.tail = b""
            self.parse(data)

    def resume(self) -> None:
        """Go on after a command had set `paused`, or the input was `held`."""
        self.paused = self.held = False
        self._wanted = 0
        self.feed(b"")

    def close(self) -> None:
        """Take nothing more and keep nothing, also when a command that is being carried out calls this."""
        self.stopped = True
        self.tail = b""
        self._parts = self._split = self._rows = None
        self._watch = RowsWatch()
        self._ack_watch = AckWatch()

    def release(self) -> None:
        """Let go of `commands`, which hold the parser: nothing is called any more."""
        self.close()
        del self._commands

    def parse(self, data: bytes) -> None:
        """Process everything complete in `data`, which begins with what was left over before.

        The hot loop of the server, and longer than its neighbours for that reason: a call per message would cost
        more than all the rest of it. Raises what a command raises, except `run`, `run_rows`, `message` and what
        `acks` names: these do not, so that no message is handed over twice or costs another one.
        """
        commands = self._commands
        known = commands.lines.get
        find = data.find
        length = len(data)
        resolve = self._resolve
        pos = end = total = self._wanted = 0
        self.left = _UNASKED
        self._asked = False
        pieces: list[bytes] = [b""]
        add = pieces.append
        current: L | None = None
        line: Line[L] | None = None
        try:
            while pos < length:
                lf = find(10, pos)
                if lf < 0:
                    break
                key = data[pos:lf]
                line = known(key)
                if line is None:
                    rows = self._rows
                    if rows is not None and length - pos > rows.least and data.startswith(rows.head, pos):
                        if current is not None:
                            commands.run(current, pieces, total)
                            if self.stopped:
                                return
                            current = None
                            pieces = [b""]
                            add = pieces.append
                            total = 0
                        after = self._columns(rows, data, pos)
                        if self.stopped:
                            return
                        if after > pos:
                            pos, end = after, 0
                            continue
                    line = resolve(key)
                if line is not None:
                    lane, tally, prefix, size, skip = line
                    end = lf + size + 3
                    if end > length or data[end - 1] != 10 or data[end - 2] != 13:
                        break
                    if lane is not current:
                        if current is not None:
                            commands.run(current, pieces, total)
                            if self.stopped:
                                return
                            pieces = [b""]
                            add = pieces.append
                            total = 0
                        current = lane
                    if prefix:
                        add(prefix)
                    add(data[pos + skip : end])
                    tally.delivered += 1
                    total += size
                    pos = end
                    continue
                if current is not None:
                    commands.run(current, pieces, total)
                    if self.stopped:
                        return
                    current = None
                    pieces = [b""]
                    add = pieces.append
                    total = 0
                pos = self._line(data, pos, lf, key)
                if pos < 0:
                    return
                known = commands.lines.get
                end = 0
        except Exception:
            # an error of ours: whoever catches it ends the connection; what came before it has been said all the same
            if current is not None:
                if line is not None and line[2] and not len(pieces) & 1:
                    pieces.pop()  # a prefix whose tail there was no memory for
                commands.run(current, pieces, total)
            raise
        if current is not None:
            commands.run(current, pieces, total)
        if pos < length and not self.stopped:
            if end > pos:
                self._unfinished(data, pos, end - 2)
            else:
                self._partial(data[pos:])

    def _columns(self, rows: Rows | AckRun, data: bytes, pos: int) -> int:
        """Hand over the requests of one kind at `pos`; the position behind them."""
        commands = self._commands
        if isinstance(rows, AckRun):
            return self._acknowledged(rows, data, pos)
        lane = commands.rows(rows.subject)
        if lane is None:
            self._rows = None
            return pos
        replies, payloads, after = rows.take(data, pos)
        if len(replies) < 2:
            self._rows = None
        if replies:
            commands.run_rows(lane, replies, payloads, rows.size)
        return after

    def _acknowledged(self, run: AckRun, data: bytes, pos: int) -> int:
        """The same for acknowledgements."""
        take = self._commands.acks(run)
        if take is None:
            self._ack_watch.unwanted()
            self._rows = None
            return pos
        seqs, after = run.take(data, pos)
        if len(seqs) < 2:
            self._rows = None
        if seqs:
            take(seqs, data[pos:after])
        return after

    # -- one line at a time -------------------------------------------------------------------------------------

    def _resolve(self, line: bytes) -> Line[L] | None:
        """The way of a PUB or HPUB in the usual form (single blanks, CRLF), kept if it has no reply; else None."""
        self._split = None
        hpub = line[:5] == b"HPUB "
        if not (hpub or line[:4] == b"PUB ") or line[-1] != 13 or len(line) > self.max_control_line:
            return None
        if self.awaiting_connect:
            return None
        words = line[:-1].split(b" ")
        if b"" in words or b"\t" in line or line.count(13) != 1:
            return None
        self._split = words
        subject = words[1]
        count = len(words) - hpub
        if count == 3:
            reply = b""
        elif count == 4:
            reply = words[2]
        else:
            return None
        self.weight = 0
        way = self._commands.route(subject, hpub, reply)
        if self.weight:
            self.left -= self.weight
            if self.left < 0:
                return None
        if way is None:
            if not reply and not hpub and subject.startswith(PREFIX):
                self._rows = self._ack_watch.seen(subject, words[-1], self.max_control_line) or self._rows
            return None
        digits = words[-1]
        if hpub or len(digits) > 9 or not digits.isdigit():
            size, header, problem = self._sizes(words, hpub)
            if problem is not None or not header:  # without a header it becomes a MSG
                return None
        else:
            size = int(digits)
            if size > self.max_payload:
                return None
        found = (*way, size, len(words[0]) + len(subject) + 2)
        if not reply:
            if not self.weight:
                lines = self._commands.lines
                if len(lines) >= LINES_KEPT:
                    lines.clear()
                lines[line] = found
        elif not hpub and self._watch.seen(subject, digits) and self._commands.rows(subject) is not None:
            self._rows = self._watch.rows(reply, self.max_control_line)
        return found

    def _line(self, data: bytes, pos: int, lf: int, line: bytes) -> int:
        """Process the control line `data[pos:lf]`; the position after it (and its payload), -1 to stop here."""
        if self.awaiting_connect and data[pos] not in _CONNECT_FIRST and not self._commands.early():
            return self._fail(Failure.AUTHORIZATION, "authentication required")
        self.left -= 1
        if self.left < 0 and self._over():
            self.tail = data[pos:]
            self.held = self.paused = True
            return -1
        words = self._split
        if words is not None:
            return self._publish(words, data, pos, lf)
        match = _VERB.match(line)
        if match is None:
            return self._unknown(data, pos)
        start = pos + match.end()
        if match[3]:
            self._bare(match[3].upper())
            return -1 if self.stopped else lf + 1
        if start == lf:  # in nats-server the byte after the blanks belongs to the argument, whatever it is
            lf = data.find(10, lf + 1)
            if lf < 0:
                self._partial(data[pos:])
                return -1
        arg = data[start:lf]
        if arg.find(13, 1) >= 0:  # and a CR anywhere in the argument drops its last byte
            arg = arg[:-1]
        if match[2]:
            return self._json(match[2].upper(), arg, data, lf + 1)
        verb = match[1].upper()
        if verb == b"PUB" or verb == b"HPUB":
            return self._publish([verb, *_PUBLISH_FIELDS(arg)], data, pos, lf, len(arg))
        if len(arg) > self.max_control_line:
            return self._fail(Failure.CONTROL_LINE, Failure.CONTROL_LINE.value)
        if verb == b"-ERR":
            self._commands.error(arg)
        elif not self._interest(verb, arg):
            return -1
        return -1 if self.stopped else lf + 1

    def _over(self) -> bool:
        first, self._asked = not self._asked, True
        self.left = _UNASKED
        return self._commands.over(first=first)

    def _bare(self, verb: bytes) -> None:
        if verb == b"PING":
            self._commands.ping()
        elif verb == b"PONG":
            self._commands.pong()

    def _json(self, verb: bytes, arg: bytes, data: bytes, after: int) -> int:
        if len(arg) > self.max_control_line:
            return self._fail(Failure.CONTROL_LINE, Failure.CONTROL_LINE.value)
        if verb == b"INFO":
            self._commands.info(arg)
        else:
            self._commands.connect(arg)
        if self.stopped:
            return -1
        if self.paused:
            self.tail = data[after:]
            return -1
        return after

    def _interest(self, verb: bytes, arg: bytes) -> bool:
        """SUB and UNSUB; False when the arguments were wrong."""
        words = _FIELDS(arg)
        if verb == b"SUB":
            if len(words) == 2:
                self._commands.subscribe(words[0], b"", words[1])
            elif len(words) == 3:
                self._commands.subscribe(words[0], words[1], words[2])
            else:
                self._fail(Failure.VIOLATION, f"processSub Parse Error: {_quoted(arg)}")
                return False
        elif len(words) == 1:
            self._commands.unsubscribe(words[0], 0)
        elif len(words) == 2:
            self._commands.unsubscribe(words[0], parse_size(words[1]))
        else:
            self._fail(Failure.VIOLATION, f"processUnsub Parse Error: {_quoted(arg)}")
            return False
        return True

    def _publish(self, words: list[bytes], data: bytes, pos: int, lf: int, length: int = 0) -> int:
        """PUB and HPUB with `words` split already; `length` is that of the argument when it is still unchecked."""
        if length > self.max_control_line:
            return self._fail(Failure.CONTROL_LINE, Failure.CONTROL_LINE.value)
        commands = self._commands
        hpub = words[0] == b"HPUB"
        size, header, problem = self._sizes(words, hpub)
        if problem is not None:
            return self._fail(problem[0], problem[1])
        subject = words[1]
        if self.strict and not self._announced:
            commands.announced(subject)
        end = lf + 1 + size
        if end + 2 > len(data) or data[end] != 13 or data[end + 1] != 10:
            return self._unfinished(data, pos, end)
        self._announced = False
        reply = words[2] if len(words) == (5 if hpub else 4) else b""
        commands.message(subject, reply, header, data, lf + 1, end)
        return -1 if self.stopped else end + 2

    def _unfinished(self, data: bytes, pos: int, end: int) -> int:
        """The message at `pos`, whose payload ends at `end`, is incomplete, or what follows its payload is wrong."""
        present = len(data)
        if end < present and data[end] != 13:
            return self._unknown(data, end)
        if end + 1 < present:
            return self._unknown(data, end + 1)
        if not self.stopped:
            self.tail = data[pos:]
            self._wanted = end + 2 - pos
            self._announced = True
        return -1

    def _sizes(self, words: list[bytes], hpub: bool) -> tuple[int, int, tuple[Failure, str] | None]:
        """Payload size, header size (-1: none), and what is wrong with them or with the number of words."""
        size = parse_size(words[-1])
        header = parse_size(words[-2]) if hpub and len(words) > 2 else -1
        return size, header, self._wrong(words, hpub, size, header)

    def _wrong(self, words: list[bytes], hpub: bool, size: int, header: int) -> tuple[Failure, str] | None:
        name, fewest = ("processHeaderPub", 4) if hpub else ("processPub", 3)
        if hpub and not self._commands.headers:
            return Failure.VIOLATION, "message headers not supported"
        if not fewest <= len(words) <= fewest + 1:
            return Failure.VIOLATION, f"{name} Parse Error: {_quoted(b' '.join(words[1:]))}"
        if size < 0 or (hpub and header < 0):
            return Failure.VIOLATION, f"{name} Bad or Missing Size: {_quoted(b' '.join(words[1:]))}"
        if header > size:
            return Failure.VIOLATION, f"{name} Header Size larger then TotalSize: {_quoted(words[-2])}"
        if size > self.max_payload:
            return Failure.PAYLOAD, f"maximum payload exceeded: {size} vs {self.max_payload}"
        return None

    def _partial(self, rest: bytes) -> None:
        """`rest` ends within a control line: keep it, or say now what is already wrong with it."""
        if self.awaiting_connect and rest[0] not in _CONNECT_FIRST and not self._commands.early():
            self._fail(Failure.AUTHORIZATION, "authentication required")
            return
        head = rest[:8].upper()
        verb = next((verb for verb in _VERBS if head.startswith(verb) or verb.startswith(head)), None)
        if verb is None:
            self._unknown(rest, 0)
            return
        if len(rest) > len(verb):
            if verb in _BARE:  # the remainder of the line means nothing
                rest = rest[: len(verb)]
            elif verb not in _JSON and rest[len(verb)] not in _BLANKS:
                self._unknown(rest, len(verb))
                return
            else:
                arg = rest[len(verb) :].lstrip(b" \t")
                if len(arg) - arg.endswith(b"\r") > self.max_control_line:
                    self._fail(Failure.CONTROL_LINE, Failure.CONTROL_LINE.value)
                    return
                if not arg:
                    rest = verb + b" "
        if not self.stopped:
            self.tail = rest

    def _unknown(self, data: bytes, at: int) -> int:
        snippet = _quoted(data[at : at + 32])
        return self._fail(Failure.UNKNOWN, f"Client parser ERROR, i={at}: proto='{snippet}...'")

    def _fail(self, failure: Failure, detail: str) -> int:
        self.stopped = True
        self._commands.fail(failure, detail)
        return -1


def _quoted(text: bytes) -> str:
    return '"' + text.decode("ascii", "backslashreplace").translate(_ESCAPES) + '"'
