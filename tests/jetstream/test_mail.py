"""Questions between nodes: an answer belongs to the process that asked."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from nimsnats.broker.options import BrokerOptions
from nimsnats.broker.server import Broker
from nimsnats.jetstream.mail import Mail, Unreachable
from nimsnats.runtime import Runtime

LOG = logging.getLogger("tests.mail")


async def test_an_answer_to_an_earlier_process_answers_nothing_of_the_next() -> None:
    runtime = Runtime.real()
    system = Broker(BrokerOptions(host="127.0.0.1", port=-1), runtime).system_account
    other = Mail(system, "n2@b", runtime, LOG)
    asked: list[str] = []
    heard = asyncio.Event()
    late: asyncio.Future[str] = runtime.loop.create_future()

    async def answer(sender: str, body: Any) -> str:
        asked.append(body)
        heard.set()
        return await late if body == "first" else "second"

    other.listen("what", answer)
    former = Mail(system, "n1@a", runtime, LOG)
    waiting = asyncio.create_task(former.ask("n2@b", "what", "first", 60))
    await heard.wait()
    waiting.cancel()
    await former.close()
    present = Mail(system, "n1@a", runtime, LOG)
    silent = asyncio.create_task(present.ask("n2@b", "nobody listens to this", "now", 0.2))
    await asyncio.sleep(0)
    late.set_result("to the first")
    with pytest.raises(Unreachable):
        await silent
    assert await present.ask("n2@b", "what", "second") == "second"
    assert asked == ["first", "second"]
    await present.close()
    await other.close()
