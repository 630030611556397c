"""Names that NATS derives or draws: server ids, NUIDs, node hashes. Pure functions of their arguments."""

from __future__ import annotations

import hashlib
import random
from base64 import b32encode
from typing import Final

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SERVER_PREFIX: Final = 13 << 3  # nkeys: the prefix byte that base32 renders as "N"


def nuid(source: random.Random) -> str:
    """A 22-character unique id over `0-9A-Za-z`, as NATS uses for inboxes, advisories and connection ids."""
    return "".join(source.choices(_DIGITS, k=22))


def node_hash(name: str) -> str:
    """The 8-character peer id of a server or account name: SHA-256, first 8 bytes, each mod 62 (nats-server)."""
    digest = hashlib.sha256(name.encode()).digest()
    return "".join(_DIGITS[byte % 62] for byte in digest[:8])


def server_id(source: random.Random) -> str:
    """A 56-character public server NKEY (`N…`) over random key bytes, with the CRC-16 that nkeys tools check."""
    raw = bytes([_SERVER_PREFIX]) + source.randbytes(32)
    return b32encode(raw + _crc16(raw).to_bytes(2, "little")).decode().rstrip("=")


def _crc16(data: bytes) -> int:
    """CRC-16/XMODEM, the checksum inside nkeys."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = ((crc << 1) ^ 0x1021) & 0xFFFF if crc & 0x8000 else (crc << 1) & 0xFFFF
    return crc
