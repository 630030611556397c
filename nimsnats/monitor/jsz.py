"""`/jsz`: JetStream's totals, and on request accounts, streams and consumers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from nimsnats.jetstream.clock import format_time
from nimsnats.jetstream.info import stream_state
from nimsnats.monitor.clusterz import meta_block
from nimsnats.monitor.format import JsonObject, present, seconds_ns
from nimsnats.monitor.process import machine_bytes
from nimsnats.monitor.query import NotMeant, ParameterError
from nimsnats.monitor.view import NodeView
from nimsnats.storage.space import room_of
from nimsnats.version import API_LEVEL

if TYPE_CHECKING:
    from nimsnats.jetstream.account import JetStreamAccount
    from nimsnats.jetstream.engine import JetStream
    from nimsnats.jetstream.stream import Stream

DEFAULT_LIMIT: Final = 1024
_UNLIMITED: Final = (1 << 64) - 1


def jsz(
    view: NodeView,
    *,
    account: str = "",
    accounts: bool = False,
    streams: bool = False,
    consumer: bool = False,
    direct_consumer: bool = False,
    config: bool = False,
    leader_only: bool = False,
    offset: int = 0,
    limit: int = 0,
    raft: bool = False,
    stream_leader_only: bool = False,
) -> JsonObject:
    """Totals, with as much detail as asked for. Asking for consumers implies streams, for streams implies accounts."""
    if (
        leader_only
        and view.jetstream is not None
        and view.jetstream.peers.several
        and not view.jetstream.meta.group.leading
    ):
        raise NotMeant("filtered response: not leader")
    offset, limit = max(offset, 0), limit if limit > 0 else DEFAULT_LIMIT
    streams = streams or consumer
    head: JsonObject = {**jetstream_stats(view), "server_id": view.broker.server_id, "now": format_time(view.now_ns())}
    if view.jetstream is None:
        nothing = {"streams": 0, "consumers": 0, "messages": 0, "bytes": 0, "total": 0}
        return {**head, "disabled": True, "config": {"max_memory": 0, "max_storage": 0}, **nothing}
    answer: JsonObject = {
        **head,
        "config": jetstream_config(view),
        "limits": jetstream_limits(),
        **_totals(view, raft=raft),
        **present({"meta_cluster": meta_block(view)}),
    }
    held = view.jetstream.accounts
    shown: list[JetStreamAccount] = []
    if account:
        shown = [held[account]] if account in held else []
    elif accounts or streams:
        shown = list(islice(held.values(), min(offset, len(held)), min(offset + limit, len(held))))
    if shown:
        wanted = _Detail(streams, consumer, config, raft, stream_leader_only)
        answer["account_details"] = [_account(view, one, wanted) for one in shown]
    answer["total"] = len(held)
    return answer


def account_jsz(view: NodeView, name: str) -> JsonObject:
    """One account, as `$SYS.REQ.ACCOUNT.<name>.JSZ` answers. Raises ParameterError when it has no JetStream."""
    if view.jetstream is None:
        raise ParameterError("jetstream not enabled")
    account = view.jetstream.accounts.get(name)
    if account is None:
        raise ParameterError(f'account "{name}" not jetstream enabled')
    return _account(view, account, _Detail())


def jetstream_stats(view: NodeView) -> JsonObject:
    """Usage of the whole server."""
    if view.jetstream is None:
        usage = {"memory": 0, "storage": 0, "reserved_memory": 0, "reserved_storage": 0}
        return {**usage, "accounts": 0, "ha_assets": 0, "api": {"level": 0, "total": 0, "errors": 0}}
    stats = view.jetstream.stats()
    return {
        "memory": stats.memory,
        "storage": stats.file,
        "reserved_memory": stats.reserved_memory,
        "reserved_storage": stats.reserved_file,
        "accounts": stats.accounts,
        "ha_assets": sum(len(group.members) > 1 for group in view.jetstream.host.groups()),
        "api": {"level": API_LEVEL, "total": stats.api_total, "errors": stats.api_errors},
    }


def jetstream_config(view: NodeView) -> JsonObject:
    """Settings. `sync_interval` 0 is this server's default: nothing is acknowledged before it is synced.

    Where nothing is set the limit is the machine's, as tools that compare use with it expect.
    """
    assert view.jetstream is not None
    options = view.jetstream.options
    return {
        "max_memory": options.max_memory if options.max_memory >= 0 else machine_bytes(),
        "max_storage": options.max_file if options.max_file >= 0 else _room(view),
        "store_dir": str(options.store_dir),
        **present({"sync_interval": 0 if options.sync_always else seconds_ns(options.sync_interval)}),
        **present({"sync_always": options.sync_always, "domain": options.domain, "strict": options.strict}),
    }


def _room(view: NodeView) -> int:
    """What streams take on the disk, and what they may still take."""
    assert view.jetstream is not None
    try:
        return view.jetstream.stats().file + room_of(view.jetstream.options.store_dir)
    except OSError:
        return -1


def jetstream_limits() -> JsonObject:
    """Limits that the configuration sets for all accounts: none."""
    return {}


def _totals(view: NodeView, *, raft: bool) -> JsonObject:
    assert view.jetstream is not None
    stats = view.jetstream.stats()
    streams = [stream for account in view.jetstream.accounts.values() for stream in account] if raft else []
    leading = [stream for stream in streams if stream.group.leading]
    return {
        "streams": stats.streams,
        **present({"streams_leader": len(leading)}),
        "consumers": stats.consumers,
        **present({"consumers_leader": sum(len(stream.consumers) for stream in leading)}),
        "messages": stats.messages,
        "bytes": stats.bytes,
    }


@dataclass(frozen=True, slots=True)
class _Detail:
    """What is to be shown of an account."""

    streams: bool = False
    consumers: bool = False
    config: bool = False
    raft: bool = False
    led_only: bool = False


def _account(view: NodeView, account: JetStreamAccount, wanted: _Detail) -> JsonObject:
    assert view.jetstream is not None
    memory, storage = account.usage()
    requests, errors = view.jetstream.api_requests(account.name)
    detail: JsonObject = {
        "name": account.name,
        "id": account.name,
        "memory": memory,
        "storage": storage,
        "reserved_memory": _UNLIMITED,
        "reserved_storage": _UNLIMITED,
        "accounts": 0,
        "ha_assets": 0,
        "api": {"level": 0, "total": requests, "errors": errors},
    }
    if wanted.streams:
        shown = [stream for stream in account if stream.leading or not wanted.led_only]
        detail |= present({"stream_detail": [_stream(view.jetstream, stream, wanted) for stream in shown]})
    return detail


def _stream(jetstream: JetStream, stream: Stream, wanted: _Detail) -> JsonObject:
    detail: JsonObject = {
        "name": stream.name,
        "created": format_time(stream.created),
        "cluster": jetstream.peers.cluster(stream.group, stream.led_since),
        **({"config": stream.config.to_json(dynamic=False)} if wanted.config else {}),
        "state": stream_state(stream),
    }
    if wanted.consumers:
        held = [stream.consumers.get(name) for name in stream.consumers.names()]
        detail |= present({"consumer_detail": [one.info(listed=True) for one in held if one is not None]})
    if wanted.raft and jetstream.peers.several:
        group = stream.group.name
        detail["stream_raft_group"] = group
        groups = [{"name": name, "raft_group": group} for name in stream.consumers.names()]
        detail |= present({"consumer_raft_groups": groups if wanted.consumers else []})
    return detail
