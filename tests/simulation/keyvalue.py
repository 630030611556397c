"""Writers that compare and set keys, and whether their history is that of one register a key.

Owns the records of these operations. Every write names the revision that it replaces, so the stream itself shows the
order in which they took effect, and the history is linearizable exactly when that order fits what each client saw and
when: this is the search of Wing and Gong, with its answer at hand.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.simulation.client import Client, Disconnected, NoResponders
from tests.simulation.inspection import Held
from tests.simulation.world import Violation, World

_WRONG_LAST: Final = 10071
_MOST: Final = 60
"""Writes tried for one key; the stream keeps 64."""


@dataclass(slots=True)
class Write:
    """One try to replace revision `expected`. `revision` when it was done; `instead` when that was not the last
    revision, and what was; neither: nobody knows."""

    key: str
    value: bytes
    expected: int
    sent: float
    done: float = 0.0
    revision: int = 0
    instead: int = -1


@dataclass(slots=True)
class Bucket:
    """A bucket of keys and all tries to write them."""

    name: str
    replicas: int
    keys: list[str]
    writes: list[Write] = field(default_factory=list[Write])

    @property
    def stream(self) -> str:
        """The stream behind it."""
        return f"KV_{self.name}"

    def config(self) -> dict[str, object]:
        """As the API wants it."""
        return {
            "name": self.stream,
            "subjects": [f"$KV.{self.name}.>"],
            "max_msgs_per_subject": 64,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
            "num_replicas": self.replicas,
        }


class Writer:
    """One client that writes keys of a bucket until `stopping`."""

    def __init__(self, world: World, bucket: Bucket, number: int) -> None:
        self.world = world
        self.bucket = bucket
        self.client = Client(world, f"k{number}")
        self.random = Random(world.random.getrandbits(64))
        self.pause = self.random.choice([0.1, 0.5, 1.0])
        self.stopping = False
        self.written = 0
        self._seen = dict.fromkeys(bucket.keys, 0)

    async def run(self) -> None:
        """Write on."""
        number = 0
        while not self.stopping:
            await asyncio.sleep(self.pause * self.random.expovariate(1.0))
            await self.client.connect()
            key = self.random.choice(self.bucket.keys)
            if sum(write.key == key for write in self.bucket.writes) >= _MOST:
                continue
            number += 1
            value = b"%b-%d" % (self.client.name.encode(), number)
            write = Write(key, value, self._seen[key], self.world.loop.now)
            self.bucket.writes.append(write)
            await self._write(write)

    async def _write(self, write: Write) -> None:
        headers = b"NATS/1.0\r\nNats-Expected-Last-Subject-Sequence: %d\r\n\r\n" % write.expected
        try:
            _, answer = await self.client.request(self._subject(write.key), write.value, headers)
        except (Disconnected, TimeoutError, NoResponders) as error:
            self.world.trace(self.client.name, "unknown", f"{write.key} {write.value!r} {type(error).__name__}")
            if isinstance(error, TimeoutError) and self.random.random() < 0.3:
                self.client.close()
            return
        body = json.loads(answer)
        write.done = self.world.loop.now
        if "error" not in body:
            write.revision = self._seen[write.key] = body["seq"]
            self.written += 1
            self.world.trace(self.client.name, "set", f"{write.key} {write.value!r} {write.expected}>{write.revision}")
        elif body["error"]["err_code"] == _WRONG_LAST:
            found = re.search(r"\d+", body["error"]["description"])
            assert found is not None
            write.instead = self._seen[write.key] = int(found[0])
            self.world.trace(self.client.name, "not set", f"{write.key} {write.expected}, it is {write.instead}")
        else:
            self.world.trace(self.client.name, "refused", f"{write.key} {body['error'].get('description')}")

    def _subject(self, key: str) -> bytes:
        return f"$KV.{self.bucket.name}.{key}".encode()


def check_bucket(bucket: Bucket, held: Held) -> None:
    """`held` is the stream at the end: (subject, payload, headers) by sequence. Raises Violation."""
    for key in bucket.keys:
        subject = f"$KV.{bucket.name}.{key}".encode()
        revisions = [seq for seq, message in sorted(held.items()) if message[0] == subject]
        writes = [write for write in bucket.writes if write.key == key]
        _check_chain(f"{bucket.stream} {key}", revisions, {seq: held[seq] for seq in revisions}, writes)


def _check_chain(
    what: str, revisions: list[int], held: dict[int, tuple[bytes, bytes, bytes]], all_: list[Write]
) -> None:
    by_value = {write.value: write for write in all_}
    before = 0
    effective: list[Write] = []
    for seq in revisions:
        _, value, headers = held[seq]
        write = by_value.pop(value, None)
        if write is None:
            raise Violation(f"{what}: {value!r} at {seq} is there twice, or nobody wrote it")
        if b"Sequence: %d\r\n" % write.expected not in headers or write.expected != before:
            raise Violation(f"{what}: {write} took effect at {seq}, behind {before}")
        if write.instead >= 0 or write.revision not in (0, seq):
            raise Violation(f"{what}: {write} took effect at {seq}")
        effective.append(write)
        before = seq
    for write in by_value.values():
        if write.revision:
            raise Violation(f"{what}: {write} was acknowledged and is not there")
    _check_times(what, revisions, effective, all_)


def _check_times(what: str, revisions: list[int], effective: list[Write], all_: list[Write]) -> None:
    """Nothing takes effect before it was sent or after it was answered: so a later write in the order must not have
    been answered before an earlier one was sent, and what a refusal has seen must have been there at that time."""
    end = float("inf")
    earliest_end = [end] * (len(effective) + 1)
    for at in range(len(effective) - 1, -1, -1):
        write = effective[at]
        earliest_end[at] = min(earliest_end[at + 1], write.done if write.revision else end)
        if earliest_end[at + 1] < write.sent:
            raise Violation(f"{what}: {write} took effect before a write that had been answered when it was sent")
    latest_sent = 0.0
    sent_by: dict[int, float] = {0: 0.0}
    over_by: dict[int, float] = {0: earliest_end[0]}
    for at, (seq, write) in enumerate(zip(revisions, effective, strict=True)):
        latest_sent = max(latest_sent, write.sent)
        sent_by[seq], over_by[seq] = latest_sent, earliest_end[at + 1]
    for write in all_:
        if write.instead >= 0 and not (
            write.instead in sent_by and sent_by[write.instead] <= write.done and over_by[write.instead] >= write.sent
        ):
            raise Violation(f"{what}: {write} saw a revision that was not the last one at any time while it was asked")
