"""Interest against a naive twin: a list of subscriptions and `subject.matches`."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nimsnats.broker.interest import Interest
from nimsnats.broker.subscription import Subscription
from nimsnats.protocol.subject import is_valid, matches

_token = st.sampled_from([b"a", b"b", b"*", b">", b"c"])
_subjects = st.lists(_token, min_size=1, max_size=4).map(b".".join)
_published = st.lists(st.sampled_from([b"a", b"b", b"c", b"*", b"", b"1", b"2"]), min_size=1, max_size=5).map(b".".join)
_queues = st.sampled_from([b"", b"", b"q", b"p"])


class InterestTwin(RuleBasedStateMachine):
    """Subscribe, unsubscribe and match in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.interest = Interest()
        self.subs: list[Subscription] = []

    @rule(subject=_subjects.filter(is_valid), queue=_queues)
    def subscribe(self, subject: bytes, queue: bytes) -> None:
        sub = Subscription(subject, queue)
        self.subs.append(sub)
        self.interest.insert(sub)

    @rule(which=st.integers(0, 100))
    def unsubscribe(self, which: int) -> None:
        if self.subs:
            sub = self.subs.pop(which % len(self.subs))
            self.interest.remove(sub)
            self.interest.remove(sub)  # a second time changes nothing

    @rule(subject=_published)
    def match(self, subject: bytes) -> None:
        found = [sub for holder in self.interest.match(subject) for sub in holder]
        assert len(found) == len(set(found))
        assert set(found) == {sub for sub in self.subs if matches(subject, sub.subject)}

    @invariant()
    def counts(self) -> None:
        assert self.interest.count == len(self.subs) == len(list(self.interest))

    def teardown(self) -> None:
        for sub in self.subs:
            self.interest.remove(sub)
        assert list(self.interest) == []
        assert self.interest.match(b"a.b") == []


TestInterest = InterestTwin.TestCase
TestInterest.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
