"""Whom an address belongs to, as far as one can tell.

Owns the one rule by which ports that strangers reach share their places among them: who has many addresses of one
network is still one. It knows no connection and no limit.
"""

from __future__ import annotations

import ipaddress


def source_of(address: str) -> str:
    """Whom an address belongs to, as far as one can tell: an IPv4 address, or the /64 of an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network((ip, 64), strict=False))
    return str(ip)
