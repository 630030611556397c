"""Random lives of consumers on virtual time, checked after every step.

Whatever happens: replicas that apply the same entries hold the same state; the leader's counts agree with what is
really outstanding; what was acknowledged and applied is never delivered again; at the end everything else is delivered.
"""

from __future__ import annotations

import random

import pytest

from nimsnats.jetstream.consumer.consumer import Consumer
from tests.jetstream.consumer_stand import Message, Stand

SUBJECTS = ("s.a", "s.b", "s.c.d")


class Life:
    """One random run."""

    def __init__(self, seed: int, retention: str) -> None:
        self.random = random.Random(seed)
        self.stand = Stand(retention)
        self.stand.stream.most = self.random.choice([2, 5, 1 << 62])
        self.stand.stream.lists = self.random.random() < 0.5
        self.inbox: dict[str, list[Message]] = {}
        self.seen: dict[str, int] = {}
        self.confirmed: dict[str, set[int]] = {}
        self.answers = self.stand.listen("answers")
        filters = [["s.a"], ["s.b", "s.c.*"]] if retention == "workqueue" else [[], ["s.b", "s.c.*"], ["s.>"]]
        for index, subjects in enumerate(filters):
            self.create(f"c{index}", subjects)

    def create(self, name: str, subjects: list[str]) -> None:
        choose = self.random.choice
        self.stand.create(
            name,
            filter_subjects=subjects,
            ack_policy="explicit" if self.stand.stream.retention == "workqueue" else choose(["explicit", "all"]),
            ack_wait=choose([1, 2]) * 10**9,
            max_ack_pending=choose([3, 1000]),
            backoff=choose([[], [10**9, 2 * 10**9]]),
        )
        self.inbox[name] = self.stand.listen(f"i.{name}")
        self.seen[name] = 0
        self.confirmed[name] = set()

    def consumer(self) -> Consumer:
        consumer = self.stand.consumers.get(self.random.choice(list(self.inbox)))
        assert consumer is not None
        return consumer

    def step(self) -> None:
        draw, stand = self.random.random(), self.stand
        if draw < 0.25:
            stand.publish(*self.random.choices(SUBJECTS, k=self.random.randint(1, 4)))
        elif draw < 0.45:
            consumer = self.consumer()
            stand.pull(consumer, f"i.{consumer.name}", batch=self.random.randint(1, 5), expires=3 * 10**9)
        elif draw < 0.75:
            self.acknowledge()
        elif draw < 0.85:
            stand.advance(self.random.choice([0.3, 1.1, 2.5]))
        elif draw < 0.88 and stand.stream.messages:
            stand.remove(self.random.choice(list(stand.stream.messages)))
        elif draw < 0.89:
            stand.purge(self.random.randint(1, stand.stream.last_seq + 1))
        elif draw < 0.94:
            if stand.stream.held is None:
                stand.stream.held = []
            else:
                stand.stream.release()
        elif draw < 0.97:
            stand.stream.refusing = not stand.stream.refusing
        else:
            stand.stream.cold = set(self.random.sample(list(stand.stream.messages), len(stand.stream.messages) // 2))

    def acknowledge(self) -> None:
        consumer = self.consumer()
        messages = [m for m in self.inbox[consumer.name] if m.payload]
        if not messages:
            return
        message = self.random.choice(messages[-8:])
        payload = self.random.choice([b"", b"", b"", b"+ACK", b"+TERM", b"-NAK", b"+WPI", b'-NAK {"delay": 500000000}'])
        if payload in (b"", b"+ACK", b"+TERM"):
            before = len(self.answers)
            self.stand.ack(message, payload, reply=b"answers")
            if len(self.answers) > before and consumer.config.ack_policy == "explicit":
                self.confirmed[consumer.name].add(message.seq)
        else:
            self.stand.ack(message, payload)

    def check(self) -> None:
        for name, messages in self.inbox.items():
            new = [message for message in messages[self.seen[name] :] if message.payload]
            assert not [m.seq for m in new if m.seq in self.confirmed_before[name]]
            self.seen[name] = len(messages)
            consumer = self.stand.consumers.get(name)
            assert consumer is not None and consumer.delivery is not None
            delivery, state = consumer.delivery, consumer.state
            known = {*state.pending, *delivery.fresh, *(seq for batch in delivery.flying for seq in batch)}
            assert delivery.outstanding == len(known - delivery.acking - delivery.spent)
            assert list(state.pending) == sorted(state.pending)
            assert state.floor_seq <= state.delivered_seq
            assert all(seq > state.floor_seq for seq in state.pending)
            source = self.stand.stream
            assert delivery.remaining() == source.count_match(consumer.filters, delivery.next_seq)
        self.confirmed_before = {name: set(seqs) for name, seqs in self.confirmed.items()}

    def live(self, steps: int) -> None:
        self.confirmed_before = {name: set[int]() for name in self.inbox}
        for _ in range(steps):
            self.step()
            self.check()
        self.stand.stream.refusing = False
        self.stand.stream.release()
        self.stand.advance(5)
        replica = self.stand.replay()
        assert replica.consumers.snapshot() == self.stand.consumers.snapshot()
        assert replica.stream.messages == self.stand.stream.messages
        if self.random.random() < 0.5:
            self.stand = replica
            replica.consumers.leadership(True)
            self.inbox = {name: replica.listen(f"i.{name}") for name in self.inbox}
        for name in self.inbox:
            self.finish(name)

    def finish(self, name: str) -> None:
        """Acknowledge everything that still comes."""
        consumer = self.stand.consumers.get(name)
        assert consumer is not None
        for _ in range(200):
            before = len(self.inbox[name])
            self.stand.pull(consumer, f"i.{name}", batch=50, expires=10**9)
            for message in self.inbox[name][before:]:
                if message.payload:
                    assert message.seq not in self.confirmed[name]
                    self.stand.ack(message)
            self.stand.advance(2.6)
            info = consumer.info()
            if info["num_ack_pending"] == 0 and info["num_pending"] == 0:
                break
        assert (info["num_ack_pending"], info["num_pending"]) == (0, 0)
        assert info["ack_floor"]["stream_seq"] == info["delivered"]["stream_seq"]


@pytest.mark.parametrize("retention", ["limits", "interest", "workqueue"])
@pytest.mark.parametrize("seed", range(12))
def test_random_lives(seed: int, retention: str) -> None:
    Life(seed, retention).live(60)


@pytest.mark.extended
@pytest.mark.timeout(900)
@pytest.mark.parametrize("retention", ["limits", "interest", "workqueue"])
def test_many_random_lives(retention: str) -> None:
    for seed in range(1000, 1400):
        Life(seed, retention).live(150)
