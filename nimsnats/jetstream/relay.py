"""Batches that clients publish at a replica which does not lead: the way to the leader, and of the answers back.

Owns the batches that are under way and their numbers. A batch travels as it will be logged, so the leader neither
parses nor acknowledges message by message: it stamps and proposes it, and answers once. What becomes of a batch whose
answer is lost with its leader nobody knows: it is forgotten, and the clients' own time-outs tell them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nimsnats.jetstream import errors
from nimsnats.jetstream.admission import Duplicate
from nimsnats.jetstream.batch import BadBatch, Batch
from nimsnats.jetstream.body import Nonsense, fields, headed, listed, text
from nimsnats.jetstream.content import Outcome, Publication
from nimsnats.jetstream.errors import ApiError
from nimsnats.raft.transport import node_of

if TYPE_CHECKING:
    from random import Random

    from nimsnats.jetstream.mail import Mail
    from nimsnats.jetstream.publish import Ingest

_BATCH: Final = "publish"
_ANSWER: Final = "published"
_STORED: Final = 0
_DECIDED: Final = 1
_REFUSED: Final = 2
_ELSEWHERE: Final = 3

Place = tuple[str, str, str]
"""Account, stream and group."""


class Passenger(Publication):
    """A batch on its way to the leader, as its sender remembers it."""

    __slots__ = ("number",)

    number: int

    def elsewhere(self) -> None:
        """It did not meet the leader, and surely was not proposed."""
        raise NotImplementedError


class _Guest(Publication):
    """A batch from another replica, as the leader remembers it."""

    __slots__ = ("_mail", "_number", "_sender")

    def __init__(self, batch: Batch, mail: Mail, sender: str, number: int) -> None:
        super().__init__(batch)
        self._mail = mail
        self._sender = sender
        self._number = number

    def stored(self, first: int) -> None:
        self._answer(_STORED, first)

    def decided(self, outcomes: Sequence[Outcome]) -> None:
        self._answer(_DECIDED, [_packed(outcome) for outcome in outcomes])

    def refused(self, error: Exception) -> None:
        self._answer(_REFUSED, str(error))

    def _answer(self, form: int, value: object) -> None:
        self._mail.tell(self._sender, _ANSWER, [self._number, form, value])


class Relay:
    """See the module. `find` gives the way into a stream that is in service on this node."""

    def __init__(self, mail: Mail, find: Callable[[Place], Ingest | None], random: Random) -> None:
        self._mail = mail
        self._find = find
        self._numbers = random.getrandbits(48)
        """Drawn, so that what became of a batch of an earlier process is not taken for news of one of this process."""
        self._travelling: dict[int, tuple[str, Passenger]] = {}
        mail.hear(_BATCH, self._on_batch)
        mail.hear(_ANSWER, self._on_answer)

    def send(self, leader: str, place: Place, passenger: Passenger, data: bytes) -> bool:
        """Send a batch to the node that leads a stream; False when there is no way there."""
        self._numbers += 1
        passenger.number = self._numbers
        if leader == node_of(self._mail.member) or not self._mail.tell(
            leader, _BATCH, [*place, passenger.number, data]
        ):
            return False
        self._travelling[passenger.number] = leader, passenger
        return True

    def reaches(self, leader: str) -> bool:
        """Whether there is a way to a node, so that it can answer still."""
        return self._mail.reaches(leader)

    def forget(self, passengers: Iterable[Passenger]) -> None:
        """Their answers will not come, or mean nothing any more."""
        for passenger in passengers:
            self._travelling.pop(passenger.number, None)

    def _on_batch(self, sender: str, body: Any) -> None:
        account, stream, group, number, data = fields(body, str, str, str, int, bytes)
        mail = self._mail
        ingest = self._find((account, stream, group))
        try:
            taken = ingest is not None and ingest.relayed(data, lambda batch: _Guest(batch, mail, sender, number))
        except BadBatch as error:
            mail.tell(sender, _ANSWER, [number, _REFUSED, str(error)])
            return
        if not taken:
            mail.tell(sender, _ANSWER, [number, _ELSEWHERE, None])

    def _on_answer(self, sender: str, body: Any) -> None:
        (number, form), value = headed(body, int, int)
        leader, passenger = self._travelling.get(number, ("", None))
        if passenger is None or node_of(sender) != leader:
            return
        tell = _verdict(passenger, form, value)
        del self._travelling[number]
        tell()


def _packed(outcome: Outcome) -> int | list[Any]:
    if isinstance(outcome, int):
        return outcome
    if isinstance(outcome, Duplicate):
        return [outcome.seq]
    return [outcome.code, outcome.err_code, outcome.description]


def _verdict(passenger: Passenger, form: int, value: Any) -> Callable[[], None]:
    """What an answer has to be told to the batch that it is about. Raises Nonsense."""
    if form == _STORED:
        (first,) = fields([value], int)
        return partial(passenger.stored, first)
    if form == _DECIDED:
        outcomes = [_unpacked(outcome) for outcome in listed(value)]
        if len(outcomes) != len(passenger.batch):
            raise Nonsense(f"{len(outcomes)} outcomes for {len(passenger.batch)} messages")
        return partial(passenger.decided, outcomes)
    if form == _ELSEWHERE:
        return passenger.elsewhere
    return partial(passenger.refused, errors.STREAM_STORE_FAILED(err=text(value)))


def _unpacked(value: Any) -> Outcome:
    if type(value) is int:
        return value
    found = listed(value)
    if len(found) == 1:
        return Duplicate(fields(found, int)[0])
    return ApiError(*fields(found, int, int, str))
