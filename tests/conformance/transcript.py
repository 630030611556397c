"""What a server answers to bytes, made comparable: framed, ids removed, unordered deliveries sorted.

`converse` sends a script, closes the sending side, and reads until the server has said everything and hung up. So a
transcript is complete without waiting for silence.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

_INFO = re.compile(rb"INFO (\{.*?\}) ?\r\n")
_LINE_LIMIT = 64 * 1024 * 1024


@dataclass
class Transcript:
    """Frames after the greeting; `reset` when the connection was cut and the end may be missing."""

    frames: list[bytes]
    reset: bool = False

    def agrees(self, other: Transcript) -> bool:
        """Whether both say the same, as far as a reset connection lets us know."""
        if not (self.reset or other.reset):
            return self.frames == other.frames
        shared = min(len(self.frames), len(other.frames))
        return self.frames[:shared] == other.frames[:shared]


async def converse(port: int, *pieces: bytes) -> Transcript:
    """Send `pieces` (each its own write) to a server on loopback; everything it says until it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LINE_LIMIT)
    received = bytearray(await reader.readuntil(b"\r\n"))
    reset = False
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(0)  # let the kernel see more than one write
        writer.write_eof()
        while data := await reader.read(65536):
            received += data
    except OSError:  # cut with input unread
        reset = True
    finally:
        writer.close()
    return Transcript(normalise(bytes(received)), reset)


def normalise(received: bytes) -> list[bytes]:
    """Frames without the greeting and PINGs, which come by the clock; the second INFO as a word; equal messages to
    several sids sorted by sid."""
    frames = [frame for frame in _frames(received) if frame != b"PING\r\n"]
    if frames and frames[0].startswith(b"INFO"):
        frames = frames[1:]
    frames = [_anonymous(frame) for frame in frames]
    # nats-server says this once for each read that a message spans
    bad = b"-ERR 'Invalid Publish Subject'\r\n"
    frames = [frame for i, frame in enumerate(frames) if not (i and frame == bad == frames[i - 1])]
    ordered: list[bytes] = []
    group: list[bytes] = []
    for frame in frames:
        if group and _identity(group[-1]) != _identity(frame):
            ordered.extend(sorted(group))
            group = []
        group.append(frame)
    return ordered + sorted(group)


def _anonymous(frame: bytes) -> bytes:
    if frame.startswith(b"INFO "):
        return b"INFO"
    if b"\r\nNATS/1.0 503\r\n" in frame:  # goes to any one subscription that matches the reply
        words = frame.split(b" ")
        words[2] = b"?"
        return b" ".join(words)
    return frame


def _identity(frame: bytes) -> Sequence[bytes]:
    """What two deliveries of one message have in common; other frames are only like themselves in place."""
    if not frame.startswith((b"MSG ", b"HMSG ")):
        return (b"other", frame)
    line, _, body = frame.partition(b"\r\n")
    words = line.split(b" ")
    return (words[1], *words[3:], body)


def _frames(received: bytes) -> list[bytes]:
    frames: list[bytes] = []
    position = 0
    while position < len(received):
        end = received.find(b"\r\n", position)
        if end < 0:
            frames.append(received[position:])
            break
        line = received[position:end]
        end += 2
        if line.startswith((b"MSG ", b"HMSG ")):
            end += int(line.split(b" ")[-1]) + 2
        frames.append(received[position:end])
        position = end
    return frames
