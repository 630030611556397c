"""Snapshots on their way from a leader to a member that needs more than the log.

Owns both ends. The member asks, the leader answers: first the manifest (the machine's state and the notes of
all blocks) in chunks, then the blocks, as many to an answer as fit. Blocks go into a staged group in storage,
which takes the place of the member's own in one transaction at the end; a transfer that is interrupted, or
meets a newer snapshot, goes on with the blocks it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from nimsnats.raft.home import STAGED_MARK, Durable
from nimsnats.raft.machine import BLOCK, StoredBlock
from nimsnats.raft.message import Message
from nimsnats.raft.wire import MAX_MANIFEST, Block, Fetch, Malformed, Piece, pack_values, unpack_values
from nimsnats.storage.errors import StorageError
from nimsnats.storage.interface import CompactionPoint, Storage, StoredGroup

if TYPE_CHECKING:
    from nimsnats.raft.replica import Replica

_CHUNK_BYTES: Final = 1 << 20
_BLOCKS_ASKED: Final = 64
_PATIENCE: Final = 2.0
_TRIES: Final = 5
_HOLD_SECONDS: Final = 10.0
"""For so long after the last question the leader takes no newer snapshot."""


class Source:
    """The leader's end: answers questions about its stored snapshot."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._asked = float("-inf")
        self._answering: set[str] = set()
        self._manifest: tuple[int, int, bytes] = (0, 0, b"")

    def busy(self) -> bool:
        """Whether somebody is fetching."""
        return self._replica.group.host.runtime.monotonic() - self._asked < _HOLD_SECONDS

    def ask(self, sender: str, fetch: Fetch) -> None:
        """A member asks; one question at a time each."""
        replica = self._replica
        if sender not in replica.core.membership.everyone or replica.group.alone:
            replica.group.host.peers.refuse(sender, "snapshot asked for by a stranger", f"group {replica.group.name}")
        elif sender not in self._answering:
            self._answering.add(sender)
            replica.spawn(self._answer(sender, fetch), "answer")

    async def _answer(self, sender: str, fetch: Fetch) -> None:
        replica, group = self._replica, self._replica.group
        try:
            piece = Piece(fetch.request, 0)
            log = replica.core.log
            if group.compacting:
                with suppress(StorageError):  # a snapshot that the disk refuses leaves the one before in its place
                    await group.host.synced()
            if (fetch.index, fetch.term) == (log.snapshot, log.snapshot_term) and not group.compacting:
                self._asked = group.host.runtime.monotonic()
                manifest = await self._load(fetch.index, fetch.term)
                if manifest and not fetch.blocks:
                    data = manifest[fetch.offset : fetch.offset + _CHUNK_BYTES]
                    piece = Piece(fetch.request, len(manifest), data)
                elif manifest:
                    piece = Piece(fetch.request, len(manifest), blocks=await self._blocks(fetch.blocks))
            replica.post(sender, piece)
            if log.snapshot > fetch.index and replica.core.leading is not None:
                replica.core.leading.offer_again(sender)
                replica.after()
        finally:
            self._answering.discard(sender)

    async def _load(self, index: int, term: int) -> bytes:
        """The manifest of the snapshot at `index`; empty when it cannot be had."""
        if self._manifest[:2] == (index, term):
            return self._manifest[2]
        group = self._replica.group
        home = group.home
        if isinstance(home, Durable):
            stored = await home.storage.load_group(group.name)
            if stored is None or stored.state is None or stored.snapshot_index != index:
                return b""
            fields = [stored.state, stored.snapshot_total, stored.blocks]
        else:
            fields = [home.state, home.total, sorted(home.notes.items())]
        packed = pack_values(fields)
        self._manifest = (index, term, packed)
        return packed

    async def _blocks(self, wanted: Sequence[int]) -> list[Block]:
        """As many of the wanted blocks as fit; none when the first is damaged here."""
        group = self._replica.group
        home = group.home
        blocks: list[Block] = []
        size = 0
        for index in wanted:
            block = await read_block(home.storage, home.number, index) if isinstance(home, Durable) else None
            if not isinstance(home, Durable):
                block = home.blocks.get(index)
            if block is None:
                group.host.log.error("Group %s: block %d cannot be given to others: it is damaged", group.name, index)
                self._somebody_else()
                break
            blocks.append(block)
            size += len(block[5])
            if size >= _CHUNK_BYTES:
                break
        return blocks

    def _somebody_else(self) -> None:
        """A leader that cannot give what it leads should not lead."""
        leading, core = self._replica.core.leading, self._replica.core
        if leading is not None and not leading.transferring:
            others = [(known.match, name) for name, known in leading.members.items() if name in core.membership.voters]
            if others:
                leading.transfer(max(others)[1])
                self._replica.after()


