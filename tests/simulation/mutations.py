"""Planted bugs: what the simulation must find, each as a small change of the running product.

Owns the list. Nothing here is in the product; a history runs under one of them with `mutation=`. `seed` is the first
seed of 20 faults that catches it, as found by `python -m tests.simulation mutations`; it goes stale with the product,
so the tests search from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

from nimsnats.cluster import pairs
from nimsnats.jetstream.admission import Admission
from nimsnats.jetstream.consumer.consumer import Consumer
from nimsnats.jetstream.consumer.set import ConsumerSet
from nimsnats.jetstream.content import Publication
from nimsnats.jetstream.kinds import CONSUMER_ACKS
from nimsnats.jetstream.publish import Ingest
from nimsnats.jetstream.stream import Stream
from nimsnats.raft import quorum
from nimsnats.raft.core import Core
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.leader import Leadership
from nimsnats.raft.machine import Entry
from nimsnats.raft.message import Kind, Message
from nimsnats.raft.refusals import Refusals
from nimsnats.raft.transfer import Download
from nimsnats.storage import CompactionPoint
from tests.simulation.disk import Disk, SimStorage

Patches = AbstractContextManager[None]


@dataclass(frozen=True, slots=True)
class Mutation:
    """A bug to be planted."""

    what: str
    plant: Callable[[], Patches]
    seed: int = 1


def _replacing(owner: Any, name: str, make: Callable[[Any], Any]) -> Patches:
    """Replace a method by what `make` makes of it."""

    @contextmanager
    def planted() -> Iterator[None]:
        with patch.object(owner, name, make(getattr(owner, name))):
            yield

    return planted()


def _ack_before_commit() -> Patches:
    def make(propose: Any) -> Any:
        def mutated(stream: Stream, publication: Publication, data: bytes) -> None:
            propose(stream, publication, data)
            flying = getattr(getattr(publication, "ingest", None), "_flying", 1)
            if flying == 0 and publication.replies is not None:  # type: ignore[attr-defined]
                publication.stored(stream.store.last_seq + 1)
                publication.ingest._flying += 1  # type: ignore[attr-defined]
                publication.replies = None  # type: ignore[attr-defined]

        return mutated

    assert hasattr(Ingest, "landed")
    return _replacing(Stream, "propose_batch", make)


@contextmanager
def _voting(make: Callable[[Any], Any]) -> Iterator[None]:
    """With another answer to those who ask for a vote."""
    mutated = make(Core._on_vote)
    with patch.dict(Core._HANDLERS, {Kind.VOTE: mutated, Kind.PRE_VOTE: mutated}):
        yield


def _vote_twice() -> Patches:
    def make(vote: Any) -> Any:
        def mutated(core: Core, message: Message) -> None:
            if message.kind is Kind.VOTE and core.leading is None:
                core.vote, core.leader = "", ""
            vote(core, message)

        return mutated

    return _voting(make)


def _vote_for_any_log() -> Patches:
    def make(vote: Any) -> Any:
        def mutated(core: Core, message: Message) -> None:
            message.index, message.log_term = core.log.last, max(core.log.last_term, message.log_term)
            vote(core, message)

        return mutated

    return _voting(make)


def _commit_earlier_terms() -> Patches:
    def make(_: Any) -> Any:
        def mutated(leading: Leadership) -> None:
            core, log = leading._core, leading._core.log
            index = quorum.committed(
                log.durable if voter == core.name else leading.members[voter].match for voter in core.membership.voters
            )
            log.committed = max(log.committed, index)

        return mutated

    return _replacing(Leadership, "advance", make)


def _count_learners() -> Patches:
    def make(_: Any) -> Any:
        def mutated(leading: Leadership) -> None:
            core, log = leading._core, leading._core.log
            everyone = {**{name: known.match for name, known in leading.members.items()}, core.name: log.durable}
            index = sorted(everyone.values(), reverse=True)[len(core.membership.voters) // 2]
            if index > log.committed and log.term(index) == core.term:
                log.committed = index

        return mutated

    return _replacing(Leadership, "advance", make)


def _skip_fsync() -> Patches:
    def make(init: Any) -> Any:
        def mutated(disk: Disk, *arguments: Any) -> None:
            init(disk, *arguments)
            disk.lies = True

        return mutated

    return _replacing(Disk, "__init__", make)


def _apply_out_of_order() -> Patches:
    def make(apply: Any) -> Any:
        def mutated(group: HostedGroup, index: int) -> bool:
            log = group.core.log
            at = log.applied + 1 - log.first
            if index - log.applied >= 2 and group.core.leading is None:
                one, two = log.entries[at : at + 2]
                if min(one.kind, two.kind) > 1:
                    one.kind, one.data, two.kind, two.data = two.kind, two.data, one.kind, one.data
            return apply(group, index)

        return mutated

    return _replacing(HostedGroup, "_apply_to", make)


def _forget_vote() -> Patches:
    def make(_: Any) -> Any:
        def mutated(group: HostedGroup) -> None:
            group.core.hard_state_changed = False

        return mutated

    return _replacing(HostedGroup, "keep_hard_state", make)


def _seize_without_witness() -> Patches:
    return _replacing(pairs, "obstacles", lambda _: lambda facts: ())


def _forget_ids() -> Patches:
    return _replacing(Admission, "dump", lambda _: lambda admission: [b"", []])


def _acks_stay_here() -> Patches:
    def make(apply: Any) -> Any:
        def mutated(consumers: ConsumerSet, entry: Entry) -> None:
            if entry.kind != CONSUMER_ACKS or entry.context is not None:
                apply(consumers, entry)

        return mutated

    return _replacing(ConsumerSet, "apply", make)


def _wrong_snapshot_position() -> Patches:
    def make(compact: Any) -> Any:
        def mutated(storage: SimStorage, group: int, point: CompactionPoint) -> None:
            point.index -= point.index > 1
            compact(storage, group, point)

        return mutated

    return _replacing(SimStorage, "compact", make)


def _reuse_any_block() -> Patches:
    def make(reuse: Any) -> Any:
        async def mutated(download: Download, manifest: Any) -> None:
            home = download._replica.group.home
            stored = await home.storage.load_group(download._replica.group.name)  # type: ignore[union-attr]
            own = dict(stored.blocks) if stored is not None else {}
            theirs = manifest.notes
            manifest.notes = [(index, own.get(index, note)) for index, note in theirs]
            await reuse(download, manifest)
            manifest.notes = theirs

        return mutated

    return _replacing(Download, "_reuse", make)


def _deliver_unwritten() -> Patches:
    return _replacing(Consumer, "careful", lambda _: property(lambda consumer: False))


def _stop_at_bad_entry() -> Patches:
    def make(_: Any) -> Any:
        def mutated(group: HostedGroup, entry: Entry, error: Exception) -> None:
            raise MemoryError from error  # which ends the group on this node

        return mutated

    return _replacing(HostedGroup, "_refuse_applied", make)


def _forget_refusals() -> Patches:
    return _replacing(Refusals, "stored", lambda _: lambda refusals: [])


MUTATIONS: Final[dict[str, Mutation]] = {
    "ack-before-commit": Mutation("publishes are acknowledged when they are proposed", _ack_before_commit),
    "vote-twice": Mutation("a member votes for everybody who asks in a term", _vote_twice, 47),
    "commit-earlier-terms": Mutation("entries of earlier terms are committed by counting", _commit_earlier_terms, 4),
    "skip-fsync": Mutation("commits are reported before they are synced", _skip_fsync),
    "apply-out-of-order": Mutation("a follower applies neighbouring entries in the wrong order", _apply_out_of_order),
    "forget-vote": Mutation("term and vote are not stored", _forget_vote),
    "seize-without-witness": Mutation(
        "one of two goes on alone without asking the registry", _seize_without_witness, 5
    ),
    "count-learners": Mutation("learners count for what is committed", _count_learners),
    "vote-for-any-log": Mutation("votes do not ask whose log is newer", _vote_for_any_log, 4),
    "forget-ids": Mutation("snapshots do not hold message ids", _forget_ids, 13),
    "acks-stay-here": Mutation("followers do not apply acknowledgements", _acks_stay_here),
    "wrong-snapshot-position": Mutation("snapshots are stored one entry too low", _wrong_snapshot_position, 4),
    "deliver-unwritten": Mutation("limited deliveries are made before they are written down", _deliver_unwritten, 75),
    "stop-at-bad-entry": Mutation("an entry that cannot be applied stops its group", _stop_at_bad_entry),
    "forget-refusals": Mutation("snapshots do not hold what was refused", _forget_refusals),
    "reuse-any-block": Mutation("blocks are reused whatever has become of them", _reuse_any_block, 7),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While this is entered, that bug is in the product; "" is none."""
    with ExitStack() as stack:
        if name:
            stack.enter_context(MUTATIONS[name].plant())
        yield
