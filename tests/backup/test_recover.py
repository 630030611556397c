"""`nimsnats recover`: who is left alone goes on with what it has, and who comes back all the same does no harm."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from nimsnats.jetstream.kinds import META_GIVE_UP
from nimsnats.jetstream.meta import Meta
from nimsnats.raft.group import HostedGroup
from nimsnats.raft.machine import Entry
from nimsnats.raft.membership import Membership
from nimsnats.raft.transport import member_name
from nimsnats.registry.memory import MemoryHub
from nimsnats.runtime import Runtime
from nimsnats.storage import Unwritable, open_database
from nimsnats.storage.directory import Directory
from tests.backup.test_commands import Run, fingerprint, run
from tests.broker.peer import until
from tests.jetstream.archives import ask, snapshot
from tests.jetstream.nodes import HubNode
from tests.security.test_entries import CATALOGUE_POISON, poison

__all__ = ["run"]


async def publish(node: HubNode, *payloads: bytes) -> None:
    """Publish to stream S, each payload acknowledged."""
    client = await node.connect()
    for payload in payloads:
        await client.jetstream().publish("s.1", payload)
    await client.close()


async def held(node: HubNode) -> list[bytes]:
    client = await node.connect()
    try:
        return [message.payload for message in (await snapshot(client, "S")).messages]
    finally:
        await client.close()


async def cluster(stack: AsyncExitStack, directory: Path, hub: MemoryHub, *names: str) -> list[HubNode]:
    """Nodes that are one cluster, with a stream on each of them and a consumer that has seen some of it."""
    nodes = [HubNode(directory, name, hub) for name in names]
    for node in nodes:
        await stack.enter_async_context(node)
    client = await nodes[0].connect()
    config = {"name": "S", "subjects": ["s.*"], "num_replicas": len(names)}
    assert "error" not in await ask(client, "STREAM.CREATE.S", config)
    js = client.jetstream()
    for n in range(20):
        await js.publish("s.1", b"%d" % n)
    await js.delete_msg("S", 5)
    await js.add_consumer("S", durable_name="C", ack_policy="explicit", ack_wait=600)
    puller = await js.pull_subscribe_bind("C", "S")
    for message in (await puller.fetch(6))[:4]:
        await message.ack_sync()
    await client.close()
    await until(lambda: all(node.served("S") is not None for node in nodes))
    await until(lambda: all(node.served("S").stream.store.last_seq == 20 for node in nodes))
    return nodes


async def recovered(run: Run, data: Path) -> str:
    """Recover a stopped node's directory, looking first; what the look told."""
    before = fingerprint(data)
    code, told, err = await run("recover", "--data", data)
    assert code == 0 and "Nothing was changed" in told, (told, err)
    assert fingerprint(data) == before
    code, out, err = await run("recover", "--data", data, "--yes")
    assert code == 0 and f"Done: {data.name} is the only member" in out, (out, err)
    code, out, err = await run("verify", data)
    assert code == 0, (out, err)
    assert "voters" in out and all(node not in out for node in {"n1@", "n2@", "n3@"} - {f"{data.name}@"})
    return told


async def goes_on_alone(node: HubNode, last: int, payloads: list[bytes]) -> None:
    """The stream and its consumer are as they were, and take messages."""
    await until(lambda: node.leads("S"))
    client = await node.connect()
    taken = await snapshot(client, "S")
    assert [message.payload for message in taken.messages] == payloads
    info = await ask(client, "CONSUMER.INFO.S.C")
    assert info["delivered"]["stream_seq"] == 7 and info["ack_floor"]["stream_seq"] == 5
    assert info["num_ack_pending"] == 2
    assert (await client.jetstream().publish("s.1", b"after")).seq == last + 1
    await client.close()


SENT = [b"%d" % n for n in range(20) if n != 4]


async def test_one_of_two_goes_on_and_the_other_begins_anew(tmp_path: Path, run: Run) -> None:
    hub = MemoryHub(Runtime.real())
    async with AsyncExitStack() as stack:
        for node in await cluster(stack, tmp_path, hub, "n1", "n2"):
            await node.kill()
    told = await recovered(run, tmp_path / "n1")
    assert "stream S: 19 messages, sequences 1 to 20, 1 consumers" in told and "shared with n2" in told
    code, out, _ = await run("recover", "--data", tmp_path / "n1", "--yes")
    assert code == 0 and "Nothing is to be recovered" in out
    shutil.rmtree(tmp_path / "n2")
    async with HubNode(tmp_path, "n1", hub) as alone:
        await goes_on_alone(alone, 20, SENT)
        async with HubNode(tmp_path, "n2", hub) as new:
            await until(lambda: (served := new.served("S")) and served.stream.store.messages == 20)
            await until(lambda: len(alone.served("S").stream.group.members) == 2)


