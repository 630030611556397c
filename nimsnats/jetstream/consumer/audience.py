"""Which consumers of a stream want a subject: literal filters by look-up, wildcards in a tree of tokens.

Owns the filters of all consumers of one stream, and who of them has seen everything and waits for the next message that
matches. What a message costs depends on its subject and on those who want it, not on how many consumers there are.
Who wants what is the same on every replica; who waits is known on the leader only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nimsnats.jetstream.source import Filters
from nimsnats.protocol.subject import WILDCARD_ONE, WILDCARD_REST, has_wildcard

if TYPE_CHECKING:
    from nimsnats.jetstream.consumer.consumer import Consumer

_KEPT: Final = 8192
"""Subjects whose filters are remembered."""


class Filter:
    """One filter subject and the consumers that have it."""

    __slots__ = ("consumers", "needy", "subject", "waiting")

    def __init__(self, subject: bytes) -> None:
        self.subject = subject
        self.consumers: dict[Consumer, None] = {}
        self.waiting: dict[Consumer, None] = {}
        """Those of them that are to be told of the next match."""
        self.needy: Consumer | None = None
        """Who was the last to need a message: mostly the next one, too."""

    def needs(self, seq: int, besides: Consumer | None) -> bool:
        """Whether one of these consumers has yet to finish with a message that matches."""
        needy = self.needy
        if needy is not None and needy is not besides and needy in self.consumers and not needy.state.done(seq):
            return True
        for consumer in reversed(self.consumers):
            if consumer is not besides and not consumer.state.done(seq):
                self.needy = consumer
                return True
        return False


class _Branch:
    """What wildcard filters have in common up to a token, and how they go on."""

    __slots__ = ("below", "here", "rest")

    def __init__(self) -> None:
        self.below: dict[bytes, _Branch] = {}
        self.here: Filter | None = None
        self.rest: Filter | None = None

    @property
    def bare(self) -> bool:
        """Whether nothing is left of it."""
        return not self.below and self.here is None and self.rest is None


class _Place:
    """Where a consumer stands in the tree."""

    __slots__ = ("filters", "struck", "waiting")

    def __init__(self, filters: list[Filter]) -> None:
        self.filters = filters
        self.struck = filters
        """Filters among whose `waiting` it is not."""
        self.waiting = False


class Audience:
    """See the module. Consumers without filters want everything."""

    def __init__(self) -> None:
        self._places: dict[Consumer, _Place] = {}
        self._everything = Filter(WILDCARD_REST)
        self._literals: dict[bytes, Filter] = {}
        self._root = _Branch()
        self._known: dict[bytes, tuple[Filter, ...]] = {}
        """Filters that match a subject."""
        self.waiting = 0
        """Consumers that wait for a match."""

    def add(self, consumer: Consumer, filters: Filters) -> None:
        """A consumer has come, or has other filters."""
        self.remove(consumer)
        made = [self._filter(subject) for subject in dict.fromkeys(filters)] if filters else [self._everything]
        for each in made:
            each.consumers[consumer] = None
        self._places[consumer] = _Place(made)

    def remove(self, consumer: Consumer) -> None:
        """A consumer has gone."""
        place = self._places.pop(consumer, None)
        if place is None:
            return
        self.waiting -= place.waiting
        for each in place.filters:
            del each.consumers[consumer]
            each.waiting.pop(consumer, None)
            if each.needy is consumer:
                each.needy = None
            if not each.consumers and each is not self._everything:
                self._drop(each.subject)

    def clear(self) -> None:
        """Everybody has gone."""
        self.__init__()

    # --- who wants a subject

    def match(self, subject: bytes) -> tuple[Filter, ...]:
        """The filters that select a literal subject."""
        known = self._known.get(subject)
        if known is None:
            known = self._search(subject)
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[subject] = known
        return known

    def wanted(self, subject: bytes) -> bool:
        """Whether any consumer wants messages with this subject."""
        return bool(self._everything.consumers) or bool(self.match(subject))

    def needed(self, subject: bytes, seq: int, besides: Consumer | None = None) -> bool:
        """Whether any consumer, `besides` one, has yet to finish with this message."""
        if self._everything.consumers and self._everything.needs(seq, besides):
            return True
        return any(each.needs(seq, besides) for each in self.match(subject))

    def _search(self, subject: bytes) -> tuple[Filter, ...]:
        literal = self._literals.get(subject)
        found = [literal] if literal is not None else []
        branches = [self._root]
        for token in subject.split(b"."):
            found += [branch.rest for branch in branches if branch.rest is not None]
            if token == WILDCARD_REST:  # only `>` matches it
                return tuple(found)
            wanted = (token,) if token == WILDCARD_ONE else (token, WILDCARD_ONE)
            branches = [below for branch in branches for want in wanted if (below := branch.below.get(want))]
            if not branches:
                return tuple(found)
        return (*found, *[branch.here for branch in branches if branch.here is not None])

    # --- who waits

    def wait(self, consumer: Consumer) -> None:
        """A consumer has seen all that matches: it is to be told of the next one."""
        place = self._places.get(consumer)
        if place is None or place.waiting:
            return
        for each in place.struck:
            each.waiting[consumer] = None
        place.struck = []
        place.waiting = True
        self.waiting += 1

    def arrived(self, subject: bytes) -> list[Consumer]:
        """Consumers that have waited for such a message; they wait no more."""
        found: list[Consumer] = []
        for each in self.match(subject):
            if not each.waiting:
                continue
            told, each.waiting = each.waiting, {}
            for consumer in told:
                place = self._places[consumer]
                place.struck.append(each)
                if place.waiting:
                    place.waiting = False
                    self.waiting -= 1
                    found.append(consumer)
        return found

    # --- the tree

    def _filter(self, subject: bytes) -> Filter:
        if not has_wildcard(subject):
            found = self._literals.get(subject)
            if found is None:
                found = self._literals[subject] = Filter(subject)
                self._known.pop(subject, None)
            return found
        branch, tokens = self._root, subject.split(b".")
        rest = tokens[-1] == WILDCARD_REST
        for token in tokens[:-1] if rest else tokens:
            branch = branch.below.setdefault(token, _Branch())
        found = branch.rest if rest else branch.here
        if found is None:
            found = Filter(subject)
            self._known.clear()
            if rest:
                branch.rest = found
            else:
                branch.here = found
        return found

    def _drop(self, subject: bytes) -> None:
        """Nobody has this filter any more."""
        if not has_wildcard(subject):
            del self._literals[subject]
            self._known.pop(subject, None)
            return
        self._known.clear()
        path: list[tuple[_Branch, bytes]] = []
        branch, tokens = self._root, subject.split(b".")
        rest = tokens[-1] == WILDCARD_REST
        for token in tokens[:-1] if rest else tokens:
            path.append((branch, token))
            branch = branch.below[token]
        if rest:
            branch.rest = None
        else:
            branch.here = None
        for parent, token in reversed(path):
            if not parent.below[token].bare:
                return
            del parent.below[token]
