"""The errors of the forest, sorted by what a worker must do about them.

Owns: the exception types that cross a room boundary. The question each type answers is "what now?": `Poison` is
never going to work (terminate it), `Unavailable` will work later (try again for as long as it takes), `Refused` is a
definite no from the server (bounded retries), everything else is a bug of the code that raised it (bounded retries).
"""

from __future__ import annotations


class ForestError(Exception):
    """Base of everything the forest raises on purpose."""


class Poison(ForestError):
    """An item that no retry will make right: not JSON, a field missing, an unknown event.

    `reason` is a short stable word for metrics (`not-json`, `missing-field`, `unknown-event`); the text says more.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Unavailable(ForestError):
    """The server did not answer, or said "not now" (no responders, time-out, 5xx, stream full). Try again."""


class Refused(ForestError):
    """The server gave a definite no (a 4xx JetStream error, a payload above its limit). `code` is its error code."""

    def __init__(self, detail: str, code: int = 0) -> None:
        super().__init__(detail)
        self.code = code


class RevisionConflict(ForestError):
    """Optimistic locking failed: the key's last revision is not the expected one.

    `actual` is the revision found when the conflict was noticed, or None if it was not read.
    """

    def __init__(self, key: str, expected: int, actual: int | None = None) -> None:
        now = "" if actual is None else f", it is {actual}"
        super().__init__(f"{key}: expected revision {expected}{now}")
        self.key = key
        self.expected = expected
        self.actual = actual


class KeyMissing(ForestError):
    """The key is not in the soil (never written, or deleted)."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key}: not in the soil")
        self.key = key


class LeafNotCaptured(ForestError):
    """A leaf whose subject no stream takes over: dropping it would lose it, so it is not dropped."""

    def __init__(self, subject: str) -> None:
        super().__init__(
            f"{subject}: not captured by the wind's stream; declare it in the tree's or nim's `leaves`, "
            f"or add it to `wind_subjects`"
        )
        self.subject = subject


class BrokenPlugin(ForestError):
    """A tree or nim that cannot be used. `spec` names it as configured; `stage` is import, construct or start."""

    def __init__(self, spec: str, stage: str, reason: str) -> None:
        super().__init__(f"{spec}: {stage} failed: {reason}")
        self.spec = spec
        self.stage = stage
        self.reason = reason
