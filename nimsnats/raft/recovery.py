"""Brings a group back from storage: snapshot, blocks, then the log, and says what is lost.

Owns the replay. It yields to the loop while a long log is applied.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import Final

from nimsnats.raft.core import MEMBERSHIP, Core, HardState
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.home import Durable
from nimsnats.raft.machine import Entry, LogDamage, StoredBlock
from nimsnats.raft.membership import Membership
from nimsnats.storage.interface import Storage, StoredEntry, StoredGroup

_SOMEBODY: Final = "??"
"""A vote for nobody knows whom: it keeps a member from voting twice in that term, and is no loss by itself."""
_CHUNK_BYTES: Final = 4 * 1024 * 1024


async def bring_back(group: HostedGroup, stored: StoredGroup, founders: frozenset[str]) -> None:
    """Recover a file group. A group of one leads at the end; a member of several waits for the others' word.
    `founders` are those that the group began with, or who else is asked to let this node in.

    Raises Corrupt, StorageFull, StorageFailed.
    """
    host = group.host
    membership = Membership.decode(stored.members)
    loss = marked_loss(stored.vote)
    if loss is None and _only(membership, host.member):
        group.membership = replace(membership, voters=frozenset({host.member}), leaving=frozenset())
        replay = await recover(group, stored, host.storage, host.log)
        if replay.stopped_at is None:
            group.lead()
            if replay.lost_any:
                group.compact()  # so that the loss becomes part of the state, and is told once
                await host.synced()
            return
        core = group.follow(impaired=False, pledge=None)
        intact = await _take_log(core, stored, replay.stopped_at, host.storage)
        if intact and _only(core.membership, host.member):
            core.log.committed = core.log.durable
            group.resume()
            return
        # A loss behind a change of members is the others' to make good.
        if not intact:
            _mark_loss(group, stored)
    else:
        await _rejoin(group, stored, membership, loss, founders)
    await host.synced()


def _only(membership: Membership, member: str) -> bool:
    """Whether this node is the only member, perhaps under a name that it had before: nodes may be renamed, and
    without an instance id a node was never in a group with others."""
    if membership.learners or len(membership.voters) != 1:
        return False
    (name,) = membership.voters
    instance, recorded = member.rpartition("@")[2], name.rpartition("@")[2]
    return "@" not in name or "@" not in member or instance == recorded


async def _rejoin(
    group: HostedGroup,
    stored: StoredGroup,
    membership: Membership,
    loss: tuple[str, tuple[int, int] | None] | None,
    founders: frozenset[str],
) -> None:
    """Stand where this member of several stood; what is damaged, and all behind it, is forgotten."""
    host, storage = group.host, group.host.storage
    vote = stored.vote if loss is None else loss[0]
    state = HardState(stored.term, vote)
    group.membership = membership
    blocks = _Blocks(storage, stored)
    blank = group.machine.snapshot().state
    if stored.snapshot_index and stored.state:
        await group.machine.restore(stored.state, blocks.all())
    if stored.snapshot_index and (not stored.state or blocks.damaged):
        if stored.state and await _ends_alone(group, stored, membership, loss):
            await _go_on_alone(group, stored)
            return
        if blocks.damaged:
            await group.machine.restore(blank, ())
        _begin_anew(group, stored, founders)
        _mark_loss(group, stored, loss)
        return
    group.position(state, stored.snapshot_index, stored.snapshot_term, stored.snapshot_total)
    core = group.follow(loss is not None, loss[1] if loss is not None else None)
    intact = await _take_log(core, stored, stored.snapshot_index + 1, storage)
    group.recount()
    if not intact or stored.damage:
        if await _ends_alone(group, stored, membership, loss):
            await _go_on_alone(group, stored)
            return
        _mark_loss(group, stored, loss)
    elif loss is None and _only(core.membership, host.member):
        core.log.committed = core.log.durable
        group.resume()


async def _ends_alone(
    group: HostedGroup, stored: StoredGroup, membership: Membership, loss: tuple[str, tuple[int, int] | None] | None
) -> bool:
    """Whether the others of this group have left since the snapshot: then nobody can make good what is damaged."""
    first = stored.snapshot_index + 1
    while loss is None and first <= stored.last:
        entries = await group.host.storage.read_log(stored.id, first, stored.last, _CHUNK_BYTES)
        for found in entries:
            if found.kind == MEMBERSHIP and found.data is not None:
                membership = Membership.decode(found.data)
        if not entries:
            break
        first = entries[-1].index + 1
    return loss is None and _only(membership, group.host.member)


async def _go_on_alone(group: HostedGroup, stored: StoredGroup) -> None:
    """As a group of one does it: what is damaged is named, everything else is kept. The machine stands at the
    snapshot."""
    host = group.host
    group.membership = Membership(frozenset({host.member}))
    group.alone = True
    group.position(
        HardState(stored.term, stored.vote), stored.snapshot_index, stored.snapshot_term, stored.snapshot_total
    )
    await _replay(group, stored, Replay(group, stored, host.log, through=True))
    group.lead()
    group.compact()
    await host.synced()


def _begin_anew(group: HostedGroup, stored: StoredGroup, founders: frozenset[str]) -> None:
    """Nothing of the snapshot and the log can be used, and nothing of it may be met again: the leader may have its
    whole log yet, and feed this member from the first entry on, as it did then."""
    forget(group, stored)
    if len(founders) > 1 and group.host.member in founders:  # no entry tells of them
        group.membership = Membership(founders)
    storage = group.host.storage
    storage.remove_group(stored.id)
    number = storage.create_group(stored.name, stored.term, stored.vote, group.membership.encode())
    group.home = Durable(storage, number)


def forget(group: HostedGroup, stored: StoredGroup) -> None:
    """Nothing of what this member had can be used: it begins with nothing, and with its old term and vote."""
    loss = marked_loss(stored.vote)
    group.membership = Membership()
    group.position(HardState(stored.term, stored.vote if loss is None else loss[0]), 0, 0, 0)


def _mark_loss(group: HostedGroup, stored: StoredGroup, loss: tuple[str, tuple[int, int] | None] | None = None) -> None:
    """Note the loss durably, before anything is written that would hide it."""
    pledge = loss[1] if loss is not None else (stored.term, max(stored.last, stored.snapshot_index))
    core = group.core
    last, reason = core.log.last, "; ".join(stored.damage) or "checksum failed or missing"
    if not core.impaired:
        entries = list(core.log.entries)
        core = group.follow(impaired=True, pledge=pledge)
        for entry in entries:
            core.recover(entry)
        core.log.durable = core.log.flushed = core.log.last
        group.recount()
    group.host.log.error(
        "Group %s: entries behind %d are damaged here (%s); the other members are asked for them",
        stored.name,
        last,
        reason,
    )
    storage, number = group.host.storage, group.home.number
    storage.set_hard_state(number, *group.hard_state())
    storage.truncate(number, core.log.last + 1)


def marked_loss(vote: str) -> tuple[str, tuple[int, int] | None] | None:
    """The vote and pledge out of a vote that notes a loss (`HostedGroup.hard_state`); None when it does not."""
    if vote == "?":  # storage has found the group, but not its record
        return _SOMEBODY, None
    if not vote.startswith("!"):
        return None
    pledge, _, cast = vote[1:].partition("!")
    term, _, index = pledge.partition(",")
    return cast, (int(term), int(index)) if pledge else None


class _Blocks:
    """Blocks for `restore`, noticing which are damaged."""

    def __init__(self, storage: Storage, stored: StoredGroup) -> None:
        self._storage = storage
        self._stored = stored
        self.damaged: list[int] = []

    def all(self) -> list[StoredBlock]:
        return [StoredBlock(index, note, load=partial(self._load, index)) for index, note in self._stored.blocks]

    def _load(self, index: int) -> bytes | None:
        data = self._storage.read_block_now(self._stored.id, index)
        if data is None:
            self.damaged.append(index)
        return data


async def _take_log(core: Core, stored: StoredGroup, first: int, storage: Storage) -> bool:
    """Give the core its log from `first` on, up to the first entry that is damaged. Returns whether all is
    there."""
    while first <= stored.last:
        entries = await storage.read_log(stored.id, first, stored.last, _CHUNK_BYTES)
        for found in entries:
            if found.index != first or found.data is None:
                return False
            core.recover(Entry(found.index, found.term, found.kind, found.data, None, found.messages))
            first += 1
        if not entries:
            return False
        await asyncio.sleep(0)
    return True


async def recover(group: HostedGroup, stored: StoredGroup, storage: Storage, log: logging.Logger) -> Replay:
    """Make the machine of a group of one what it was, as far as it was one: up to its first change of members.

    Raises Corrupt, StorageFailed.
    """
    if stored.snapshot_index:
        blocks = [
            StoredBlock(index, note, load=partial(storage.read_block_now, stored.id, index))
            for index, note in stored.blocks
        ]
        await group.machine.restore(stored.state or b"", blocks)
    state = HardState(stored.term, stored.vote)
    group.position(state, stored.snapshot_index, stored.snapshot_term, stored.snapshot_total)
    replay = Replay(group, stored, log)
    await _replay(group, stored, replay)
    return replay


async def _replay(group: HostedGroup, stored: StoredGroup, replay: Replay) -> None:
    """Apply the log to the machine, which stands at the snapshot."""
    host, storage = group.host, group.host.storage
    if stored.damage:
        host.log.error("Group %s: %s", stored.name, "; ".join(stored.damage))
        group.damaged(LogDamage({}, "; ".join(stored.damage)))
        replay.lost_any = True
    while replay.next <= stored.last and replay.stopped_at is None:
        entries = await storage.read_log(stored.id, replay.next, stored.last, _CHUNK_BYTES)
        if not entries:
            break
        for found in entries:
            if not replay.looked_ahead and replay.misses(found):
                replay.looked_ahead = True
                await _look_ahead(group, stored, found.index, storage)
            replay.take(found)
            if replay.stopped_at is not None:
                break
        await asyncio.sleep(0)
    replay.finish()


async def _look_ahead(group: HostedGroup, stored: StoredGroup, first: int, storage: Storage) -> None:
    """Show the machine the whole entries behind a loss, as far as this was a group of one. Raises Corrupt,
    StorageFailed."""
    while first <= stored.last:
        entries = await storage.read_log(stored.id, first, stored.last, _CHUNK_BYTES)
        if not entries:
            return
        for found in entries:
            if found.data is None:
                continue
            if found.kind == MEMBERSHIP:
                return
            if found.kind > MEMBERSHIP:
                group.machine.foresee(Entry(found.index, found.term, found.kind, found.data, None, found.messages))
        first = entries[-1].index + 1
        await asyncio.sleep(0)


class Replay:
    """Applies a log in order, gathering runs of lost entries; up to the first change of members, or `through`."""

    def __init__(self, group: HostedGroup, stored: StoredGroup, log: logging.Logger, *, through: bool = False) -> None:
        self._through = through
        self.next = stored.snapshot_index + 1
        self.lost_any = False
        self.looked_ahead = through
        """Whether the machine was shown what is left behind the first loss."""
        self.stopped_at: int | None = None
        """Index of the first change of members: from there on, this was no group of one."""
        self._group = group
        self._stored = stored
        self._log = log
        self._lost: dict[int, int] = {}
        self._unknown: list[int] = []

    def misses(self, found: StoredEntry) -> bool:
        """Whether this entry is lost, or others before it."""
        return found.data is None or found.index > self.next

    def take(self, found: StoredEntry) -> None:
        """The next entry that storage still has a row of."""
        while self.next < found.index:
            self._lose(None)
        if found.data is None:
            self._lose(found)
            return
        if self._lost:
            self._name_unknown(found.total - found.messages)
            self._tell()
        if found.kind == MEMBERSHIP and not self._through:
            self.stopped_at = found.index
            return
        entry = Entry(found.index, found.term, found.kind, found.data, None, found.messages)
        self._group.replay(entry, found.total)
        self.next += 1

    def finish(self) -> None:
        """The log ends here."""
        if self.stopped_at is not None:
            return
        while self.next <= self._stored.last:
            self._lose(None)
        if self._lost:
            self._tell()

    def _lose(self, found: StoredEntry | None) -> None:
        index = self.next
        self.next += 1
        messages = self._stored.witnessed.get(index)
        if messages is None and found is not None and found.placeholder:
            messages = found.messages or None
        if messages is None:
            self._unknown.append(index)
        self._lost[index] = messages or 0

    def _name_unknown(self, total_before: int) -> None:
        """The entry behind a run of lost ones tells how many messages the run held in all."""
        if self._unknown:
            missing = total_before - self._group.total - sum(self._lost.values())
            self._lost[self._unknown[0]] += max(0, missing)

    def _tell(self) -> None:
        lost, self._lost, self._unknown, self.lost_any = self._lost, {}, [], True
        low, high, messages = min(lost), max(lost), sum(lost.values())
        self._log.error("Group %s lost log entries %d to %d with %d messages", self._stored.name, low, high, messages)
        self._group.damaged(LogDamage(lost, "checksum failed or missing"))
