"""Acknowledgements in a row are cut together; whatever does not fit goes the usual way, in its place."""

from __future__ import annotations

import random

from nimsnats.protocol.parser import Parser
from tests.protocol.recorder import Recorder


def recorder(*, control_line: int = 4096) -> Recorder:
    made = Recorder()
    made.parser = Parser(made, 1024, control_line)
    return made


def ack(seq: int, *, consumer: bytes = b"Sx.C", payload: bytes = b"+ACK", tail: bytes = b"1795.0") -> bytes:
    return b"PUB $JS.ACK.%b.1.%d.%d.%b %d\r\n%b\r\n" % (consumer, seq, seq + 7, tail, len(payload), payload)


def told(made: Recorder) -> list[object]:
    """What arrived, the same for both ways through."""
    found: list[object] = []
    for event in made.events:
        if event[0] == "message":
            subject, body = event[1], event[4]
            assert isinstance(subject, bytes)
            tokens = subject.split(b".")
            plain = len(tokens) == 9 and body in (b"", b"+ACK") and all(map(bytes.isdigit, tokens[4:]))
            found.append((b".".join(tokens[2:4]), int(tokens[5])) if plain else event)
        else:
            found.append(event[1:3] if event[0] == "ack" else event)
    return found


def test_a_run_of_acknowledgements_is_taken_together() -> None:
    made = recorder()
    made.parser.feed(b"".join(ack(seq) for seq in range(1, 101)) + b"PING\r\n")
    assert made.in_columns > 90
    assert told(made) == [*((b"Sx.C", seq) for seq in range(1, 101)), ("ping",)]


def test_what_is_no_plain_acknowledgement_breaks_the_run_and_is_not_lost() -> None:
    others = (
        ack(11, payload=b"-NAK"),
        ack(11, payload=b"+NXT"),
        ack(11, payload=b""),
        ack(11, payload=b"+WPI"),
        ack(11, tail=b"1795.0 _INBOX.1"),
        ack(11, tail=b"1795"),
        ack(11, tail=b"1795.0.0"),
        ack(11, tail=b"1795.x"),
        ack(11, tail=b"1795." + b"9" * 30),
        ack(11, consumer=b"Sx.D"),
        ack(11, consumer=b"xS.C"),
        b"PUB a 1\r\nx\r\n",
        b"PING\r\n",
    )
    for other in others:
        text = b"".join(ack(seq) for seq in range(1, 41)) + other + b"".join(ack(seq) for seq in range(41, 81))
        together, alone = recorder(), recorder(control_line=120)  # too short for runs of acknowledgements
        together.parser.feed(text)
        alone.parser.feed(text)
        assert together.in_columns > 40 and alone.in_columns == 0
        assert told(together) == told(alone), other
        assert len(told(together)) == 81


def test_input_may_be_cut_anywhere() -> None:
    draw = random.Random(7)
    for _ in range(200):
        parts = [ack(seq, consumer=draw.choice((b"Sx.C", b"Sx.C", b"Sx.C", b"Sx.LONGER"))) for seq in range(60)]
        text = b"".join(parts) + b"PING\r\n"
        made = recorder()
        at = 0
        while at < len(text):
            size = draw.randrange(1, 900)
            made.parser.feed(text[at : at + size])
            at += size
        plain = recorder(control_line=120)
        plain.parser.feed(text)
        assert told(made) == told(plain)


def test_a_wrong_end_of_an_acknowledgement_is_an_error_as_ever() -> None:
    text = b"".join(ack(seq) for seq in range(30)) + ack(30)[:-2] + b"xx"
    together, alone = recorder(), recorder(control_line=120)
    together.parser.feed(text)
    alone.parser.feed(text)
    assert told(together)[-1] == told(alone)[-1]
    assert told(together)[-1][0] == "fail"  # type: ignore[index]
