"""The protocol between servers: RS+ and RS-, RMSG and HMSG, on top of the verbs that clients know.

Owns framing and arguments of these verbs; the hot loop is the client protocol's (`parser.Parser.parse`), because the
tail of an RMSG after its subject (or its queues) is byte for byte the tail of the MSG that it becomes. Like there, no
socket, clock or loop in here, and what a verb means is decided by the `RouteCommands`.

Interest and messages of leaf nodes that come with their origin cluster (LS+, LS-, LMSG) count like those of the peer
itself; verbs of gateways (A+, A-) mean nothing on a route.
"""

from __future__ import annotations

import re
from typing import Final, Protocol, TypeVar

from nimsnats.protocol.acks import PREFIX
from nimsnats.protocol.parser import LINES_KEPT, Commands, Failure, Line, Parser, Way, parse_size

L = TypeVar("L")

_VERBS: Final = (b"RS+", b"RS-", b"RMSG", b"HMSG", b"LS+", b"LS-", b"LMSG", b"A+", b"A-")
_VERB: Final = re.compile(rb"(?i:(RS\+|RS-|RMSG|HMSG|LS\+|LS-|LMSG|A\+|A-))[ \t]+")
_FIELDS: Final = re.compile(rb"[^ \t\r\n]+").findall
_LONGEST: Final = 5
"""Bytes from which on a line without its end shows which verb it is."""


class RouteCommands(Commands[L], Protocol[L]):
    """What the parser drives: one route. The client verbs of `Commands` come through as well."""

    def arrival(
        self, account: bytes, subject: bytes, queues: tuple[bytes, ...], headers: bool, reply: bytes
    ) -> Way[L] | None:
        """Where messages of a peer go when runs of them may be handed over; None: one by one."""
        ...

    def routed(
        self,
        account: bytes,
        subject: bytes,
        queues: tuple[bytes, ...],
        reply: bytes,
        header: int,
        body: bytes,
    ) -> None:
        """One message; `header` is the length of the header block that `body` begins with, 0 for none."""
        ...

    def interested(self, account: bytes, subject: bytes, queue: bytes, weight: int) -> None:
        """The peer has subscribers: RS+. `weight` counts members of `queue`; it replaces the one before."""
        ...

    def uninterested(self, account: bytes, subject: bytes, queue: bytes) -> None:
        """The peer has none any more: RS-."""
        ...


