"""Many short answers at once, each to an inbox of its own: how acknowledgements leave the server.

Owns the run path out of the server: subjects that differ in their last token only (a client's inboxes) and reach one
plain client subscription are written as one piece, formatted in C. Whatever does not fit goes through
`Account.publish`, message by message, with the same result.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimsnats.broker.account import Account
    from nimsnats.broker.subscription import Subscription


def publish_numbered(account: Account, subjects: Sequence[bytes], head: bytes, numbers: Sequence[int]) -> None:
    """Publish `head` + number + `}` to each subject. Empty subjects are left out; numbers ascend."""
    at, count = 0, len(numbers)
    while at < count:
        end = bisect_left(numbers, 10 ** len(str(numbers[at])), at)
        if at or end < count:
            _publish_run(account, subjects[at:end], head, numbers[at:end])
        else:
            _publish_run(account, subjects, head, numbers)
        at = end


def _publish_run(account: Account, subjects: Sequence[bytes], head: bytes, numbers: Sequence[int]) -> None:
    """The same for numbers of as many digits as each other."""
    if not _publish_family(account, subjects, head, numbers):
        groups: dict[bytes, tuple[list[bytes], list[int]]] = {}
        for subject, number in zip(subjects, numbers, strict=True):
            if subject:
                family = subject[: subject.rfind(b".")]
                group = groups.get(family)
                if group is None:
                    groups[family] = ([subject], [number])
                else:
                    group[0].append(subject)
                    group[1].append(number)
        for members, their_numbers in groups.values():
            if len(members) < _RUN or not _publish_family(account, members, head, their_numbers):
                publish = account.publish
                for subject, number in zip(members, their_numbers, strict=True):
                    publish(subject, b"%b%d}" % (head, number))


_RUN = 2
"""Answers from which on a run pays."""


def _publish_family(account: Account, subjects: Sequence[bytes], head: bytes, numbers: Sequence[int]) -> bool:
    """Write all of it to one subscription, if that is where all of it goes."""
    first = subjects[0]
    family = first[: first.rfind(b".") + 1]
    width = len(b"%d" % numbers[0])
    if not family:
        return False
    count = len(subjects)
    joined = b"\n".join(subjects)
    if joined.count(b"\n" + family) != count - 1 or joined.count(b".") != count * family.count(b"."):
        return False
    if b".\n" in joined or joined.endswith(b"."):
        return False
    sub = _only_receiver(account, first)
    if sub is None or not account.interest.is_plain(subjects):
        return False
    client = sub.client
    assert client is not None
    size = len(head) + width + 1
    line = b"MSG %%b %b %d\r\n%b%%d}\r\n" % (sub.sid.replace(b"%", b"%%"), size, head.replace(b"%", b"%%"))
    sub.delivered += count
    client.out_msgs += count
    client.out_bytes += size * count
    client.send(b"".join(map(line.__mod__, zip(subjects, numbers, strict=True))))
    return True


def _only_receiver(account: Account, subject: bytes) -> Subscription | None:
    """The plain client subscription that a subject's whole family reaches, if it is the only receiver."""
    found = account.interest.family(subject)
    if found is None or len(found) != 1 or found[0].queues or len(found[0].plain) != 1:
        return None
    (sub,) = found[0].plain
    if sub.client is None or sub.limit or sub.client.trace or sub.client.closed:
        return None
    return sub
