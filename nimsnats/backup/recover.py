"""An operator's last resort: a stopped node becomes the only member of every group that it holds.

Owns the look beforehand, which changes nothing, and the one transaction that does it. What happens to a single group's
record is `nimsnats.raft.sole`'s.

Why a lost node that comes back all the same cannot do harm. The directory becomes another instance, so that this node
is a member that the lost one has never heard of: no vote, entry or answer passes between the two, the registry shows
the lost one no member of its pair, and since it was started anew it has not been in sync with anybody; of two, or as
one of three, it decides nothing. The cluster gets another name, too, so that neither joins the other: both hold data,
they stay apart, and both say so until the operator removes the data of one. Streams that are not here are struck out
of the catalogue: nobody will ever have them, and whoever makes them anew, as the forest does, must be able to.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nimsnats.backup.datadir import STREAM, Replay, Unreadable
from nimsnats.identity import nuid
from nimsnats.jetstream.formation import cluster_id
from nimsnats.jetstream.kinds import META_STREAM_ADD, META_STREAM_REMOVE, META_STREAM_UPDATE
from nimsnats.jetstream.meta import META_PREFIX, Meta, StreamRecord
from nimsnats.jetstream.packing import pack
from nimsnats.jetstream.stream import Stream
from nimsnats.raft.machine import Entry
from nimsnats.raft.membership import Membership
from nimsnats.raft.recovery import marked_loss
from nimsnats.raft.refusals import OF_THIS_NODE, refused
from nimsnats.raft.sole import StoredLog, make_sole, read_log
from nimsnats.raft.transport import member_name, node_of
from nimsnats.runtime import Runtime
from nimsnats.storage import StoredGroup, open_database
from nimsnats.storage.audit import auditing
from nimsnats.storage.directory import Identity, peek
from nimsnats.storage.errors import Corrupt, StorageError

_NO_MEMBERS: Final = Membership()


@dataclass(slots=True)
class Survey:
    """What a directory holds. `groups` and `absent` are lines for people, `missing` the nodes that vote with this
    one, `pairs` whether none of those groups has more than two voters."""

    identity: Identity
    groups: list[str] = field(default_factory=list[str])
    absent: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])
    missing: set[str] = field(default_factory=set[str])
    pairs: bool = True

    @property
    def needed(self) -> bool:
        """Whether there is a group that waits for others."""
        return bool(self.missing)


async def survey(path: Path, runtime: Runtime) -> Survey:
    """Look at the data directory of a node that does not run, and change nothing. Raises StorageError."""
    with auditing(path) as audit:
        identity = peek(path) or audit.identity()
        if identity is None:
            raise Corrupt(f"{path} has lost its identity (all copies)")
        found = Survey(identity)
        found.problems += audit.damage()
        replay = Replay(audit, runtime, found.problems)
        held: set[str] = set()
        for group in audit.groups():
            if group.name.startswith(META_PREFIX):
                await _look_at_catalogue(found, replay, group)
            elif group.name.startswith(STREAM):
                held.add(group.name)
                await _look_at_stream(found, replay, group)
        for record in replay.catalogue.streams.values() if replay.catalogue is not None else ():
            if record.group not in held:
                found.absent.append(_absent(record))
    found.problems = list(dict.fromkeys(found.problems))
    return found


async def _look_at_catalogue(found: Survey, replay: Replay, group: StoredGroup) -> None:
    try:
        meta = await replay.meta(group)
    except Unreadable as error:
        found.problems.append(f"group {group.name}: {error}")
        what = "unreadable in part; its streams are found by what they hold themselves"
    else:
        if meta.given_up is not None:
            raise StorageError(
                "this node's cluster was given up for another one, and holds nothing: start the node, it joins that one"
            )
        what = f"{len(meta.streams)} streams"
    found.groups.append(f"catalogue: {what}; {_raft(found, replay, group)}")


async def _look_at_stream(found: Survey, replay: Replay, group: StoredGroup) -> None:
    stream = await replay.stream(group)
    if stream is None:
        found.groups.append(f"{group.name}: nothing that can be read; {_raft(found, replay, group)}")
        return
    found.groups.append(f"stream {stream.name}: {_contents(stream)}; {_raft(found, replay, group)}")


def _contents(stream: Stream) -> str:
    store = stream.store
    return (
        f"{store.messages} messages, sequences {store.first_seq} to {store.last_seq}, {len(stream.consumers)} consumers"
    )


def _raft(found: Survey, replay: Replay, group: StoredGroup) -> str:
    """Where this node stands in a group, and who else is in it."""
    members = replay.members.get(group.name, _NO_MEMBERS)
    mine = {member for member in members.everyone if member.rpartition("@")[2] == found.identity.instance}
    others = sorted(map(node_of, members.voters - mine))
    found.missing.update(others)
    found.pairs = found.pairs and len(members.voters) <= 2
    text = f"term {group.term}, last entry {max(group.last, group.snapshot_index)}"
    text += f", shared with {', '.join(others)}" if others else ", held by this node alone"
    if not mine & members.voters:
        text += "; NOT A VOTING MEMBER: it may lack much, or be old"
    loss = marked_loss(group.vote)
    if loss is not None:
        text += "; DAMAGED: what is behind that entry was lost here"
    return text


def _absent(record: StreamRecord) -> str:
    if record.config.get("storage") == "memory":
        return f"stream {record.name}: in memory, gone with the processes"
    members = ", ".join(sorted(map(node_of, record.members))) or "nobody"
    return f"stream {record.name}: not here, only on {members}: lost, and forgotten"


async def make_alone(path: Path, runtime: Runtime, log: logging.Logger) -> str:
    """Make the node of a data directory the only member of all its groups, in one transaction; its new name as a
    member. Raises StorageError: nothing has changed then, except what a start would have repaired."""
    database = await open_database(path, runtime, log=log, scrub_rate=0)
    try:
        instance = nuid(runtime.random)
        member = member_name(database.identity.node, instance)
        names = database.group_names()
        catalogues = [name for name in names if name.startswith(META_PREFIX)]
        streams = [await read_log(database, name) for name in names if name.startswith(STREAM)]
        catalogue = await read_log(database, catalogues[-1], keep=True) if catalogues else None
        meta = await _restored(catalogue, runtime, log) if catalogue is not None else None
        # Nothing is awaited from here on: all of it is one transaction.
        for stream in streams:
            if stream.empty:
                database.remove_group(stream.group.id)
            else:
                make_sole(database, stream, member, [])
        if catalogue is not None and meta is not None:
            held = {stream.group.name for stream in streams if not stream.empty}
            mine = [record for record in meta.streams.values() if record.group in held]
            kept = [(META_STREAM_UPDATE, pack([*record.key, record.config, [member]])) for record in mine]
            gone = [record for record in meta.streams.values() if record.group not in held]
            struck = [(META_STREAM_REMOVE, pack(list(record.key))) for record in gone]
            make_sole(database, catalogue, member, kept + struck)
            database.rename_group(catalogue.group.id, cluster_id(instance, runtime.time_ns()))
        await database.change_instance(instance)
    finally:
        await database.close()
    return member


async def _restored(stored: StoredLog, runtime: Runtime, log: logging.Logger) -> Meta:
    """The catalogue as far as it can be read: of what is damaged the streams themselves tell at the next start."""
    meta = Meta(runtime, log)
    if stored.group.state is not None:
        await meta.restore(stored.group.state, [])
    for entry in stored.entries:
        assert entry.data is not None
        if entry.kind >= META_STREAM_ADD:
            read = Entry(entry.index, entry.term, entry.kind, entry.data)
            try:
                meta.apply(read)
            except OF_THIS_NODE:
                raise
            except Exception as error:  # a node refuses it likewise, and goes on
                reason = refused(meta, read, error).reason
                log.error("JetStream catalogue: entry %d is refused: %s", entry.index, reason)
    return meta
