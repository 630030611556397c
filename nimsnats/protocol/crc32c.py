"""CRC-32C (Castagnoli), which the S2 framing format asks for and the standard library does not have.

Owns the checksum only. A byte at a time Python manages a few megabytes a second; here a block is cut into many lanes of
equal length that advance together: one step is four `bytes.translate` and one exclusive or of long integers for all
lanes, and the lanes' results are folded in pairs. That gives more than a hundred megabytes a second.

A checksum register is linear over exclusive or: the register after A + B is that after A, moved on by len(B) zero
bytes, exclusive or that of B begun at zero.
"""

from __future__ import annotations

from functools import cache
from typing import Final

_POLYNOMIAL: Final = 0x82F63B78
_LANE: Final = 32
"""Bytes of one lane; a power of two."""
_ALL: Final = 0xFFFFFFFF


def _table() -> list[int]:
    table: list[int] = []
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
        table.append(register)
    return table


_TABLE: Final = _table()
_PLANES: Final = tuple(bytes(value >> shift & 0xFF for value in _TABLE) for shift in (0, 8, 16, 24))
"""The table, a byte of its values at a time."""


@cache
def _columns(size: int) -> tuple[int, ...]:
    """What `size` zero bytes (a power of two) make of each of the 32 bits of a register."""
    if size == 1:
        return tuple((1 << bit) >> 8 ^ _TABLE[1 << bit & 0xFF] for bit in range(32))
    half = _columns(size // 2)
    return tuple(_times(half, half[bit]) for bit in range(32))


def _times(columns: tuple[int, ...], register: int) -> int:
    moved = 0
    for column in columns:
        if register & 1:
            moved ^= column
        register >>= 1
    return moved


@cache
def _moves(size: int) -> tuple[tuple[bytes, ...], ...]:
    """`_columns` as translation tables: for each byte of a register what it adds to each byte of the moved one."""
    columns = _columns(size)
    moves: list[tuple[bytes, ...]] = []
    for place in range(4):
        values = [_times(columns[8 * place : 8 * place + 8], byte) for byte in range(256)]
        moves.append(tuple(bytes(value >> shift & 0xFF for value in values) for shift in (0, 8, 16, 24)))
    return tuple(moves)


def crc32c(data: bytes) -> int:
    """The checksum of `data`, as RFC 3720 defines it."""
    register = _ALL
    at, size = 0, len(data)
    while size - at >= 2 * _LANE:
        block = 1 << (size - at).bit_length() - 1
        register = _times(_columns(block), register) ^ _block(data[at : at + block])
        at += block
    for byte in data[at:]:
        register = register >> 8 ^ _TABLE[(register ^ byte) & 0xFF]
    return register ^ _ALL


def _block(data: bytes) -> int:
    """The register after a block, begun at zero. Its length is a power of two, at least two lanes."""
    lanes = len(data) // _LANE
    bits, mask = 8 * lanes, (1 << 8 * lanes) - 1
    low, second, third, high = _PLANES
    state = 0
    for column in range(_LANE):
        index = (state & mask ^ int.from_bytes(data[column::_LANE], "little")).to_bytes(lanes, "little")
        step = index.translate(low) + index.translate(second) + index.translate(third) + index.translate(high)
        state = state >> bits ^ int.from_bytes(step, "little")
    planes = [(state >> bits * place & mask).to_bytes(lanes, "little") for place in range(4)]
    length = _LANE
    while lanes > 1:
        lanes //= 2
        planes = _fold(planes, _moves(length), lanes)
        length *= 2
    return planes[0][0] | planes[1][0] << 8 | planes[2][0] << 16 | planes[3][0] << 24


def _fold(planes: list[bytes], moves: tuple[tuple[bytes, ...], ...], lanes: int) -> list[bytes]:
    """Each lane with its right neighbour."""
    left = [plane[0::2] for plane in planes]
    folded: list[bytes] = []
    for place, plane in enumerate(planes):
        value = int.from_bytes(plane[1::2], "little")
        for part, tables in zip(left, moves, strict=True):
            value ^= int.from_bytes(part.translate(tables[place]), "little")
        folded.append(value.to_bytes(lanes, "little"))
    return folded
