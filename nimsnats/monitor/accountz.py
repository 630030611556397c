"""`/accountz` and `/accstatz`: accounts, and their traffic."""

from __future__ import annotations

from collections.abc import Sequence

from nimsnats.broker.account import Account
from nimsnats.jetstream.clock import format_time
from nimsnats.monitor.format import JsonObject, present
from nimsnats.monitor.query import ParameterError
from nimsnats.monitor.subsz import interest_stats
from nimsnats.monitor.view import NodeView


def accountz(view: NodeView, *, account: str = "") -> JsonObject:
    """All accounts by name, or one in detail. Raises ParameterError for an unknown one."""
    answer: JsonObject = {
        "server_id": view.broker.server_id,
        "now": format_time(view.now_ns()),
        "system_account": view.broker.system_account.name,
    }
    if not account:
        answer["accounts"] = list(view.broker.accounts)
        return answer
    found = view.broker.accounts.get(account)
    if found is None:
        raise ParameterError(f"Account {account} does not exist")
    answer["account_detail"] = account_detail(view, found)
    return answer


def account_detail(view: NodeView, account: Account) -> JsonObject:
    """One account; also the answer to `$SYS.REQ.ACCOUNT.<name>.INFO`."""
    system = account is view.broker.system_account
    return {
        "account_name": account.name,
        "update_time": format_time(view.started_ns),
        **present({"is_system": system}),
        "expired": False,
        "complete": True,
        "jetstream_enabled": view.jetstream is not None and account.name in view.jetstream.accounts,
        "leafnode_connections": 0,
        "client_connections": len(account.clients),
        "subscriptions": account.interest.count,
        "name_tag": account.name,
        "sublist_stats": interest_stats([account]),
    }


def accstatz(view: NodeView, *, accounts: Sequence[str] = (), include_unused: bool = False) -> JsonObject:
    """Traffic by account; those without connections only with `include_unused`."""
    return {
        "server_id": view.broker.server_id,
        "now": format_time(view.now_ns()),
        "account_statz": [
            account_traffic(view, account)
            for account in view.broker.accounts.values()
            if (not accounts or account.name in accounts) and (include_unused or account.clients)
        ],
    }


def account_traffic(view: NodeView, account: Account) -> JsonObject:
    """One account's connections and messages; `sent` is what its clients received."""
    traffic = view.traffic(account)
    return {
        "acc": account.name,
        "name": account.name,
        "conns": len(account.clients),
        "leafnodes": 0,
        "total_conns": len(account.clients),
        "num_subscriptions": account.interest.count,
        "sent": _flow(traffic.out_msgs, traffic.out_bytes),
        "received": _flow(traffic.in_msgs, traffic.in_bytes),
        "slow_consumers": traffic.slow_consumers,
    }


def _flow(messages: int, size: int) -> JsonObject:
    nothing = {"msgs": 0, "bytes": 0}
    return {"msgs": messages, "bytes": size, "gateways": nothing, "routes": nothing, "leafs": nothing}
