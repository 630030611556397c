"""The meta group: which streams every account has, on which members, and under which group names they are stored.

Owns the replicated catalogue. It opens no stream: `account.py` makes the node's streams equal to it. A stream's
configuration stands here and in the stream's own group, so that damage to one does not lose the stream. The nodes of
the cluster are the members of the meta group. Its name, `_meta_-<founder's instance>-<time>`, is the cluster's id: two
clusters never take each other's frames for their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from nimsnats.jetstream import errors, typed
from nimsnats.jetstream.census import Census
from nimsnats.jetstream.config import StreamConfig
from nimsnats.jetstream.kinds import META_GIVE_UP, META_STREAM_ADD, META_STREAM_REMOVE, META_STREAM_UPDATE
from nimsnats.jetstream.packing import pack, unpack
from nimsnats.raft.machine import BadEntry, Entry, Group, LogDamage, NotLeader, Snapshot, StoredBlock
from nimsnats.raft.refusals import Refusals
from nimsnats.runtime import Runtime

META_PREFIX: Final = "_meta_"
Key = tuple[str, str]
"""Account and stream name."""


@dataclass(slots=True)
class StreamRecord:
    """One stream in the catalogue; `config` in stored form, `created` in nanoseconds.

    `members` are to hold a replica each; none stands for the one node of a cluster of one. `founder` is the member that
    began the stream's group, empty once it has left: a member that comes back later must not begin it again.

    A group that is *born whole* has `founders`, three or more, who make up its first membership, and `founder` is the
    one of them that asks for votes first. Like the bootstrap configuration of etcd it is the same on every member and
    for ever, because one committed entry of the catalogue names it, and it never changes. Why a founder may begin, with
    nothing and as a voter: Raft asks of a voter only that it keeps what it said before (term, vote, entries), and a
    founder has said nothing yet. It begins at most once, for it had to lose its record to begin again, and then either

    - its disk is another one: so is its instance, hence its name, which is no founder's;
    - storage finds damage where the record was: a member that has lost what it said (`Core.impaired`) gives no vote;
    - it removed the record itself, because the stream had left it: it had applied the entry that says so, and that puts
      it into `left`, for ever. A starting node, whose catalogue may be older than what it did, begins nothing before it
      knows as much as then (`beginning.py`).

    Groups of two begin with one member: what the other one may do alone (`Core.seize`) rests on what both have had.
    Memory streams do, too: their members forget, and their record says only that they were there.
    """

    account: str
    name: str
    group: str
    created: int
    config: dict[str, Any]
    members: list[str] = field(default_factory=list[str])
    founder: str = ""
    founders: list[str] = field(default_factory=list[str])
    left: list[str] = field(default_factory=list[str])
    """Founders that have ceased to be members since, even if they are members again."""

    @property
    def key(self) -> Key:
        """Account and name."""
        return self.account, self.name

    @classmethod
    def of_entry(cls, fields: Any) -> StreamRecord:
        """Out of the list that `fields` made, whose bytes nobody vouches for. What a later version adds to the
        configuration is kept as it is. Raises BadEntry."""
        record = cls(*typed.row(fields, _HEAD, "it", (_NAMES, _NAMES)))
        _check_config(record.config, record.name)
        return record

    def fields(self) -> list[Any]:
        """A msgpack-able form."""
        head = [self.account, self.name, self.group, self.created, self.config, self.members, self.founder]
        return [*head, self.founders, self.left] if self.founders else head

    def follow(self, config: dict[str, Any], members: list[str]) -> None:
        """Have another configuration and other members."""
        self.config, self.members = config, members
        self.left += [member for member in self.founders if member not in members and member not in self.left]
        if self.founder not in members:
            self.founder = ""


class Meta:
    """The catalogue's state machine."""

    def __init__(self, runtime: Runtime, log: logging.Logger) -> None:
        self.streams: dict[Key, StreamRecord] = {}
        self.census = Census()
        """What these add up to."""
        self.removed: set[str] = set()
        """Groups of removed streams whose data may still be there."""
        self.given_up: tuple[str, tuple[str, ...]] | None = None
        """The cluster in whose favour this one was given up, and its members. Nothing can be entered any more."""
        self.refusals = Refusals()
        self.incomplete = False
        """Whether damage has taken entries: streams may be missing here that still have their group."""
        self.on_change: Callable[[Key], None] | None = None
        """Called when a stream was added, changed or removed."""
        self.on_leadership: Callable[[bool], None] | None = None
        self.led_since = 0
        """When this node began to lead, nanoseconds; 0 while it does not."""
        self.on_given_up: Callable[[], None] | None = None
        """Called when the cluster was given up."""
        self._loop = runtime.loop
        self._fence = runtime.fence
        self._log = log
        self._group: Group | None = None
        self._telling = False

    def opened(self, group: Group) -> None:
        """The group is open."""
        self._group = group

    @property
    def group(self) -> Group:
        """The group, once it is open."""
        assert self._group is not None
        return self._group

    # Changing the catalogue; each raises ApiError when it cannot be committed

    async def add(self, record: StreamRecord) -> None:
        """Enter a stream."""
        await self._change(META_STREAM_ADD, record.fields())

    async def update(self, key: Key, config: dict[str, Any], members: Sequence[str]) -> None:
        """Replace a stream's configuration and members."""
        await self._change(META_STREAM_UPDATE, [*key, config, list(members)])

    async def remove(self, key: Key) -> None:
        """Strike a stream out; its group is to be destroyed afterwards."""
        await self._change(META_STREAM_REMOVE, list(key))

    async def give_up(self, cluster: str, members: Sequence[str], groups: Sequence[str]) -> None:
        """Give the cluster up in favour of another one, together with the streams of these groups, which have never
        held anything. Raises ApiError if there is any other stream by then."""
        await self._change(META_GIVE_UP, [cluster, list(members), list(groups)])

    async def _change(self, kind: int, fields: list[Any]) -> None:
        assert self._group is not None
        done: asyncio.Future[None] = self._loop.create_future()
        try:
            self._group.propose(kind, pack(fields), done)
        except NotLeader as error:
            raise errors.CLUSTER_NOT_AVAIL() from error
        await done

    # StateMachine

    def apply(self, entry: Entry) -> None:
        """Apply one committed entry. Raises BadEntry."""
        change = _read(entry)
        done = cast("asyncio.Future[None] | None", entry.context)
        if self.given_up is not None or isinstance(change, _Surrender):
            self._apply_give_up(change, done)
            return
        if isinstance(change, StreamRecord):
            self.streams[change.key] = change
            self.census.count(change)
        elif isinstance(change, _Update):
            record = self.streams.get(change.key)
            if record is not None:
                record.follow(change.config, change.members)
                self.census.count(record)
        else:
            gone = self.streams.pop(change.key, None)
            if gone is not None:
                self.census.forget(gone)
                self.removed.add(gone.group)
        if self.on_change is not None:
            self._fence.run(self.on_change, change.key)
        if done is not None and not done.done():
            done.set_result(None)
            if not self._telling:
                self._telling = True
                self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        """The other members act upon what has changed: have them hear of it, of all changes of a turn at once."""
        self._telling = False
        self.group.tell()

    def _apply_give_up(self, change: _Change, done: asyncio.Future[None] | None) -> None:
        """The end of this catalogue, unless it holds more than the proposer knew; after the end nothing changes it."""
        fits = False
        if self.given_up is None and isinstance(change, _Surrender):
            fits = {record.group for record in self.streams.values()} <= set(change.groups)
            if fits:
                self.given_up = (change.cluster, tuple(change.members))
                if self.on_given_up is not None:
                    self._fence.run(self.on_given_up)
        if done is None or done.done():
            return
        if fits:
            done.set_result(None)
        else:
            done.set_exception(errors.CLUSTER_NOT_AVAIL())

    def refuse(self, context: object, error: Exception) -> None:
        """A local proposal was dropped."""
        done = cast("asyncio.Future[None]", context)
        if not done.done():
            done.set_exception(errors.STREAM_STORE_FAILED(err=error))

    def leadership(self, leading: bool, term: int) -> None:
        """This member starts or stops to lead; requests fail by themselves when it does not."""
        del term
        if self.on_leadership is not None:
            self.on_leadership(leading)

    def foresee(self, entry: Entry) -> None:
        """Entries of the catalogue tell nothing of others."""

    def damaged(self, damage: LogDamage) -> None:
        """Entries of the catalogue are lost."""
        self.incomplete = True
        self._log.error("JetStream catalogue: %d entries are damaged (%s)", len(damage.entries), damage.reason)

    def snapshot(self) -> Snapshot:
        """State as of the last applied entry."""
        records = [record.fields() for record in self.streams.values()]
        refused = [self.refusals.stored()] if self.refusals.count else []
        return Snapshot(pack([records, sorted(self.removed), self.given_up, *refused]))

    async def restore(self, state: bytes, blocks: Sequence[StoredBlock]) -> None:
        """Become the state of a snapshot. A stream that an earlier version let in and none can read is left out, and
        its group with all that it holds stays where it is."""
        assert not blocks
        # what is recorded may be older than the third and the fourth
        records, removed, *more = cast("list[Any]", unpack(state) if state else [[], []])
        given_up, refused = [*more, None, None][:2]
        before = list(self.streams)
        self.refusals.restore(refused)
        self.streams = {}
        self.census = Census()
        for fields in records:
            try:
                record = StreamRecord.of_entry(fields)
            except BadEntry as error:
                refusal = self.refusals.note(0, META_STREAM_ADD, f"a stream of the snapshot: {error}")
                self._log.error("JetStream catalogue: %s", refusal.reason)
            else:
                self.streams[record.key] = record
                self.census.count(record)
        self.removed = set(removed)
        self.given_up = (given_up[0], tuple(given_up[1])) if given_up is not None else None
        if self.given_up is not None and self.on_given_up is not None:
            self.on_given_up()
        if self.on_change is not None:
            for key in dict.fromkeys([*before, *self.streams]):
                self.on_change(key)


