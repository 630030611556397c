"""The terminal that `nimsnats top` draws on: a screen of its own, keys as they are typed, resizes as they happen.

Owns the terminal's modes, and gives them back whatever happens.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Final, Self

from nimsnats.status.tables import clip

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_LINE_END: Final = "\x1b[K"
_REST: Final = "\x1b[J"


class Terminal:
    """A full screen between `with` and its end. Standard input and output have to be terminals."""

    def __enter__(self) -> Self:
        self._input = sys.stdin.fileno()
        self._modes = termios.tcgetattr(self._input)
        self._resized, self._wake = os.pipe()
        self._handler = signal.signal(signal.SIGWINCH, self._on_resize)
        tty.setcbreak(self._input)
        self._write(_ENTER)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write(_LEAVE)
        termios.tcsetattr(self._input, termios.TCSADRAIN, self._modes)
        signal.signal(signal.SIGWINCH, self._handler)
        os.close(self._resized)
        os.close(self._wake)

    def draw(self, lines: Sequence[str]) -> None:
        """Show as much of `lines` as there is room for."""
        width, height = os.get_terminal_size(sys.stdout.fileno())
        width, height = width or 80, height or 24  # some terminals do not know how large they are
        self._write(_HOME + "\n".join(clip(line, width) + _LINE_END for line in lines[:height]) + _REST)

    def wait(self, seconds: float) -> str:
        """The key that was typed, "resize", or "" when the time is over."""
        ready, _, _ = select.select([self._input, self._resized], [], [], seconds)
        if self._resized in ready:
            os.read(self._resized, 4096)
            return "resize"
        if not ready:
            return ""
        return os.read(self._input, 1).decode("ascii", "replace") or "q"  # the end of input is one, too

    def _on_resize(self, number: int, frame: FrameType | None) -> None:
        os.write(self._wake, b"w")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
