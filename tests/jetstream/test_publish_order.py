"""What one connection publishes is stored in its order, also where batches come back from one that leads no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nimsnats.jetstream import publish, relay
from tests.broker.peer import Peer, until
from tests.jetstream.trio import trio

ANSWER = relay._ANSWER  # pyright: ignore[reportPrivateUsage]
STREAM = "S"


async def test_what_comes_back_from_the_leader_before_is_stored_in_front_of_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that it has not met the leader is late: by then another one leads, and more has been published."""
    monkeypatch.setattr(publish, "_FAREWELL", 3600.0)
    monkeypatch.setattr(publish, "_ANSWERED", 3600.0)
    async with trio(tmp_path) as nodes:
        await nodes.contexts[0].add_stream(name=STREAM, subjects=["s.*"], num_replicas=3)
        leader = await nodes.led(STREAM)
        follower = next(node for node in nodes.nodes if node.name != leader)
        await until(lambda: all(node.served(STREAM) for node in nodes.nodes))
        served = follower.app.streams[STREAM]
        await until(lambda: served.stream.group.leader == leader)
        before = nodes[leader].app.streams[STREAM].ingest._relay  # pyright: ignore[reportPrivateUsage]
        assert before is not None
        late: list[tuple[str, str, Any]] = []
        tell = before._mail.tell  # pyright: ignore[reportPrivateUsage]

        def hold_answers(to: str, what: str, body: Any) -> bool:
            if what != ANSWER:
                return tell(to, what, body)
            late.append((to, what, body))
            return True

        peer = await Peer.connect(follower.server.broker.port)
        with monkeypatch.context() as patched:
            patched.setattr(before._mail, "tell", hold_answers)  # pyright: ignore[reportPrivateUsage]
            patched.setattr(before, "_find", lambda place: None)
            for number in range(2):
                await peer.sync(b"PUB s.%d 0\r\n\r\n" % number)
            await until(lambda: len(late) == 2)
        answer = await nodes.ask(0, f"STREAM.LEADER.STEPDOWN.{STREAM}")
        assert answer.get("success"), answer
        await until(lambda: served.stream.group.leader not in ("", leader))
        for number in range(2, 6):
            await peer.sync(b"PUB s.%d 0\r\n\r\n" % number)
        for _ in range(3):  # time enough to send them, if they were to be
            await nodes.ask(nodes.nodes.index(follower), f"STREAM.INFO.{STREAM}")
        for each in late:
            tell(*each)
        await until(lambda: served.stream.store.last_seq == 6)
        found = [served.stream.subject(seq) for seq in range(1, 7)]
        assert found == [b"s.%d" % number for number in range(6)]
        peer.close()
