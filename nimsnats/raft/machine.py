"""The face of Raft towards the state machines above it: entries in, snapshots out.

Owns the vocabulary (`Entry`, `Snapshot`, `StateMachine`, `Group`) that `jetstream` programs against. It never
touches the log, the disk or the network; `host.py` does that.

Rules of the game:

- Everything that changes replicated state is proposed, becomes durable, commits, and is then *applied* in log
  order on every member. `apply` is deterministic: it reads no clock, no random source, no local setting.
- An entry whose `kind` has `BLOCK` set carries message bytes. Its row in storage outlives the log: when the
  log is compacted the row becomes the state machine's *block*, until the machine names it in
  `Snapshot.dropped`. So payload bytes are written once.
- `Entry.context` is whatever the local proposer passed to `propose` (decoded messages, reply subjects). It is
  None on other members and during replay, so it may only save work or carry replies, never change the
  outcome.
- `apply` is total: an entry is read and checked completely before anything is changed, and what cannot be read raises
  `BadEntry`. The group takes that, and any other error, for a *refusal* of the entry: it is recorded in `refusals`,
  which are part of the snapshot, the proposer is told, and the group goes on. Because `apply` is deterministic, every
  member refuses the same entries with the same effects, now and on replay; that holds, too, for an error of our own
  in the middle of a change. What only this member does in `apply` (callbacks, deliveries, answers) must therefore not
  raise: it is fenced there. Errors that are this member's alone (`refusals.OF_THIS_NODE`) are no refusals.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from nimsnats.raft.refusals import Refusals

BLOCK: Final = 0x80
"""Bit in `Entry.kind`: the entry's data is a message block that the state machine owns after log
compaction."""


class NotLeader(Exception):
    """This member does not lead the group now; `hint` names the leader when it is known."""

    def __init__(self, hint: str = "") -> None:
        super().__init__(f"not the leader (leader: {hint or 'unknown'})")
        self.hint = hint


class ProposalDropped(Exception):
    """A local proposal that will not commit (disk full, leadership lost, group stopped). The reason is its
    text."""


class BadEntry(Exception):
    """An entry does not say what its kind has to say; nothing has been changed. The text is recorded by every member,
    so it holds nothing that differs between them."""


class EntryRefused(Exception):
    """A local proposal that was committed and then refused by every member. The reason is its text."""


@dataclass(slots=True)
class Entry:
    """One committed log entry."""

    index: int
    term: int
    kind: int
    data: bytes
    context: object | None = None
    messages: int = 0
    """Messages in the entry as the proposer counted them (`Group.propose`)."""


@dataclass(slots=True)
class BlockRecord:
    """What the machine wants remembered beside one of its blocks: an opaque, checksummed note (sequences,
    dead ones).

    Notes are stored twice, so they outlive a damaged page that takes the block itself.
    """

    index: int
    note: bytes


@dataclass(slots=True)
class Snapshot:
    """State as of the last applied entry, stored in one transaction with the compaction of the log.

    `state` is everything but message bytes. `blocks` are new or changed block notes since the previous
    snapshot; `dropped` are blocks that hold no live message any more.
    """

    state: bytes
    blocks: Sequence[BlockRecord] = field(default_factory=list[BlockRecord])
    dropped: Sequence[int] = field(default_factory=list[int])


class StoredBlock:
    """A block as read back at start. Its bytes are read when `data` is asked for, so that a stream larger
    than memory can be restored block by block; keep what you decode, not this object."""

    __slots__ = ("_data", "_load", "index", "note")

    def __init__(
        self, index: int, note: bytes, data: bytes | None = None, load: Callable[[], bytes | None] | None = None
    ) -> None:
        self.index = index
        self.note = note
        self._data = data
        self._load = load

    @property
    def data(self) -> bytes | None:
        """The block's bytes; None when they are damaged or missing (checksum failed)."""
        return self._data if self._load is None else self._load()


@dataclass(slots=True)
class LogDamage:
    """What recovery could not read back of a group: indexes of lost entries, and how many messages they held
    at most.

    `entries` maps a lost log index to the number of messages its entry carried (0 when it was not a message
    batch).
    """

    entries: dict[int, int]
    reason: str


