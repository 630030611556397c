"""Who subscribes to what: literal subjects in a dictionary, wildcards in a trie, and a memory of shared answers.

Owns the sets of subscriptions of one account. It never delivers anything; `plan` turns a match into a way out.

Subjects that were never seen before (`_INBOX.xyz.1234`, `$JS.ACK.…`) are as frequent as repeated ones, so the answer of
a trie walk is kept for a whole *family* of subjects where it cannot depend on the rest: everything one token below a
prefix (below `_INBOX.xyz` there is only `*`), and everything below the first two tokens (below `$JS.ACK` only `>`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from nimsnats.broker.subscription import Subscription
from nimsnats.protocol.acks import PREFIX as ACKS
from nimsnats.protocol.subject import has_empty_token, has_wildcard

_FAMILIES_KEPT: Final = 8192


class SubscriptionSet:
    """Subscriptions to one subject: plain ones, and queue groups by name. Insertion order, constant-time removal."""

    __slots__ = ("plain", "queues")

    def __init__(self) -> None:
        self.plain: dict[Subscription, None] = {}
        self.queues: dict[bytes, dict[Subscription, None]] | None = None

    def add(self, sub: Subscription) -> None:
        if not sub.queue:
            self.plain[sub] = None
            return
        if self.queues is None:
            self.queues = {}
        self.queues.setdefault(sub.queue, {})[sub] = None

    def remove(self, sub: Subscription) -> bool:
        """Take `sub` out; False when it was not in."""
        if not sub.queue:
            if sub not in self.plain:
                return False
            del self.plain[sub]
            return True
        group = (self.queues or {}).get(sub.queue)
        if group is None or sub not in group or self.queues is None:
            return False
        del group[sub]
        if not group:
            del self.queues[sub.queue]
            if not self.queues:
                self.queues = None
        return True

    def __bool__(self) -> bool:
        return bool(self.plain) or self.queues is not None

    def __iter__(self) -> Iterator[Subscription]:
        yield from self.plain
        for group in (self.queues or {}).values():
            yield from group


class _Node:
    """One token of wildcard subscriptions' subjects."""

    __slots__ = ("children", "here", "one", "rest")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.one: _Node | None = None
        self.rest: SubscriptionSet | None = None
        self.here: SubscriptionSet | None = None

    def __bool__(self) -> bool:
        return bool(self.children) or self.one is not None or self.rest is not None or self.here is not None


