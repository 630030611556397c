"""Nodes that start while the registry is down, each with a forest of its own, and find each other when it is back."""

from __future__ import annotations

from pathlib import Path

import pytest
from nats.js.api import ConsumerConfig

from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from tests.broker.peer import until
from tests.forest.events import succeeded
from tests.jetstream.nodes import HubNode

STREAMS = ["HUMUS", "KV_SOIL", "RIVER", "WIND"]


@pytest.mark.parametrize("used", ["neither", "both"])
async def test_fresh_forests_become_one_unless_both_were_used(tmp_path: Path, used: str) -> None:
    hub = MemoryHub(Runtime.real())
    hub.fail()
    older, younger = (HubNode(tmp_path, name, hub) for name in ("n1", "n2"))
    for node in (older, younger):
        node.settings.forest.enabled = True
    async with older, younger:
        assert all(sorted(node.engine.accounts["$G"].streams) == STREAMS for node in (older, younger))
        clients = [await node.client() for node in (older, younger)]
        if used == "both":
            await clients[1].jetstream().publish("river.somewhere", b"x")
            # nothing but a consumer of somebody else's, yet it would be missed
            await clients[0].jetstream().add_consumer("HUMUS", ConsumerConfig(durable_name="mine"))
        hub.heal()
        if used == "both":
            await until(lambda: _conflicts(older) == ["n2"] and _conflicts(younger) == ["n1"])
            assert len(older.engine.meta.group.members) == len(younger.engine.meta.group.members) == 1
            return
        meta = older.engine.meta.group.name
        await until(lambda: all(len(node.engine.meta.group.members) == 2 for node in (older, younger)))
        assert older.engine.meta.group.name == younger.engine.meta.group.name == meta, "the wrong one gave way"
        await until(lambda: all(_complete(node) for node in (older, younger)))
        for at, client in enumerate(clients):  # what comes in on either node flows to the end
            await client.jetstream().publish("river.stripe.webhook", succeeded(f"ch_{at}"))
        await until(lambda: all(node.served("KV_SOIL").stream.store.messages >= 2 for node in (older, younger)))  # type: ignore[union-attr]


def _conflicts(node: HubNode) -> list[str]:
    page = node._cluster_page()
    return page["cluster"].get("conflicts", [])


def _complete(node: HubNode) -> bool:
    served = [node.served(name) for name in STREAMS]
    return all(one is not None and len(one.stream.group.members) == 2 for one in served)