async def read_block(storage: Storage, number: int, index: int) -> Block | None:
    """A block with everything that belongs to it; None when it is damaged or not there."""
    for found in await storage.read_log(number, index, index, 1):
        if found.data is not None:
            return found.index, found.term, found.kind, found.messages, found.total, found.data
    return None


class Interrupted(Exception):
    """This snapshot cannot be fetched now: the leader offers another, or has gone."""


@dataclass(slots=True)
class Manifest:
    """What the leader has said its snapshot consists of."""

    state: bytes
    total: int
    notes: list[tuple[int, bytes]]


class Download:
    """The member's end."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._running = False
        self._request = replica.group.host.runtime.random.getrandbits(48)
        """Drawn, so that an answer to an earlier process, about another snapshot, is not taken for ours."""
        self._answer: asyncio.Future[Piece] | None = None
        self._sender = ""
        self._staged = 0
        """Number of the staged group; 0 for none."""
        self._here: dict[int, tuple[bytes, Block | None]] = {}
        """Blocks that are staged, with the note under which they were; with their bytes in a memory group."""

    def take(self, sender: str, piece: Piece) -> None:
        """An answer has come."""
        waiting = self._answer
        if waiting is not None and not waiting.done() and sender == self._sender and piece.request == self._request:
            waiting.set_result(piece)

    def begin(self, offer: Message) -> None:
        """Fetch what is offered, unless something is being fetched: two would take each other's answers."""
        if not self._running:
            self._running = True
            self._replica.spawn(self._run(offer), "download")

    async def _run(self, offer: Message) -> None:
        """Fetch the offered snapshot and become it; or leave it, so that the leader offers again."""
        replica, group = self._replica, self._replica.group
        try:
            manifest = await self._fetch_manifest(offer)
            await self._reuse(manifest)
            await self._fetch_blocks(offer, manifest)
            await self._take_over(offer, manifest)
        except (Interrupted, Malformed, StorageError) as error:
            level = logging.DEBUG if isinstance(error, Interrupted) else logging.WARNING
            group.host.log.log(level, "Group %s: no snapshot from %s: %s", group.name, offer.sender, error)
            if isinstance(error, StorageError):
                self._begin_anew()
            if replica.core.install is offer:
                replica.core.install = None
        finally:
            self._running = False
        if not group.stopped:
            replica.after()

    def _begin_anew(self) -> None:
        """The disk has refused, perhaps some of the blocks that were staged: nothing of them counts."""
        if self._staged:
            self._replica.group.host.storage.remove_group(self._staged)
            self._staged = 0
        self._here.clear()

    async def _ask(self, offer: Message, offset: int = 0, blocks: Sequence[int] = ()) -> Piece:
        replica, runtime = self._replica, self._replica.group.host.runtime
        self._sender = offer.sender
        for _ in range(_TRIES):
            if replica.core.install is not offer or replica.core.leader != offer.sender:
                raise Interrupted("it is not offered any more")
            self._request += 1
            self._answer = runtime.loop.create_future()
            replica.post(offer.sender, Fetch(offer.index, offer.log_term, self._request, offset, blocks))
            timer = runtime.call_later(_PATIENCE, _give_up, self._answer)
            piece = await self._answer
            timer.cancel()
            if piece.request != 0:
                if not piece.size or (blocks and not piece.blocks):
                    raise Interrupted("it is not there any more")
                return piece
        raise Interrupted("no answer")

    async def _fetch_manifest(self, offer: Message) -> Manifest:
        content = bytearray()
        size = 1
        while len(content) < size:
            piece = await self._ask(offer, len(content))
            size = piece.size
            if not piece.data:
                raise Malformed("an empty part of a manifest")
            if size > MAX_MANIFEST:
                raise Malformed(f"a manifest of {size} bytes")
            content += piece.data
        return _manifest(bytes(content), offer.index)

    async def _reuse(self, manifest: Manifest) -> None:
        """Take the undamaged blocks of our own last snapshot that have the leader's notes. Under another note its bytes
        may hold more: a machine rewrites blocks, and takes other blocks' contents into one."""
        group = self._replica.group
        home = group.home
        notes = dict(manifest.notes)
        for index in [index for index, (note, _) in self._here.items() if notes.get(index, note) != note]:
            del self._here[index]  # staged for an earlier snapshot; its bytes are replaced
        wanted = notes.keys() - self._here.keys()
        if isinstance(home, Durable):
            await self._open_staging(home)
            stored: StoredGroup | None = await home.storage.load_group(group.name)
            own = dict(stored.blocks) if stored is not None else {}
            for index in sorted(index for index in wanted if own.get(index) == notes[index]):
                block = await read_block(home.storage, home.number, index)
                if block is not None:
                    self._stage(block, notes[index])
                    await self._replica.group.host.synced()  # asked for in the same turn, or a refusal goes unnoticed
        else:
            for index in wanted:
                if home.notes.get(index) == notes[index] and index in home.blocks:
                    self._here[index] = notes[index], home.blocks[index]

    async def _open_staging(self, home: Durable) -> None:
        if not self._staged:
            name = STAGED_MARK + self._replica.group.name
            old = await home.storage.load_group(name)
            if old is not None:
                home.storage.remove_group(old.id)
            self._staged = home.storage.create_group(name, 0, "", b"")
            await self._replica.group.host.synced()

    async def _fetch_blocks(self, offer: Message, manifest: Manifest) -> None:
        notes = dict(manifest.notes)
        missing = [index for index in notes if index not in self._here]
        while missing:
            asked = missing[:_BLOCKS_ASKED]
            piece = await self._ask(offer, blocks=asked)
            for block, index in zip(piece.blocks, asked, strict=False):
                if block[0] != index or not block[2] & BLOCK:
                    raise Malformed("another block than was asked for")
                self._stage(block, notes[index])
            await self._replica.group.host.synced()
            missing = missing[len(piece.blocks) :]

    def _stage(self, block: Block, note: bytes) -> None:
        if self._staged:
            self._replica.group.host.storage.append(self._staged, *block)
        self._here[block[0]] = note, None if self._staged else block

    async def _take_over(self, offer: Message, manifest: Manifest) -> None:
        """Become the snapshot. Nothing else happens in the group meanwhile."""
        replica, group, core = self._replica, self._replica.group, self._replica.core
        replica.installing = True
        try:
            await group.host.synced()
            if core.install is not offer or core.overtakes(offer):  # late appends may have come meanwhile
                raise Interrupted("it is not needed any more")
            if isinstance(group.home, Durable):
                blocks = await self._replace(group.home, offer, manifest)
            else:
                held = {index: block for index, (_, block) in self._here.items() if block is not None}
                home = group.home
                blocks = home.replace(
                    manifest.state, manifest.notes, {index: held[index] for index, _ in manifest.notes}
                )
                home.total = manifest.total
            self._here.clear()
            if not group.stopped:
                await group.restore(manifest.state, blocks)
            if group.stopped:
                return
            group.installed(offer.index, offer.log_term, manifest.total)
            core.installed(offer)
        finally:
            replica.installing = False
        group.host.log.info("Group %s: took the snapshot at %d from %s", group.name, offer.index, offer.sender)

    async def _replace(self, home: Durable, offer: Message, manifest: Manifest) -> list[StoredBlock]:
        """In one transaction: the staged group gets the snapshot, the old one goes, the name moves."""
        group, storage = self._replica.group, home.storage
        kept = {index for index, _ in manifest.notes}
        dropped = sorted(self._here.keys() - kept)
        number, old = self._staged, home.number
        point = CompactionPoint(
            offer.index, offer.log_term, manifest.total, offer.members, manifest.state, manifest.notes, dropped
        )
        storage.compact(number, point)
        storage.set_hard_state(number, *group.hard_state())
        storage.remove_group(old)
        storage.rename_group(number, group.name)
        await group.host.synced()
        home.number, self._staged = number, 0
        return [
            StoredBlock(index, note, load=partial(storage.read_block_now, number, index))
            for index, note in manifest.notes
        ]


def _give_up(answer: asyncio.Future[Piece]) -> None:
    if not answer.done():
        answer.set_result(Piece(0, 0))


def _manifest(content: bytes, last: int) -> Manifest:
    """Check what claims to be a manifest. Raises Malformed."""
    try:
        state, total, notes = cast("list[Any]", unpack_values(content, manifest=True))
        pairs = [(index, note) for index, note in cast("list[tuple[Any, Any]]", notes)]
    except (ValueError, TypeError) as error:
        raise Malformed("no manifest") from error
    indexes = [index for index, _ in pairs]
    right = type(state) is bytes and state and type(total) is int and total >= 0
    right = right and all(type(index) is int and 0 < index <= last and type(note) is bytes for index, note in pairs)
    if not right or sorted(set(indexes)) != indexes:
        raise Malformed("no manifest")
    return Manifest(state, total, pairs)
