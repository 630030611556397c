"""The machine and the program: interpreter, libraries, limits, clock, secrets."""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import resource
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from nimsnats.config import Settings
from nimsnats.config.exposure import exposure, is_closed
from nimsnats.descriptors import reserve_of
from nimsnats.doctor.finding import Finding, ok, problem, warning
from nimsnats.version import RELEASED_NS, __version__

_DISTRIBUTION: Final = "nimsnats"
_MINIMUM: Final = re.compile(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)")
_ENOUGH_FILES: Final = 65_536
_FEW_FILES: Final = 1024
_UNSYNCHRONISED: Final = 0x40
_LONG_ENOUGH: Final = 16
_VARIED_ENOUGH: Final = 8


def check_program() -> Iterator[Finding]:
    """The interpreter, and the libraries against what this version asks for."""
    advice = f"Install {_DISTRIBUTION} again in a fresh virtual environment: pip install {_DISTRIBUTION}"
    versions: list[str] = []
    try:
        required = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    for line in required:
        wanted = _MINIMUM.match(line)
        if wanted is None or ";" in line:
            continue  # an extra's
        try:
            version = importlib.metadata.version(wanted[1])
        except importlib.metadata.PackageNotFoundError:
            yield problem("program", f"the library {wanted[1]} is missing", advice)
            continue
        if _numbers(version) < _numbers(wanted[2]):
            yield problem("program", f"{wanted[1]} is {version}; {wanted[2]} or newer is needed", advice)
        versions.append(f"{wanted[1]} {version}")
    python = ".".join(map(str, sys.version_info[:3]))
    yield ok("program", f"nimsnats {__version__}, Python {python}, SQLite {sqlite3.sqlite_version}")
    if versions:
        yield ok("program", ", ".join(versions))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def check_limits(node: int | None) -> Iterator[Finding]:
    """What the kernel lets a process have: open files, file size. Of the running node (its pid), else of this one."""
    whose = "the running node" if node is not None else "this shell, which may be others than the service's"
    (soft, hard), size = _limits(node, resource.RLIMIT_NOFILE), _limits(node, resource.RLIMIT_FSIZE)[0]
    files = hard if node is None else soft  # a node raises its own limit when it starts
    if files == resource.RLIM_INFINITY or files >= _ENOUGH_FILES:
        yield ok("limits", f"{'any number of' if files == resource.RLIM_INFINITY else files} open files for {whose}")
    else:
        advice = f"In the unit: LimitNOFILE={8 * _ENOUGH_FILES}; in a shell: ulimit -Hn {_ENOUGH_FILES}"
        kept = reserve_of(files)
        text = f"{files} open files for {whose}: each client takes one, and {kept} are kept for storage and other nodes"
        yield (problem if files < _FEW_FILES else warning)("limits", text, advice)
    if size != resource.RLIM_INFINITY:
        text = f"no file can grow beyond {size} bytes: the database counts as full then"
        yield warning("limits", text, "ulimit -f unlimited, or LimitFSIZE=infinity in the unit")


def _limits(node: int | None, kind: int) -> tuple[int, int]:
    """Soft and hard limit of the running node; of this process where there is none, or it is not ours to ask."""
    try:
        return resource.prlimit(node or 0, kind)
    except OSError:
        return resource.getrlimit(kind)


def check_clock(now_ns: int) -> Iterator[Finding]:
    """Whether the clock can be right, and whether something keeps it so."""
    if now_ns < RELEASED_NS:
        advice = "Set the clock (timedatectl set-ntp true): messages are stamped with it, and expire by it"
        yield problem("clock", "the clock is before this software's release", advice)
        return
    synchronised = _is_synchronised()
    if synchronised is None:
        yield ok("clock", "the kernel does not say whether the clock is synchronised")
    elif synchronised:
        yield ok("clock", "synchronised")
    else:
        advice = "Let NTP keep it: timedatectl set-ntp true. TTLs, max_age and deliveries' order in time rely on it"
        yield warning("clock", "nothing keeps the clock right", advice)


class _Timex(ctypes.Structure):
    """The head of adjtimex(2)'s structure, with room for the rest."""

    _fields_ = [
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_byte * 512),
    ]  # fmt: skip


def _is_synchronised() -> bool | None:
    """What the kernel says of its clock; None where it does not."""
    state = _Timex()  # modes 0: only read
    try:
        if ctypes.CDLL(None).adjtimex(ctypes.byref(state)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not state.status & _UNSYNCHRONISED


def check_secrets(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Whether secrets are there, and hard to guess. Never shows one."""
    advice = "openssl rand -hex 32"
    given = {
        "cluster secret (NATS_CLUSTER_SECRET)": settings.cluster.password,
        "registry token (REGISTRY_TOKEN)": settings.registry.token,
        "clients' token": settings.broker.token,
    }
    for hook, webhook in settings.forest.webhooks.items():
        for secret in webhook.secrets:
            given[f"secret of webhook {hook}"] = secret
    for user in settings.broker.users:
        if not user.password.startswith("$2"):
            given[f"password of user {user.name}"] = user.password
    for name, secret in given.items():
        if secret and not _is_strong(secret):
            yield warning("secrets", f"the {name} is easy to guess", f"Make a long random one: {advice}")
    if not settings.cluster.password:
        who = (
            "strangers are kept out by TLS alone"
            if is_closed(settings)
            else exposure(settings, embeds_registry=True).partition(":")[0]
        )
        text = f"no cluster secret: {who or 'every host that reaches the cluster port is let in'}"
        yield warning("secrets", text, f"Set NATS_CLUSTER_SECRET to the same value on all nodes: {advice}")
    if settings.cluster.tls is None and settings.cluster.password:
        text = "nodes talk without TLS: whoever listens in on the network reads the messages"
        yield warning("secrets", text, "Set NATS_CLUSTER_TLS_CERT, _KEY and _CA, unless the network itself is private")
    strong = sum(bool(secret) and _is_strong(secret) for secret in given.values())
    if strong:
        yield ok("secrets", f"{strong} long and varied")


def _is_strong(secret: str) -> bool:
    return len(secret) >= _LONG_ENOUGH and len(set(secret)) >= _VARIED_ENOUGH
