"""What a node's JetStream holds and has done, in totals. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount
    from nimsnats.jetstream.api.dispatch import ApiDispatcher


@dataclass(slots=True)
class JetStreamStats:
    """Totals of a node, for the monitor. Sizes in bytes."""

    accounts: int
    streams: int
    consumers: int
    messages: int
    bytes: int
    memory: int
    file: int
    reserved_memory: int
    reserved_file: int
    api_total: int
    api_errors: int


def totals(accounts: Iterable[JetStreamAccount], dispatchers: Iterable[ApiDispatcher]) -> JetStreamStats:
    """Totals over these accounts, and over the requests that were answered."""
    accounts, dispatchers = list(accounts), list(dispatchers)
    streams = [stream for account in accounts for stream in account]
    memory = sum(account.usage()[0] for account in accounts)
    size = sum(stream.store.bytes for stream in streams)
    return JetStreamStats(
        accounts=len(accounts),
        streams=len(streams),
        consumers=sum(len(stream.consumers) for stream in streams),
        messages=sum(stream.store.messages for stream in streams),
        bytes=size,
        memory=memory,
        file=size - memory,
        reserved_memory=sum(account.reserved()[0] for account in accounts),
        reserved_file=sum(account.reserved()[1] for account in accounts),
        api_total=sum(dispatcher.total for dispatcher in dispatchers),
        api_errors=sum(dispatcher.failed for dispatcher in dispatchers),
    )
