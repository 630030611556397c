"""The address that others dial, the registry, and the peers that it lists."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, cast

from nimsnats.config import Settings, split_address
from nimsnats.doctor.finding import Finding, ok, problem, warning
from nimsnats.registry import NodeInfo, RegistryError
from nimsnats.registry.address import find_address
from nimsnats.registry.errors import (
    InvalidNodeError,
    RegistryAnswerError,
    RegistryConfigError,
    RegistryRefusedError,
)
from nimsnats.registry.transport import Answer, HttpTransport, RegistryTls, segment
from nimsnats.runtime import Runtime

_PATIENCE: Final = 3.0
_MOST_PEERS: Final = 20
_CLOCK_SLACK: Final = 5.0
_FORBIDDEN: Final = (401, 403)


async def check_address(settings: Settings) -> list[Finding]:
    """What peers will be told to dial."""
    advertise = settings.cluster.advertise
    if not advertise:
        found = await find_address()
        address, text = found.address, f"other nodes are told {found.address} ({found.reason})"
    else:
        host = split_address(advertise)[0] if advertise.count(":") == 1 or "]:" in advertise else advertise.strip("[]")
        loop = asyncio.get_running_loop()
        try:
            resolved = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            text = f"other nodes are told {advertise}, which this machine cannot resolve: {error.strerror or error}"
            return [problem("address", text, "Correct --advertise, or give the name to DNS")]
        address, text = str(resolved[0][4][0]), f"other nodes are told {advertise} (--advertise)"
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        advice = (
            "Name the address that other machines reach: --advertise HOST (NIMSFOREST_FLAGS in the environment file)"
        )
        return [warning("address", f"{text}: only nodes of this machine can connect", advice)]
    return [ok("address", text)]


async def check_registry(settings: Settings, runtime: Runtime) -> list[Finding]:
    """Whether the registry answers, lets us in, agrees about the time, and which peers it lists."""
    registry = settings.registry
    if not registry.url:
        text = "none is named: the node runs its own"
        if settings.monitor.port:
            return [ok("registry", f"{text}, where further nodes can join")]
        advice = "Set NATS_MONITOR_PORT, or name a registry: REGISTRY_URL"
        return [warning("registry", f"{text}, and without a monitor port no further node can join", advice)]
    tls = RegistryTls(registry.ca_file, registry.cert_file, registry.key_file)
    try:
        transport = HttpTransport(
            registry.url,
            runtime.random,
            token=registry.token,
            secret=settings.cluster.password,
            tls=tls,
            timeout=_PATIENCE,
        )
    except RegistryConfigError as error:
        return [problem("registry", str(error), "Correct the registry's settings")]
    try:
        answer = await transport.request("GET", f"/v1/services/{segment(registry.service)}/nodes")
        nodes = _nodes(answer)
    except RegistryRefusedError as error:
        if error.status in _FORBIDDEN:
            advice = "Set REGISTRY_TOKEN to the token that the registry asks for, or NATS_CLUSTER_SECRET to its secret"
        else:
            advice = "Correct REGISTRY_URL: is this a registry's?"
        return [problem("registry", f"{registry.url} {error}", advice)]
    except RegistryAnswerError as error:
        return [problem("registry", f"{registry.url} {error}", "Correct REGISTRY_URL, secret or token")]
    except RegistryError as error:
        advice = (
            "Correct REGISTRY_URL, or start the registry; a firewall may be between. Nodes that run go on without it"
        )
        return [problem("registry", f"{registry.url}: {error}", advice)]
    finally:
        await transport.close()
    others = [node for node in nodes if node.name != settings.node_name]
    names = ", ".join(node.name for node in others[:5]) + (", …" if len(others) > 5 else "")
    found = [ok("registry", f"{registry.url} answers and lists {len(others)} other nodes{names and ': '}{names}")]
    if note := transport.trust.note:
        found.append(warning("registry", note, "See the registry's requirements in DEPLOYMENT.md"))
    if registry.url.startswith("http://") and registry.token and not transport.trust.must_prove:
        advice = "Use https:// unless the network itself is private"
        found.append(warning("registry", "the token travels without TLS", advice))
    return [*found, *_clock(answer, runtime.time_ns()), *await _check_peers(others)]


def _nodes(answer: Answer) -> list[NodeInfo]:
    listed = answer.json()
    nodes: list[NodeInfo] = []
    for entry in cast("list[object]", listed) if isinstance(listed, list) else []:
        try:
            nodes.append(NodeInfo.from_json(entry))
        except InvalidNodeError:
            continue  # the node skips it, too, and says so
    return nodes


def _clock(answer: Answer, now_ns: int) -> list[Finding]:
    try:
        theirs = parsedate_to_datetime(answer.headers.get("Date", ""))
    except (TypeError, ValueError):
        return []
    apart = (datetime.fromtimestamp(now_ns / 1e9, UTC) - theirs.astimezone(UTC)).total_seconds()
    if abs(apart) <= _CLOCK_SLACK:
        return [ok("clock", "agrees with the registry's")]
    side = "ahead of" if apart > 0 else "behind"
    text = f"this machine is {abs(apart):.0f} s {side} the registry"
    return [warning("clock", text, "Let NTP keep both clocks: timedatectl set-ntp true")]


async def _check_peers(peers: Sequence[NodeInfo]) -> list[Finding]:
    """Whether the peers' cluster ports can be reached from here."""
    chosen = peers[:_MOST_PEERS]
    reasons = await asyncio.gather(*(_reach(peer) for peer in chosen))
    found: list[Finding] = []
    for peer, reason in zip(chosen, reasons, strict=True):
        if reason:
            advice = "Open that port in both directions, or correct what that node advertises"
            found.append(warning("peers", f"{peer.name} at {peer.cluster_addr} cannot be reached: {reason}", advice))
        else:
            found.append(ok("peers", f"{peer.name} at {peer.cluster_addr} can be reached"))
    return found


async def _reach(peer: NodeInfo) -> str:
    """Why the peer's cluster port cannot be connected to; empty when it can."""
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(peer.address, peer.port)
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    writer.close()
    return ""
