"""May one of two members go on alone? The rule for two nodes with the registry as their witness.

Owns: the rule, as pure functions over facts that the caller has gathered. It never asks, waits or remembers.

A group of two needs both members for every write, so that each holds everything that was acknowledged. When one
vanishes, the other may make itself the whole group, but never both: two groups of one would each acknowledge what the
other never sees. A member may do it only if

(a) it has been in sync with the other since its process started and since the registry may last have been without it;
(b) a listing, requested after the loss was noticed, shows itself and not the other;
(c) it has no route to the other.

Why that is enough. Say B goes alone on a listing served at time s that does not show A. Then A was not registered at
s, and has to find its registration broken between a sync before s and a listing after s. Nor can A have synced after
s: B answers only while it has a route to A and has not gone alone, and after that B needs another loss and a listing
requested after it. So everything rests on A *noticing* that it was not registered. `tests/simulation` checks the rule
with this very code, over every order of events, and what "since" and "not registered" must mean is what it found.
Taken literally ((a) as any contact after the latest gap between the sent times of two acknowledged heartbeats) the rule
has four holes:

- Contact is not sync. What the other sent before it went alone can lie in a socket's buffer, and be read after a
  process has slept through its own expiry and registered again. Only an answer to a question counts that was asked
  when the present registration was already seen in the registry: `standing` at the time of asking is kept as `sync`
  once the answer is there.
- An unfinished gap is a gap: nothing may have been acknowledged for a TTL, yet nothing was refused either, when the
  registry comes back from a crash with an entry in its database that it had already let expire. Hence the lease must be
  unbroken *now*.
- Sent times alone do not close a gap. A heartbeat sent in time may arrive late, after such an expiry and comeback; its
  acknowledgement proves something only if it is *received* within a TTL of the sending of the one before (`Lease`).
- Only the registry knows of a registration which the node has given up waiting for. If it arrives after the registry
  lost its memory, the node is back with no sign of a lapse. Hence the registry's own stamp (`registered_at`) on the
  entry must be the one that was there before the sync. A registry that does not stamp is no witness.

And a listing that shows both, before the sync, makes sure that both look at the same registry.

What it relies on: the registry answers listings from one up-to-date state; it stamps a registration anew unless it held
that entry all along or takes back its whole database; its clock runs at the speed of CLOCK_BOOTTIME; the caller
decides and appends the new membership in one step of the event loop, with a `now_ns` read in that step; from that
append on it answers no question of the other with "in sync"; one that answers "in sync" has a route to the other, the
same membership, and holds everything committed; and neither commits anything that the other does not hold, unless by
this rule. That is more than Raft promises: its leader could remove the other, or take in a third and go on with that
one, while the other is out of reach. `nimsnats.raft.membership` has the steps by which the other knows first.

A registry that one of the two embeds is a witness for the loss of the other one only: what takes its host away takes
the witness away, too, and the other waits. Nothing else is special about it. That it never loses what its own host
sends, and restarts with it, are orders of events among those that the model allows any registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from nimsnats.registry import Lease, Listing, NodeInfo

_UNSTAMPED: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a member can show for itself when it asks the other whether they are in sync.

    `lapses` is the count of its lease, `registered_at` the registry's stamp on its entry, `membership` the number of
    the membership in force. Whatever changes one of them makes a sync void.
    """

    lapses: int
    registered_at: datetime
    membership: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the rule looks at, all of it this process's own knowledge.

    `member` is this node as it registered, `peer` the other member (an empty `instance`: any instance of that name).
    `sync` is the standing with which the latest question was asked that the peer answered "in sync", None since the
    process started if there was none. `lost_ns` is when the latest loss of the last route to the peer was noticed, None
    if there was none; `route` whether there is one now. `listing` is any listing, usually the latest. Times are
    `Runtime.boot_time_ns`.
    """

    now_ns: int
    member: NodeInfo
    peer: NodeInfo
    membership: int
    lease: Lease
    sync: Standing | None
    lost_ns: int | None
    route: bool
    listing: Listing | None


Condition = Callable[[Facts], str]
"""Returns why not, or "" if the condition holds."""


def standing(
    member: NodeInfo, peer: NodeInfo, membership: int, lease: Lease, listing: Listing | None, now_ns: int
) -> Standing | None:
    """What to ask the peer for sync with, None as long as an answer would prove nothing.

    Evaluate it just before the question is sent; it needs a listing that shows both members, however old.
    """
    if listing is None or not lease.unbroken(now_ns) or not _lists_peer(listing, peer):
        return None
    own = _own_entry(listing, member)
    if own is None or own.registered_at == _UNSTAMPED:
        return None
    return Standing(lease.lapses, own.registered_at, membership)


def shortcoming(member: NodeInfo, lease: Lease, listing: Listing | None) -> str:
    """Why a registry that answers can be no witness whatever it says; "" if it can, or has not told yet."""
    if lease.since_ns and not lease.ttl_ns:
        return "it does not tell for how long it keeps a node (X-Registry-TTL)"
    own = _own_entry(listing, member) if listing is not None else None
    if own is not None and own.registered_at == _UNSTAMPED:
        return "it does not stamp its entries (registered_at)"
    return ""


def in_sync(facts: Facts) -> str:
    """(a), first half: in sync under this membership since the process started."""
    if facts.sync is None:
        return f"not in sync with {facts.peer.name} since this process started"
    if facts.sync.membership != facts.membership:
        return f"not in sync with {facts.peer.name} since the membership changed"
    return ""


def registered_throughout(facts: Facts) -> str:
    """(a), second half, as far as time and refusals tell: no lapse since the sync, up to this moment."""
    if facts.sync is not None and facts.sync.lapses != facts.lease.lapses:
        return f"not in sync with {facts.peer.name} since the latest registry lapse"
    if not facts.lease.unbroken(facts.now_ns):
        return "the registry may have let this node expire"
    return ""


def same_registration(facts: Facts) -> str:
    """(a), second half, as far as the registry tells: its stamp on our entry is that of the sync."""
    own = _own_entry(facts.listing, facts.member) if facts.listing else None
    if own is None or facts.sync is None or own.registered_at == facts.sync.registered_at != _UNSTAMPED:
        return ""
    return "the registry has lost and regained this node since the sync"


def listed_since_the_loss(facts: Facts) -> str:
    """(b), the time: the loss was noticed before the listing was requested."""
    if facts.lost_ns is None:
        return f"no route to {facts.peer.name} was lost since this process started"
    if facts.listing is None or facts.listing.requested_ns <= facts.lost_ns:
        return f"no listing of the registry since {facts.peer.name} was lost"
    return ""


def listed_alone(facts: Facts) -> str:
    """(b), the contents: this node is listed, the peer is not."""
    if facts.listing is None:
        return "the registry has listed nothing yet"
    if _own_entry(facts.listing, facts.member) is None:
        return "the registry does not list this node"
    if _lists_peer(facts.listing, facts.peer):
        return f"the registry still lists {facts.peer.name}"
    if facts.listing.may_hide(facts.peer.name):
        return f"the registry lists something that cannot be read and may be {facts.peer.name}"
    return ""


def no_route(facts: Facts) -> str:
    """(c)."""
    return f"there is a route to {facts.peer.name}" if facts.route else ""


RULE: Final[tuple[Condition, ...]] = (
    no_route,
    in_sync,
    registered_throughout,
    listed_since_the_loss,
    listed_alone,
    same_registration,
)


def obstacles(facts: Facts, rule: tuple[Condition, ...] = RULE) -> tuple[str, ...]:
    """Why this member may not make itself the whole group, in words for the log; empty: it may, at this moment."""
    return tuple(why for condition in rule if (why := condition(facts)))


def _own_entry(listing: Listing, member: NodeInfo) -> NodeInfo | None:
    """Our entry; another process under our name and at another address, or on another disk, is not us."""
    entry = listing.find(member.name)
    if entry is None or entry.cluster_addr != member.cluster_addr or entry.instance not in ("", member.instance):
        return None
    return entry


def _lists_peer(listing: Listing, peer: NodeInfo) -> bool:
    """Whether the peer is in it. A node with its name on an empty disk is another one: it holds none of its log."""
    entry = listing.find(peer.name)
    return entry is not None and (not entry.instance or not peer.instance or entry.instance == peer.instance)
