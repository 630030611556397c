"""`/subsz`: the subscription lists, counted and on request listed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nimsnats.broker.account import Account
from nimsnats.broker.subscription import Subscription
from nimsnats.jetstream.clock import format_time
from nimsnats.monitor.format import JsonObject, present
from nimsnats.monitor.query import ParameterError
from nimsnats.monitor.view import NodeView
from nimsnats.protocol.subject import is_literal, matches

DEFAULT_LIMIT = 1024


def subsz(
    view: NodeView,
    *,
    subscriptions: bool = False,
    offset: int = 0,
    limit: int = 0,
    account: str = "",
    test: str = "",
) -> JsonObject:
    """Statistics over all accounts, or one; with `subscriptions` a page of those that `test` would reach.

    Raises ParameterError.
    """
    offset, limit = max(offset, 0), limit if limit > 0 else DEFAULT_LIMIT
    if test and not is_literal(test.encode()):
        raise ParameterError(f"invalid test subject, must be valid publish subject: {test}")
    accounts = [held for held in view.broker.accounts.values() if account in ("", held.name)]
    answer: JsonObject = {
        "server_id": view.broker.server_id,
        "now": format_time(view.now_ns()),
        **interest_stats(accounts),
        "total": 0,
        "offset": offset,
        "limit": limit,
    }
    if subscriptions:
        page: list[JsonObject] = []
        for number, (held, sub) in enumerate(_wanted(accounts, test.encode())):
            answer["total"] = number + 1
            if offset <= number < offset + limit:
                page.append(detail(sub, held))
        answer |= present({"subscriptions_list": page})
    return answer


def _wanted(accounts: Iterable[Account], test: bytes) -> Iterator[tuple[Account, Subscription]]:
    for held in accounts:
        for sub in held.interest:
            if not test or matches(test, sub.subject):
                yield held, sub


def interest_stats(accounts: Iterable[Account]) -> JsonObject:
    """`sublist_stats`, summed over accounts. Cache figures are zero: what is cached here is a plan, not a match."""
    interests = [account.interest for account in accounts]
    return {
        "num_subscriptions": sum(interest.count for interest in interests),
        "num_cache": 0,
        "num_inserts": sum(interest.inserts for interest in interests),
        "num_removes": sum(interest.removes for interest in interests),
        "num_matches": sum(interest.matches for interest in interests),
        "cache_hit_rate": 0,
        "max_fanout": 0,
        "avg_fanout": 0,
    }


def detail(sub: Subscription, account: Account | None = None, cid: int = 0) -> JsonObject:
    """One subscription; internal ones show cid 0. `account` adds the account fields, `cid` is that of a client that is
    gone."""
    client = sub.client
    head = {"account": account.name, "account_tag": account.name} if account is not None else {}
    return {
        **head,
        "subject": sub.subject.decode("utf-8", "replace"),
        **present({"qgroup": sub.queue.decode("utf-8", "replace")}),
        "sid": sub.sid.decode("utf-8", "replace"),
        "msgs": sub.delivered,
        **present({"max": sub.limit}),
        "cid": client.cid if client is not None else cid,
    }
