"""Which accounts have JetStream, when they come and go, and what the system account may do to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError

from nimsnats import Server
from nimsnats.config import load_server
from nimsnats.config.settings import Settings
from nimsnats.runtime import StartError
from nimsnats.server_flags import parse

_SYSTEM = "SYS { users: [ {user: sys, password: p} ] }"
_A = "A { jetstream: enabled, users: [ {user: a, password: p} ] }"
_B = "B { jetstream: enabled, users: [ {user: b, password: p} ] }"
_B_WITHOUT = "B { users: [ {user: b, password: p} ] }"


def configured(directory: Path, *accounts: str) -> Settings:
    """Settings of a server with these accounts, read from a file as on the command line."""
    lines = [f'listen: "127.0.0.1:-1"\njetstream {{ store_dir: "{directory}" }}\nsystem_account: SYS']
    lines.append(f"accounts {{ {', '.join((_SYSTEM, *accounts))} }}")
    (directory / "server.conf").write_text("\n".join(lines))
    return load_server(parse(["-c", str(directory / "server.conf")])[0], warn=lambda _: None)


async def login(server: Server, user: str) -> Client:
    return await nats.connect(server.url, user=user, password="p", allow_reconnect=False)


async def ask(client: Client, subject: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await client.request(subject, b"", timeout=20)).data)
    return answer


async def ask_patiently(client: Client, subject: str) -> dict[str, Any]:
    try:
        return await ask(client, subject)
    except NoRespondersError:
        return {"error": "nobody there"}


async def test_an_account_is_purged_by_the_system_account(tmp_path: Path) -> None:
    async with Server(configured(tmp_path, _A)) as server:
        client, system = await login(server, "a"), await login(server, "sys")
        for name in ("ONE", "TWO"):
            await client.jetstream().add_stream(name=name, subjects=[name])
        for account in ("A", "NOBODY"):
            answer = await ask(system, f"$JS.API.ACCOUNT.PURGE.{account}")
            assert answer == {"type": "io.nats.jetstream.api.v1.account_purge_response", "initiated": True}
        assert await client.jetstream().streams_info() == []
        await client.jetstream().add_stream(name="ONE", subjects=["ONE"])
        await client.close()
        await system.close()
    async with Server(configured(tmp_path, _B)) as server:  # A is not configured any more, what it stored is there
        system = await login(server, "sys")
        await ask(system, "$JS.API.ACCOUNT.PURGE.A")
        await system.close()
    async with Server(configured(tmp_path, _A)) as server:
        client = await login(server, "a")
        assert await client.jetstream().streams_info() == []
        await client.close()


async def test_an_account_that_does_not_ask_for_jetstream_has_none(tmp_path: Path) -> None:
    async with Server(configured(tmp_path, _A, _B_WITHOUT)) as server:
        client = await login(server, "b")
        error = (await ask(client, "$JS.API.INFO"))["error"]
        assert (error["code"], error["err_code"]) == (503, 10039)
        await client.close()


@pytest.mark.parametrize("before", [(_A,), (_A, _B_WITHOUT)])
async def test_an_account_gets_jetstream_by_a_reload(tmp_path: Path, before: tuple[str, ...]) -> None:
    async with Server(configured(tmp_path, _A, _B)) as server:
        client = await login(server, "b")
        await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
        await client.close()
    async with Server(configured(tmp_path, *before)) as server:
        assert "JetStream for account B" in server.reload(configured(tmp_path, _A, _B))
        client = await login(server, "b")
        while "error" in (names := await ask_patiently(client, "$JS.API.STREAM.NAMES")):
            pass  # what the account had left behind is being opened
        assert names["streams"] == ["KEPT"]
        assert (await client.jetstream().publish("kept", b"")).seq == 1
        await client.close()
        with pytest.raises(StartError, match="taking JetStream away"):
            server.reload(configured(tmp_path, _B))


async def test_an_account_that_comes_into_being_later_has_jetstream(tmp_path: Path) -> None:
    async with Server(store_dir=tmp_path) as server:
        account = server.broker.account("LATER")
        assert account.has_interest(b"$JS.API.INFO") and account.has_interest(b"$SYS.REQ.USER.INFO")
        assert server.jetstream is not None and "LATER" in server.jetstream.accounts