class Interest:
    """All subscriptions of one account."""

    __slots__ = ("_ack_literals", "_families", "_literal", "_root", "_wide", "count", "inserts", "matches", "removes")

    def __init__(self) -> None:
        self._literal: dict[bytes, SubscriptionSet] = {}
        self._ack_literals = 0
        """Literal subscriptions to subjects of acknowledgements."""
        self._root = _Node()
        self._families: dict[bytes, tuple[SubscriptionSet, ...]] = {}
        self._wide: dict[bytes, tuple[SubscriptionSet, ...]] = {}
        self.count = 0
        self.inserts = 0
        self.removes = 0
        self.matches = 0

    def insert(self, sub: Subscription) -> bool:
        """Add a subscription with a valid subject; True when it changes more than that one literal subject."""
        self.count += 1
        self.inserts += 1
        if not has_wildcard(sub.subject):
            found = self._literal.get(sub.subject)
            if found is None:
                found = self._literal[sub.subject] = SubscriptionSet()
                self._ack_literals += sub.subject.startswith(ACKS)
            found.add(sub)
            return False
        self._forget()
        node = self._root
        tokens = sub.subject.split(b".")
        if tokens[-1] == b">":
            for token in tokens[:-1]:
                node = self._child(node, token)
            node.rest = node.rest or SubscriptionSet()
            node.rest.add(sub)
        else:
            for token in tokens:
                node = self._child(node, token)
            node.here = node.here or SubscriptionSet()
            node.here.add(sub)
        return True

    def remove(self, sub: Subscription) -> bool:
        """Take a subscription out; True when it changed more than that one literal subject."""
        found = self._literal.get(sub.subject)
        if found is not None:
            if found.remove(sub):
                self._removed()
                if not found:
                    del self._literal[sub.subject]
                    self._ack_literals -= sub.subject.startswith(ACKS)
            return False
        tokens = sub.subject.split(b".")
        rest = tokens[-1] == b">"
        path: list[tuple[_Node, bytes]] = []
        node: _Node | None = self._root
        for token in tokens[:-1] if rest else tokens:
            path.append((node, token))
            node = node.one if token == b"*" else node.children.get(token)
            if node is None:
                return False
        holder = node.rest if rest else node.here
        if holder is None or not holder.remove(sub):
            return False
        self._removed()
        self._forget()
        if not holder:
            if rest:
                node.rest = None
            else:
                node.here = None
            self._prune(path)
        return True

    def match(self, subject: bytes) -> list[SubscriptionSet]:
        """The sets that a message published on `subject` reaches. Wildcards in `subject` are ordinary tokens."""
        self.matches += 1
        found = self._literal.get(subject)
        wild = self._match_wild(subject) if self._root else ()
        if found is None:
            return list(wild)
        return [found, *wild]

    def family(self, subject: bytes) -> tuple[SubscriptionSet, ...] | None:
        """The wildcard sets that every subject reaches which differs from this one in the last token only.

        None when that depends on the token, or is not remembered. Literal subscriptions come on top (`is_plain`).
        """
        if self._root:
            self._match_wild(subject)
        return self._families.get(subject[: subject.rfind(b".")])

    def below(self, subject: bytes) -> list[SubscriptionSet] | None:
        """The sets that every message reaches whose subject, one of acknowledgements, goes on behind `subject`. None
        when that depends on how it goes on."""
        if self._ack_literals:
            return None
        found: list[SubscriptionSet] = []
        nodes = [self._root]
        for token in subject.split(b"."):
            found.extend(node.rest for node in nodes if node.rest is not None)
            below = [child for node in nodes if (child := node.children.get(token)) is not None]
            nodes = below + [node.one for node in nodes if node.one is not None]
        found.extend(node.rest for node in nodes if node.rest is not None)
        return None if any(node.children or node.one for node in nodes) else found

    def is_plain(self, subjects: Iterable[bytes]) -> bool:
        """Whether none of these literal subjects has a subscription of its own."""
        return self._literal.keys().isdisjoint(subjects)

    def __iter__(self) -> Iterator[Subscription]:
        for found in self._literal.values():
            yield from found
        stack = [self._root]
        while stack:
            node = stack.pop()
            for holder in (node.rest, node.here):
                if holder is not None:
                    yield from holder
            stack.extend(node.children.values())
            if node.one is not None:
                stack.append(node.one)

    def _match_wild(self, subject: bytes) -> tuple[SubscriptionSet, ...]:
        dot = subject.rfind(b".")
        if dot > 0:
            family = self._families.get(subject[:dot])
            if family is not None and dot + 1 < len(subject):
                return family
            second = subject.find(b".", subject.find(b".") + 1)
            if second > 0 and self._wide:
                family = self._wide.get(subject[:second])
                if family is not None and not has_empty_token(subject):
                    return family
        if has_empty_token(subject):
            return ()
        return self._walk(subject, subject.split(b"."))

    def _walk(self, subject: bytes, tokens: list[bytes]) -> tuple[SubscriptionSet, ...]:
        """Match token by token, and remember the answer for the subject's family when it allows that."""
        found: list[SubscriptionSet] = []
        nodes = [self._root]
        last = len(tokens) - 1
        for depth, token in enumerate(tokens):
            found.extend(node.rest for node in nodes if node.rest is not None)
            if depth == 2 and not any(node.children or node.one for node in nodes):
                return self._keep(self._wide, b".".join(tokens[:2]), found)
            shared = depth == last and depth > 0 and not any(node.children for node in nodes)
            below = [child for node in nodes if (child := node.children.get(token)) is not None]
            below.extend(node.one for node in nodes if node.one is not None)
            nodes = below
            if shared:
                found.extend(node.here for node in nodes if node.here is not None)
                return self._keep(self._families, subject[: subject.rfind(b".")], found)
            if not nodes and depth < 2 < len(tokens):
                return self._keep(self._wide, b".".join(tokens[:2]), found)
            if not nodes:
                return tuple(found)
        found.extend(node.here for node in nodes if node.here is not None)
        return tuple(found)

    @staticmethod
    def _keep(
        memory: dict[bytes, tuple[SubscriptionSet, ...]], key: bytes, found: list[SubscriptionSet]
    ) -> tuple[SubscriptionSet, ...]:
        if len(memory) >= _FAMILIES_KEPT:
            memory.clear()
        answer = memory[key] = tuple(found)
        return answer

    def _removed(self) -> None:
        self.count -= 1
        self.removes += 1

    def _forget(self) -> None:
        self._families.clear()
        self._wide.clear()

    @staticmethod
    def _child(node: _Node, token: bytes) -> _Node:
        if token == b"*":
            if node.one is None:
                node.one = _Node()
            return node.one
        child = node.children.get(token)
        if child is None:
            child = node.children[token] = _Node()
        return child

    @staticmethod
    def _prune(path: list[tuple[_Node, bytes]]) -> None:
        for parent, token in reversed(path):
            child = parent.one if token == b"*" else parent.children[token]
            if child:
                return
            if token == b"*":
                parent.one = None
            else:
                del parent.children[token]
