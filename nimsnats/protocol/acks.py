"""Plain acknowledgements in a row: publishes to the subjects of one consumer's deliveries, cut in C.

Owns the regular expressions that find such a run and its stream sequences. Each subject is used once, so that the usual
way costs every acknowledgement its own look-ups; a consumer that acknowledges what a fetch has brought says nothing
else. Like `rows`, this is about form only: who may acknowledge what is decided by the `Commands`.

    PUB $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending> 4 CRLF +ACK CRLF

Between servers it is the same behind `RMSG <account> ` instead of `PUB `.
"""

from __future__ import annotations

import re
from typing import Final

PREFIX: Final = b"$JS.ACK."
_TOKENS: Final = 9
_NUMBER: Final = rb"\d{1,20}"
_NUMBERS: Final = 5 * 21
ACK_DIGITS: Final = 20
"""The most that a number in an acknowledgement's subject has."""
_HIGHEST: Final = 2**64 - 1
_PAYLOADS: Final = {b"4": b"+ACK", b"0": b""}
"""Payloads that say no more than that the message is done, by their size."""


def ack_number(token: bytes) -> int:
    """The number that a token of an acknowledgement's subject is; -1 for what is none, or has more than 64 bits."""
    if token.isdigit() and len(token) <= ACK_DIGITS and (number := int(token)) <= _HIGHEST:
        return number
    return -1


class AckRun:
    """Acknowledgements of one consumer, `<stream>.<consumer>`, that are all of one size; `verb` is what each begins
    with."""

    __slots__ = ("_seqs", "_span", "consumer", "head", "least", "size", "verb")

    def __init__(self, consumer: bytes, digits: bytes, verb: bytes = b"PUB ") -> None:
        payload = _PAYLOADS[digits]
        self.consumer = consumer
        self.size = len(payload)
        self.verb = verb
        self.head: Final = verb + PREFIX + consumer + b"."
        numbers = rb"\.".join((_NUMBER, rb"(%b)" % _NUMBER, _NUMBER, _NUMBER, _NUMBER))
        line = rb"%b%b %b\r\n%b\r\n" % (re.escape(self.head), numbers, digits, re.escape(payload))
        self.least: Final = 2 * (len(self.head) + len(payload) + 14)
        """Fewer bytes are not worth the look."""
        self._span = re.compile(rb"(?:%b)++" % line.replace(b"(", b"(?:")).match
        self._seqs = re.compile(line).findall

    def take(self, data: bytes, pos: int) -> tuple[list[int], int]:
        """Stream sequences of the acknowledgements at `pos`, and the position behind the last. Those of 20 digits may
        have more than 64 bits: no message was delivered under them, so that nobody takes them for one."""
        found = self._span(data, pos)
        if found is None:
            return [], pos
        return list(map(int, self._seqs(data, pos, found.end()))), found.end()


class AckWatch:
    """Notices when a client acknowledges one consumer's messages in a row."""

    __slots__ = ("_consumer", "_kept", "_repeats")

    _ENOUGH: Final = 8
    _LATER: Final = 512
    _KEPT: Final = 32

    def __init__(self) -> None:
        self._kept: dict[tuple[bytes, bytes, bytes], AckRun] = {}
        self._repeats = 0
        self._consumer = b""

    def unwanted(self) -> None:
        """They have to go one by one; do not ask again too soon."""
        self._repeats = self._ENOUGH - self._LATER

    def seen(self, subject: bytes, digits: bytes, longest: int, verb: bytes = b"PUB ") -> AckRun | None:
        """A message to an acknowledgement subject has gone the usual way; the run to look for from now on, if any."""
        tokens = subject.split(b".")
        if len(tokens) != _TOKENS or digits not in _PAYLOADS:
            return None
        consumer = tokens[2] + b"." + tokens[3]
        if verb + consumer != self._consumer:
            self._consumer, self._repeats = verb + consumer, 0
        self._repeats += 1
        if self._repeats < self._ENOUGH:
            return None
        run = self._kept.get((verb, consumer, digits))
        if run is None and len(verb) + len(PREFIX) + len(consumer) + _NUMBERS + 4 <= longest:
            if len(self._kept) >= self._KEPT:
                self._kept.clear()
            run = self._kept[verb, consumer, digits] = AckRun(consumer, digits, verb)
        return run
