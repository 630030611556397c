"""The node's ports: free, or in use by whom. Reads the kernel's tables; binds nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nimsnats.config import Settings
from nimsnats.doctor.finding import Finding, ok, problem, warning

_LISTENING: Final = "0A"
_UNPRIVILEGED: Final = 1024


def check_ports(settings: Settings, node: int | None, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """`node` is the pid of the node that runs on this data directory, None when there is none."""
    wanted = {
        "client port": settings.broker.port,
        "cluster port": settings.cluster.port,
        "monitor port": settings.monitor.port,
    }
    variables = {
        "client port": "NATS_CLIENT_PORT",
        "cluster port": "NATS_CLUSTER_PORT",
        "monitor port": "NATS_MONITOR_PORT",
    }
    listening = listeners(proc)
    ephemeral = _ephemeral(proc)
    taken: dict[int, str] = {}
    for name, port in wanted.items():
        change = f"Choose another one with {variables[name]}"
        if port <= 0:
            if port == 0:
                yield warning("ports", f"no {name}: no health, metrics, webhooks or registry", f"Set {variables[name]}")
            continue
        if port in taken:
            yield problem("ports", f"{name} {port} is the {taken[port]} as well", change)
            continue
        taken[port] = name
        if port in listening:
            yield _used(name, port, listening[port], node, change, proc)
        elif port < _unprivileged(proc) and os.geteuid() != 0:
            yield problem("ports", f"{name} {port} is for privileged users", f"{change}, {_UNPRIVILEGED} or above")
        elif ephemeral[0] <= port <= ephemeral[1]:
            text = f"{name} {port} is free, but any outgoing connection may take it"
            yield warning("ports", text, f"{change}, or reserve it: sysctl net.ipv4.ip_local_reserved_ports={port}")
        else:
            yield ok("ports", f"{name} {port} is free")


def _used(name: str, port: int, inode: str, node: int | None, change: str, proc: Path) -> Finding:
    pid = holder(inode, proc)
    if pid is None:
        return problem("ports", f"{name} {port} is in use", f"{change}, or see who it is, as root: ss -ltnp")
    if pid == node:
        return ok("ports", f"{name} {port} is used by the running node (pid {pid})")
    return problem("ports", f"{name} {port} is in use by {_command(pid, proc)} (pid {pid})", f"Stop it. {change}")


def listeners(proc: Path = Path("/proc")) -> dict[int, str]:
    """TCP ports that somebody listens on in this network namespace -> the socket's inode."""
    found: dict[int, str] = {}
    for table in ("tcp", "tcp6"):
        for line in _lines(proc / "net" / table)[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTENING:
                found.setdefault(int(fields[1].rpartition(":")[2], 16), fields[9])
    return found


def holder(inode: str, proc: Path = Path("/proc")) -> int | None:
    """The process that has this socket open, as far as this user may see."""
    wanted = f"socket:[{inode}]"
    for process in proc.iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(os.readlink(entry) == wanted for entry in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue  # gone in the meantime, or not ours to see
    return None


def _command(pid: int, proc: Path) -> str:
    return "".join(_lines(proc / str(pid) / "comm")) or "a process"


def _ephemeral(proc: Path) -> tuple[int, int]:
    fields = " ".join(_lines(proc / "sys/net/ipv4/ip_local_port_range")).split()
    return (int(fields[0]), int(fields[1])) if len(fields) == 2 else (65536, 65536)


def _unprivileged(proc: Path) -> int:
    text = "".join(_lines(proc / "sys/net/ipv4/ip_unprivileged_port_start"))
    return int(text) if text.isdigit() else _UNPRIVILEGED


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