class StateMachine(Protocol):
    """What a group replicates. All methods are called on the loop, in log order, and must not block it."""

    refusals: Refusals
    """Filled by the group, kept in the snapshot by the machine."""

    async def restore(self, state: bytes, blocks: Sequence[StoredBlock]) -> None:
        """Become the state of a snapshot. Called before any `apply`, at most once at start (never if there is
        none); see below for later.

        `state` is empty when there was a snapshot but both its copies are damaged: keep what the blocks can
        tell; a call of `damaged` follows.

        In a group of several members it may also come later, on a follower that was away for too long: forget
        everything and become this state. Only `restore` and `apply` decide what a member holds.

        The one method that may take its time: it gives way to the rest of the node (other groups have a leader
        to hear) between blocks. Nothing else is asked of the machine before it returns.
        """
        ...

    def foresee(self, entry: Entry) -> None:
        """An entry behind a loss, still unapplied, that is whole: it may tell what was lost. Called in a group of
        one before the first `damaged`, for all of them; each is applied in its turn."""
        ...

    def damaged(self, damage: LogDamage) -> None:
        """Recovery lost log entries after what `restore`/`apply` have shown so far; never reuse their
        sequences."""
        ...

    def apply(self, entry: Entry) -> Iterator[None] | None:
        """Apply one committed entry. Raises BadEntry before anything is changed; see the rules above.

        What takes long is done in steps of a few milliseconds: then this returns the rest of them. They are taken one a
        turn of the loop, so that others have theirs; meanwhile nothing else is applied and no snapshot is taken, so
        that every later entry finds the whole change done, on every member. An error in one of them is one of the
        entry's. The machine may be given up between two steps."""
        ...

    def refuse(self, context: object, error: Exception) -> None:
        """A local proposal with this context was dropped and has changed nothing, or (EntryRefused) will never be
        applied."""
        ...

    def leadership(self, leading: bool, term: int) -> None:
        """This member became, or stopped being, the leader that is ready to serve."""
        ...

    def snapshot(self) -> Snapshot:
        """State as of the last applied entry."""
        ...


@dataclass(frozen=True, slots=True)
class MemberProgress:
    """One other member, as the leader sees it."""

    member: str
    """`node@instance` (`transport.node_of` gives the node)."""
    match: int
    """Highest log index known to be durable there."""
    current: bool
    """It has everything that is committed."""
    active: float
    """Seconds since it was last heard of; infinite when never."""
    lag: int
    """Entries it lacks."""
    learner: bool


class TransferFailed(Exception):
    """Leadership stays where it is: no other voter answered in time, or there is none."""


class Group(Protocol):
    """A handle on one Raft group of this node.

    Members are named `node@instance`; `leader` and `NotLeader.hint` are names of nodes.
    """

    on_leader: Callable[[], None] | None
    """Called when another member is known to lead than before, or none (to be set by the owner)."""

    @property
    def name(self) -> str: ...

    @property
    def leading(self) -> bool: ...

    @property
    def accepting(self) -> bool:
        """Whether `propose` would take an entry now: this member leads and is not handing over."""
        ...

    @property
    def leader(self) -> str: ...

    @property
    def alone(self) -> bool:
        """Whether this is a group of one: nobody else has what it stores."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """The voters, as of the newest membership in the log; sorted."""
        ...

    @property
    def learners(self) -> tuple[str, ...]:
        """Members that receive everything and do not count yet; sorted."""
        ...

    @property
    def attached(self) -> tuple[str, ...]:
        """Voters and learners of the newest membership and, while that is not committed, of the one before it: it may
        yet be what counts. Who is not among them is not needed any more. Sorted."""
        ...

    @property
    def leaving(self) -> tuple[str, ...]:
        """Voters that know that they are about to be removed; sorted."""
        ...

    @property
    def impaired(self) -> bool:
        """Whether this member has lost entries and waits for the others to bring them back."""
        ...

    @property
    def current(self) -> bool:
        """Whether this member leads, or follows a leader and has applied everything that its log ever held: it knows
        no less than before its last start."""
        ...

    def progress(self) -> list[MemberProgress]:
        """Every other member, sorted by name; empty unless this one leads."""
        ...

    async def change_members(self, members: Sequence[str]) -> None:
        """Bring the group to exactly these voters, a step at a time: new ones are learners until they have
        caught up, and leave comes after join. Returns when the last step is committed; calling it again after
        any failure goes on from where the group stands.

        A leader that is not among `members` hands over before the step that removes it and raises NotLeader:
        the next leader has to be asked. Raises NotLeader (also when leadership is lost meanwhile), ValueError
        for no members. Cancel it to stop between two steps.
        """
        ...

    async def transfer(self, to: str = "") -> str:
        """Hand leadership to a voter, the most current one when none is named; returns the new leader's node
        name once this member follows it. Raises NotLeader, TransferFailed.
        """
        ...

    def wake(self) -> None:
        """Have a leader that has fallen silent speak to everybody: a member does not know that it is one."""
        ...

    def campaign(self) -> None:
        """Ask for votes at once. One founder of a new group of several does, so that it has a leader soon."""
        ...

    def tell(self) -> None:
        """Have the other members hear at once of what is committed; else the next heartbeat or entry tells them."""
        ...

    @property
    def term(self) -> int: ...

    @property
    def applied(self) -> int: ...

    @property
    def committed(self) -> int: ...

    @property
    def announced(self) -> int: ...

    def propose(self, kind: int, data: bytes, context: object | None = None, messages: int = 0) -> None:
        """Queue an entry; it is durable, committed and applied later, or `StateMachine.refuse` gets
        `context`.

        `messages` is the number of messages in a block entry, so that damage can be named in messages.
        Raises NotLeader at once when this member cannot propose.
        """
        ...

    def read_block(self, index: int) -> Awaitable[bytes]:
        """The bytes of a block, checksummed. Raises `nimsnats.storage.Corrupt` when they are damaged."""
        ...

    def rewrite_block(self, index: int, data: bytes) -> Awaitable[None]:
        """Replace a compacted block's bytes with others that hold at least what its note names; done once they are
        durable. Raises `nimsnats.storage.StorageError`: then the old ones stay."""
        ...
