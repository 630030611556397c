"""Hosts of a cluster under test, each in a network namespace of its own, on one bridge in another.

Owns the namespaces: nothing of them is visible outside, and all are removed at the end. A cut is a neighbour entry
with an address that nobody has, so that packets vanish in one direction as on a broken line: both kernels believe that
the other is there. The calls block for some milliseconds and must not be made in an event loop's thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Self

from pyroute2 import NetNS, netns
from pyroute2.netlink.exceptions import NetlinkError

_SWITCH: Final = "switch"
_NOBODY: Final = "02:00:00:00:00:99"
_PERMANENT: Final = 0x80
_ROOT: Final = 0xFFFFFFFF
_HANDLE: Final = 0x10000
_SUBNET: Final = "10.77.0"


class NotPermitted(Exception):
    """This machine or user cannot make network namespaces; the text says why."""


class Network:
    """A bridge with hosts on it."""

    def __init__(self) -> None:
        self._prefix = f"nims-{os.getpid()}-"
        self._names: list[str] = []
        self._addresses: dict[str, str] = {}
        self._cuts: set[tuple[str, str]] = set()
        self._slow: set[str] = set()

    def __enter__(self) -> Self:
        """Raises NotPermitted."""
        try:
            with self._namespace(_SWITCH) as switch:
                self._up(switch, "bridge", kind="bridge")
        except (OSError, NetlinkError) as error:
            self.__exit__()
            raise NotPermitted(f"no network namespaces with links in them here (CAP_NET_ADMIN?): {error}") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            netns.remove(name)
        self._names.clear()

    def _namespace(self, host: str) -> NetNS:
        name = self._prefix + host
        netns.create(name)
        self._names.append(name)
        space = NetNS(name)
        (loopback,) = space.link_lookup(ifname="lo")
        space.link("set", index=loopback, state="up")
        return space

    @staticmethod
    def _up(space: NetNS, link: str, **how: object) -> int:
        space.link("add", ifname=link, **how)
        (index,) = space.link_lookup(ifname=link)
        space.link("set", index=index, state="up")
        return int(index)

    def add(self, host: str) -> str:
        """A new host on the bridge; returns its address."""
        address = f"{_SUBNET}.{len(self._addresses) + 1}"
        with self._namespace(host) as space, NetNS(self._prefix + _SWITCH) as switch:
            far = {"ifname": "eth0", "net_ns_fd": self._prefix + host}
            port = self._up(switch, f"port{len(self._addresses)}", kind="veth", peer=far)
            (bridge,) = switch.link_lookup(ifname="bridge")
            switch.link("set", index=port, master=bridge)
            index = self._device(space)
            space.addr("add", index=index, address=address, prefixlen=24)
            space.link("set", index=index, state="up")
        self._addresses[host] = address
        return address

    def move(self, host: str) -> str:
        """A host gets another address in place of the one that it had; returns it."""
        before, address = self._addresses[host], f"{_SUBNET}.{len(self._addresses) + 100}"
        with NetNS(self._prefix + host) as space:
            index = self._device(space)
            space.addr("delete", index=index, address=before, prefixlen=24)
            space.addr("add", index=index, address=address, prefixlen=24)
        self._addresses[host] = address
        return address

    @staticmethod
    def _device(space: NetNS) -> int:
        (index,) = space.link_lookup(ifname="eth0")
        return int(index)

    def enter(self, host: str) -> Callable[[], None]:
        """What a child process calls to be on that host."""
        name = self._prefix + host
        return lambda: netns.setns(name)

    def cut(self, sender: str, receiver: str) -> None:
        """What one host sends to another vanishes."""
        if (sender, receiver) not in self._cuts:
            self._cuts.add((sender, receiver))
            with NetNS(self._prefix + sender) as space:
                where = {"dst": self._addresses[receiver], "ifindex": self._device(space)}
                space.neigh("replace", lladdr=_NOBODY, state=_PERMANENT, **where)

    def mend(self, sender: str, receiver: str) -> None:
        """What one host sends to another arrives again."""
        if (sender, receiver) in self._cuts:
            self._cuts.discard((sender, receiver))
            with NetNS(self._prefix + sender) as space:
                space.neigh("del", dst=self._addresses[receiver], ifindex=self._device(space))

    def slow_down(self, host: str, *, delay_ms: int, loss_percent: int, kbit: int) -> str:
        """What a host sends is late and partly lost; where the kernel cannot do that, it gets little bandwidth.

        Returns what was done.
        """
        with NetNS(self._prefix + host) as space:
            index = self._device(space)
            try:
                how = {"delay": delay_ms * 1000, "jitter": delay_ms * 300, "loss": loss_percent}
                space.tc("add", "netem", index, _HANDLE, **how)
                done = f"{delay_ms} ms late, {loss_percent} % lost"
            except NetlinkError:
                space.tc("add", "tbf", index, _HANDLE, rate=f"{kbit}kbit", burst=4000, latency=f"{delay_ms * 4}ms")
                done = f"{kbit} kbit/s (no netem in this kernel)"
        self._slow.add(host)
        return done

    def heal(self) -> None:
        """Every line is whole and fast again."""
        for sender, receiver in list(self._cuts):
            self.mend(sender, receiver)
        for host in self._slow:
            with NetNS(self._prefix + host) as space:
                space.tc("del", index=self._device(space), handle=_HANDLE, parent=_ROOT)
        self._slow.clear()