@pytest.mark.parametrize("point", ["forget_identity", "write_identity"])
async def test_a_recovery_that_is_cut_short_is_whole_or_has_not_been(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """The process dies between the steps that change whose directory it is."""
    data = tmp_path / "n1"
    await shared_with_nobody_here(data)
    step = getattr(Directory, point)

    def die(directory: Directory, *what: Any) -> None:
        if point == "forget_identity":
            step(directory)
        raise Unwritable("cut short")

    with monkeypatch.context() as patched:
        patched.setattr(Directory, point, die)
        assert (await run("recover", "--data", data, "--yes"))[0] == 1
    code, told, _ = await run("recover", "--data", data, "--yes")
    assert code == 0 and ("shared with n2, n3" in told) == (point == "forget_identity")
    async with HubNode(tmp_path, "n1", MemoryHub(Runtime.real())) as node:
        await until(lambda: node.leads("S"))
        assert node.served("S").stream.store.last_seq == 3


async def test_damage_that_nobody_can_mend_any_more_is_named(tmp_path: Path, run: Run) -> None:
    data = tmp_path / "n1"
    await shared_with_nobody_here(data)
    database = data / "nimsnats.db"
    whole = database.read_bytes()
    at = whole.index(b"second message") + 2
    database.write_bytes(whole[:at] + b"X" + whole[at + 1 :])
    if os.geteuid() == 0:
        os.chown(data, 65534, 65534)
        code, _, err = await run("recover", "--data", data, "--yes")
        assert code == 1 and "belongs to user" in err
        os.chown(data, 0, 0)
    code, _, err = await run("recover", "--data", data, "--yes")
    assert code == 0 and "is damaged" in err
    async with HubNode(tmp_path, "n1", MemoryHub(Runtime.real())) as node:
        await until(lambda: node.leads("S"))
        client = await node.connect()
        assert (await ask(client, "STREAM.INFO.S"))["state"]["lost"]["msgs"] == [2]
        assert [one.payload for one in (await snapshot(client, "S")).messages] == [b"1", b"3"]
        assert (await client.jetstream().publish("s.1", b"4")).seq == 4
        await client.close()


async def test_an_entry_of_the_catalogue_that_cannot_be_applied_costs_no_stream(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that does not say what it must nor one that meets an error of ours: a node refuses both, too."""
    data = tmp_path / "n1"
    await shared_with_nobody_here(data, CATALOGUE_POISON)
    applied = Meta.apply

    def stumbling(meta: Meta, entry: Entry) -> None:
        if entry.kind == META_GIVE_UP:
            raise KeyError("unforeseen")
        applied(meta, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Meta, "apply", stumbling)
        code, _, err = await run("recover", "--data", data, "--yes")
    assert code == 0 and err.count("is refused") == len(CATALOGUE_POISON) and "KeyError" in err
    async with HubNode(tmp_path, "n1", MemoryHub(Runtime.real())) as node:
        await until(lambda: node.leads("S"))
        assert node.served("S").stream.store.last_seq == 3


async def shared_with_nobody_here(data: Path, catalogue: Sequence[tuple[int, bytes]] = ()) -> None:
    """What a member of three is left with: made of a node alone, so that the others need not be started."""
    hub = MemoryHub(Runtime.real())
    async with HubNode(data.parent, data.name, hub) as node:
        client = await node.connect()
        await client.jetstream().add_stream(name="S", subjects=["s.*"])
        await client.close()
        await publish(node, b"1", b"second message", b"3")
        meta = node.engine.meta
        assert isinstance(meta.group, HostedGroup)
        poison(meta.group, list(catalogue))
        await until(lambda: meta.refusals.count == len(catalogue))
        if catalogue:
            await node.kill()  # as a crash: the entries stay in the log
    database = await open_database(data, Runtime.real())
    me = member_name(database.identity.node, database.identity.instance)
    for name in database.group_names():
        stored = await database.load_group(name)
        assert stored is not None
        database.set_members(stored.id, Membership(frozenset({me, "n2@b", "n3@c"})).encode())
    done = asyncio.get_running_loop().create_future()
    database.sync(done.set_result)
    assert await done is None
    await database.close()
