"""kill -9 and then a damaged disk: what is lost is named, what is readable is right, no sequence comes back."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.js.client import JetStreamContext
from nats.js.errors import APIError

from nimsnats.storage.layout import PAGE_SIZE
from tests.chaos.process import SERVER_READY, NodeProcess
from tests.chaos.workload import STREAM, Ledger, connect, make_order_stream, publish_orders, read_stream

Harm = Callable[[Path, random.Random], None]


def _only(data_dir: Path, suffix: str) -> Path:
    (found,) = [path for path in data_dir.rglob(f"*{suffix}") if path.is_file()]
    return found


def log_end(wal: Path) -> int:
    """Where the frames of the write-ahead log end and the zeros begin that are kept ahead of it: a frame of the present
    generation has the salts of the header (SQLite fileformat2, 4.1)."""
    content = wal.read_bytes()
    at = 32
    while content[at + 8 : at + 16] == content[16:24]:
        at += 24 + PAGE_SIZE
    return min(at, len(content))


def tear_wal(data_dir: Path, chance: random.Random) -> None:
    """The last pages of the write-ahead log never reached the disk."""
    wal = _only(data_dir, "-wal")
    end = log_end(wal)
    with wal.open("r+b") as file:
        file.truncate(end - chance.randrange(1, 40_000))


def _flip(path: Path, chance: random.Random, first: int, size: int, flips: int) -> None:
    with path.open("r+b") as file:
        for _ in range(flips):
            offset = chance.randrange(first, size)
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ (1 << chance.randrange(8))]))


def flip_wal(data_dir: Path, chance: random.Random) -> None:
    """A few bits of the write-ahead log have turned."""
    wal = _only(data_dir, "-wal")
    end = log_end(wal)
    _flip(wal, chance, end // 2, end, 3)


def flip_database(data_dir: Path, chance: random.Random) -> None:
    """A few bits of the database itself have turned (the node had stopped in order, so it holds everything)."""
    database = _only(data_dir, ".db")
    _flip(database, chance, 100, database.stat().st_size, 3)


def spoil_messages(data_dir: Path, chance: random.Random) -> None:
    """Bits have turned in a few messages in the middle of the log, wherever the files hold them."""
    files = [path for path in data_dir.rglob("nimsnats.db*") if path.suffix != ".db-shm"]
    contents = {path: bytearray(path.read_bytes()) for path in files}
    found = sorted({name for content in contents.values() for name in re.findall(rb"\d+-\d+\.{20}", content)})
    for name in chance.sample(found, min(6, len(found))):
        for content in contents.values():
            for match in re.finditer(rb"(?<!\d)" + re.escape(name), bytes(content)):
                content[match.end() - 1] ^= 1
    for path, content in contents.items():
        path.write_bytes(content)


async def publish_and_repeat(js: JetStreamContext, ledger: Ledger, worker: int, stop: asyncio.Event) -> None:
    """Publish with acks, 16 at a time, some of them refused for a repeated id or a wrong expectation."""

    async def one(message_id: str, **headers: str) -> None:
        named = {"Nats-Msg-Id": message_id} | {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            ack = await js.publish(f"orders.{worker}", message_id.encode().ljust(200, b"."), timeout=2, headers=named)
        except APIError:
            return
        if not ack.duplicate:
            ledger.publish_acknowledged(ack.seq, message_id)

    number = 0
    while not stop.is_set():
        fresh = [one(f"{worker}-{number + offset}") for offset in range(10)]
        again = [one(f"{worker}-{number - offset}") for offset in range(number and 3)]
        wrong = [one(f"{worker}-{number}-{offset}", Nats_Expected_Last_Sequence="1") for offset in range(3)]
        number += len(fresh)
        await asyncio.gather(*again, *fresh, *wrong)


async def load(node: NodeProcess, ledger: Ledger, messages: int) -> None:
    """Publish about `messages` acknowledged messages, and some that are refused."""
    stop = asyncio.Event()
    client = await connect(node.url)
    if not ledger.published:
        await make_order_stream(client.jetstream())
    work = [
        asyncio.create_task(publish(client.jetstream(), ledger, worker, stop))
        for worker, publish in enumerate((publish_orders, publish_and_repeat, publish_and_repeat))
    ]
    await ledger.published_more(messages)
    stop.set()
    await asyncio.gather(*work)
    # What was refused is told by the next entry, which is on disk before this one is acknowledged.
    await client.jetstream().publish("orders.end", b"end")
    await client.close()


async def lost_sequences(node: NodeProcess) -> frozenset[int]:
    """What the node itself says is lost, from STREAM.INFO."""
    client = await connect(node.url)
    try:
        answer = await client.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout=5)
    finally:
        await client.close()
    return frozenset(json.loads(answer.data)["state"].get("lost", {}).get("msgs") or [])


async def check_after_damage(node: NodeProcess, ledger: Ledger) -> tuple[int, int]:
    """Returns (messages lost and named, messages intact); fails when anything is silently wrong."""
    lost = await lost_sequences(node)
    client = await connect(node.url)
    js = client.jetstream()
    try:
        stored = await read_stream(js, STREAM)
        for seq, message_id in ledger.published.items():
            assert seq in stored or seq in lost, f"acknowledged sequence {seq} is gone and nobody says so"
            if seq in stored:
                assert stored[seq].rstrip(b".") == message_id.encode(), f"sequence {seq} holds another message"
        fresh = await js.publish("orders.after", b"after")
        assert fresh.seq > max(ledger.published), "a sequence was given out twice"
    finally:
        await client.close()
    if lost & ledger.published.keys():
        assert any("[ERR]" in line for line in node.log), "a loss that nobody logged"
    return len(lost), len(stored)


HARMS = [tear_wal, flip_wal, flip_database, spoil_messages]


async def harm_once(data_dir: Path, harm: Harm, seed: int, messages: int) -> tuple[int, int]:
    chance = random.Random(seed)
    ledger = Ledger()
    node = NodeProcess(data_dir, command="server", ready=SERVER_READY)
    try:
        await node.start()
        await load(node, ledger, messages)
        await (node.terminate() if harm is flip_database else node.kill())
        harm(data_dir, chance)
        await node.start()
        return await check_after_damage(node, ledger)
    finally:
        await node.kill()


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
async def test_damage_is_named(tmp_path: Path, harm: Harm) -> None:
    await harm_once(tmp_path, harm, seed=7, messages=600)


@pytest.mark.extended
@pytest.mark.timeout(900)
@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
async def test_damage_is_named_for_many_seeds(tmp_path: Path, harm: Harm) -> None:
    results = [await harm_once(tmp_path / str(seed), harm, seed, messages=3000) for seed in range(20)]
    named = sum(lost for lost, _ in results)
    print(
        f"\n{harm.__name__}: 20 damaged nodes, {named} messages lost and named, {sum(ok for _, ok in results)} intact"
    )