class RouteParser(Parser[L]):
    """Turns one peer's bytes into calls on `commands`."""

    __slots__ = ("_route",)

    def __init__(self, commands: RouteCommands[L], max_payload: int, max_control_line: int) -> None:
        super().__init__(commands, max_payload, max_control_line)
        self._route = commands
        self.strict = False

    def release(self) -> None:
        """See `Parser.release`."""
        super().release()
        del self._route

    def _resolve(self, line: bytes) -> Line[L] | None:
        """The way of an RMSG or HMSG in the usual form, kept if it has no reply; else None."""
        self._split = None
        verb = line[:5]
        headers = verb == b"HMSG "
        if not (headers or verb == b"RMSG ") or line[-1] != 13 or len(line) > self.max_control_line:
            return None
        words = line[:-1].split(b" ")
        if self.awaiting_connect or b"" in words or b"\t" in line or line.count(13) != 1:
            return None
        count = len(words) - headers
        reply = b""
        queues: tuple[bytes, ...] = ()
        if count == 5:
            reply = words[3]
        elif count >= 6 and words[3] == b"|":
            queues = tuple(words[4 : -1 - headers])
        elif count != 4:
            return None
        size = parse_size(words[-1])
        if size < 0 or size > self.max_payload or (headers and not 0 < parse_size(words[-2]) <= size):
            return None
        way = self._route.arrival(words[1], words[2], queues, headers, reply)
        if way is None:
            return None
        skip = 7 + len(words[1]) + len(words[2])
        if queues:
            skip += 2 + len(queues) + sum(map(len, queues))
        found = (*way, size, skip)
        if not reply:
            lines = self._route.lines
            if len(lines) >= LINES_KEPT:
                lines.clear()
            lines[line] = found
        return found

    def _line(self, data: bytes, pos: int, lf: int, line: bytes) -> int:
        match = _VERB.match(line)
        if match is None or self.awaiting_connect:
            return super()._line(data, pos, lf, line)
        if len(line) - match.end() > self.max_control_line:
            return self._fail(Failure.CONTROL_LINE, Failure.CONTROL_LINE.value)
        verb = match[1].upper()
        words: list[bytes] = _FIELDS(line, match.end())
        if verb.endswith(b"MSG"):
            return self._message(verb, words, data, pos, lf)
        if verb[:1] == b"A":
            return lf + 1
        if verb[:1] == b"L":
            words = words[1:]  # the cluster that the leaf node belongs to
        understood = self._interest_begins(words) if verb.endswith(b"+") else self._interest_ends(words)
        if not understood:
            what = "processRemoteSub" if verb.endswith(b"+") else "processRemoteUnsub"
            return self._fail(Failure.VIOLATION, f"{what} Parse Error: {_shown(line)}")
        return -1 if self.stopped else lf + 1

    def _interest_begins(self, words: list[bytes]) -> bool:
        if len(words) == 2:
            self._route.interested(words[0], words[1], b"", 1)
            return True
        weight = parse_size(words[3]) if len(words) == 4 else -1
        if weight < 0:
            return False
        self._route.interested(words[0], words[1], words[2], max(weight, 1))
        return True

    def _interest_ends(self, words: list[bytes]) -> bool:
        if len(words) not in (2, 3):
            return False
        self._route.uninterested(words[0], words[1], words[2] if len(words) == 3 else b"")
        return True

    def _message(self, verb: bytes, words: list[bytes], data: bytes, pos: int, lf: int) -> int:
        if verb == b"LMSG":
            words = words[1:]
        sizes = 1 if verb == b"RMSG" else 2
        count = len(words) - sizes
        if count < 2:
            return self._fail(Failure.VIOLATION, f"processRoutedMsgArgs Parse Error: {_shown(data[pos:lf])}")
        size = parse_size(words[-1])
        header = parse_size(words[-2]) if sizes == 2 else 0
        if size < 0 or not 0 <= header <= size:
            return self._fail(Failure.VIOLATION, f"processRoutedMsgArgs Bad or Missing Size: {_shown(data[pos:lf])}")
        if size > self.max_payload:
            return self._fail(Failure.PAYLOAD, f"maximum payload exceeded: {size} vs {self.max_payload}")
        reply = b""
        queues: tuple[bytes, ...] = ()
        if count == 3:
            reply = words[2]
        elif count > 3 and words[2] == b"+":
            reply, queues = words[3], tuple(words[4:-sizes])
        elif count > 3 and words[2] == b"|":
            queues = tuple(words[3:-sizes])
        elif count > 3:
            text = f"processRoutedMsgArgs Bad or Missing Reply Indicator: {_shown(words[2])}"
            return self._fail(Failure.VIOLATION, text)
        end = lf + 1 + size
        if end + 2 > len(data) or data[end] != 13 or data[end + 1] != 10:
            return self._unfinished(data, pos, end)
        self._announced = False
        if count == 2 and sizes == 1 and verb == b"RMSG" and words[1].startswith(PREFIX):
            run = self._ack_watch.seen(words[1], words[2], self.max_control_line, b"RMSG " + words[0] + b" ")
            self._rows = run or self._rows
        self._route.routed(words[0], words[1], queues, reply, header, data[lf + 1 : end])
        return -1 if self.stopped else end + 2

    def _partial(self, rest: bytes) -> None:
        head = rest[:_LONGEST].upper()
        word = head.split(b" ", 1)[0].split(b"\t", 1)[0]
        if self.awaiting_connect or not any(
            word == verb if len(word) < len(head) else verb.startswith(word) for verb in _VERBS
        ):
            super()._partial(rest)
        elif len(rest) - len(word) - rest.endswith(b"\r") - 1 > self.max_control_line:
            self._fail(Failure.CONTROL_LINE, Failure.CONTROL_LINE.value)
        else:
            self.tail = rest


def _shown(text: bytes) -> str:
    return ascii(text.decode("utf-8", "backslashreplace"))