@dataclass(frozen=True, slots=True)
class _Update:
    """Another configuration and other members for a stream."""

    key: Key
    config: dict[str, Any]
    members: list[str]


@dataclass(frozen=True, slots=True)
class _Removal:
    """A stream is struck out."""

    key: Key


@dataclass(frozen=True, slots=True)
class _Surrender:
    """The cluster is given up."""

    cluster: str
    members: list[str]
    groups: list[str]


_Change = StreamRecord | _Update | _Removal | _Surrender
_NAMES: Final = typed.listed(typed.name)


def _read(entry: Entry) -> _Change:
    """What an entry says. Raises BadEntry."""
    fields = typed.opened(entry.data)
    if entry.kind == META_STREAM_ADD:
        return StreamRecord.of_entry(fields)
    if entry.kind == META_STREAM_UPDATE:
        account, name, config, members = typed.row(fields, (typed.text, typed.name, typed.anything, _NAMES), "it")
        _check_config(config, name)
        return _Update((account, name), config, members)
    if entry.kind == META_STREAM_REMOVE:
        account, name = typed.row(fields, (typed.text, typed.name), "it")
        return _Removal((account, name))
    if entry.kind == META_GIVE_UP:
        return _Surrender(*typed.row(fields, (typed.name, _NAMES, _NAMES), "it"))
    raise BadEntry("its kind is unknown")


_HEAD: Final[tuple[typed.Test, ...]] = (
    *(typed.text, typed.name, typed.name, typed.integer),
    *(typed.anything, _NAMES, typed.text),
)


def _check_config(config: Any, name: str) -> None:
    """Raises BadEntry when this is not the configuration of the stream."""
    if StreamConfig.of_entry(config).name != name or not typed.structure(config):
        raise BadEntry("its configuration is that of another stream")
