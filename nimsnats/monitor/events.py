"""What a server tells the system account unasked: clients that come, go or are refused, its figures, its end.

Owns the events and the timer of `STATSZ`. Nothing is built while nobody in the system account listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from nimsnats.broker.account import Account
from nimsnats.broker.client import ClientConnection
from nimsnats.identity import nuid
from nimsnats.jetstream.api.decode import encode
from nimsnats.jetstream.clock import format_time
from nimsnats.monitor.accountz import account_traffic
from nimsnats.monitor.format import JsonObject, present
from nimsnats.monitor.statsz import statsz
from nimsnats.monitor.view import NodeView

_ADVISORY: Final = "io.nats.server.advisory.v1."
_FIRST_STATSZ: Final = 0.25
_STATSZ_PERIOD: Final = 10.0
"""Seconds between two `STATSZ`; the first ones come quicker, each after twice the time."""
_CONNECTIONS_PERIOD: Final = 30.0
"""Seconds after which the connections of accounts are told again, for those who have missed the change."""


class ServerEvents:
    """Publishes one server's events between `start` and `stop`. `server` makes the `server` object of a message."""

    def __init__(self, view: NodeView, server: Callable[[], JsonObject]) -> None:
        self._view = view
        self._server = server
        self._account = view.broker.system_account
        self._timer: asyncio.TimerHandle | None = None
        self._heartbeat: asyncio.TimerHandle | None = None
        self._own = f"$SYS.SERVER.{view.broker.server_id}"

    def start(self) -> None:
        """Begin to tell."""
        self._view.broker.client_listeners.append(self)
        self._later(_FIRST_STATSZ)
        self._beat_later()

    def stop(self) -> None:
        """The server ends: say so. Idempotent."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        self._view.broker.client_listeners.remove(self)
        self._tell(f"{self._own}.SHUTDOWN", lambda: {"server": self._server()})

    def lame_duck(self) -> None:
        """The server begins to send its clients away."""
        self._tell(f"{self._own}.LAMEDUCK", lambda: {"server": self._server()})

    def connected(self, client: ClientConnection) -> None:
        """A client has introduced itself and was let in."""
        self._tell(
            f"$SYS.ACCOUNT.{client.account.name}.CONNECT",
            lambda: {**self._advisory("client_connect"), "client": _describe(client)},
        )
        self._tell_connections(client.account)

    def disconnected(self, client: ClientConnection) -> None:
        """A client that had been let in is gone."""
        self._tell(f"$SYS.ACCOUNT.{client.account.name}.DISCONNECT", lambda: self._end(client))
        self._tell_connections(client.account)

    def refused(self, client: ClientConnection) -> None:
        """A client's credentials were not accepted."""
        for subject in (f"{self._own}.CLIENT.AUTH.ERR", "$SYS.ACCOUNT.CLIENT.AUTH.ERR"):
            self._tell(subject, lambda: {**self._end(client), "reason": "Authentication Failure"})

    def connections(self, account: Account) -> JsonObject:
        """How many clients an account has here, and their traffic."""
        return {**self._advisory("account_connections"), **account_traffic(self._view, account)}

    def _tell_connections(self, account: Account) -> None:
        if account is self._view.broker.global_account:
            return  # as nats-server: it counts for named accounts only
        for subject in (f"$SYS.ACCOUNT.{account.name}.SERVER.CONNS", f"$SYS.SERVER.ACCOUNT.{account.name}.CONNS"):
            self._tell(subject, lambda: self.connections(account))

    def _end(self, client: ClientConnection) -> JsonObject:
        """`sent` is what the client has sent, `received` what it has received."""
        return {
            **self._advisory("client_disconnect"),
            "client": _describe(client, client.stop_ns or self._view.now_ns()),
            "sent": {"msgs": client.in_msgs, "bytes": client.in_bytes},
            "received": {"msgs": client.out_msgs, "bytes": client.out_bytes},
            "reason": client.reason.value if client.reason is not None else "",
        }

    def _advisory(self, kind: str) -> JsonObject:
        return {
            "type": _ADVISORY + kind,
            "id": nuid(self._view.broker.runtime.random),
            "timestamp": format_time(self._view.now_ns()),
            "server": self._server(),
        }

    def _tell(self, subject: str, build: Callable[[], JsonObject]) -> None:
        if self._account.has_interest(subject.encode()):
            try:
                self._account.publish(subject.encode(), encode(build()))
            except Exception as error:  # what happens goes on without its report
                self._view.broker.runtime.fence.caught(build, error)

    def _beat_later(self) -> None:
        self._heartbeat = self._view.broker.runtime.call_later(_CONNECTIONS_PERIOD, self._beat)

    def _beat(self) -> None:
        self._beat_later()
        for account in list(self._view.broker.accounts.values()):
            if account.clients:
                self._tell_connections(account)

    def _later(self, delay: float) -> None:
        self._timer = self._view.broker.runtime.call_later(delay, self._tick, min(2 * delay, _STATSZ_PERIOD))

    def _tick(self, delay: float) -> None:
        self._later(delay)
        self._tell(f"{self._own}.STATSZ", lambda: {"server": self._server(), "statsz": statsz(self._view)})


def _describe(client: ClientConnection, stop_ns: int = 0) -> JsonObject:
    """The `client` object of an event; whoever was refused is named as it named itself."""
    account, options = client.account.name, client.options
    user = client.identity.user if client.identity is not None else options.user
    return {
        "start": format_time(client.start_ns),
        "host": client.ip,
        "id": client.cid,
        "acc": account,
        **present({"user": user, "name": options.name, "lang": options.lang, "ver": options.version}),
        **present({"rtt": round(client.rtt * 1e9)}),
        **({"stop": format_time(stop_ns)} if stop_ns else {}),
        "name_tag": account,
        "kind": client.kind,
        "client_type": "nats",
    }
