"""Zeros ahead of the WAL's end: they harm nothing, stay within their limit, and give up on a disk that refuses."""

from __future__ import annotations

from pathlib import Path

from nimsnats.storage.pages import Wal
from nimsnats.storage.runway import Runway

MIB = 1024 * 1024


def test_zeros_follow_what_is_there_up_to_the_limit(tmp_path: Path) -> None:
    wal = tmp_path / "wal"
    wal.write_bytes(b"frames" * 1000)
    runway = Runway(wal, 3 * MIB)
    assert not runway.short(0)
    assert runway.short(6000)
    runway.extend()
    assert wal.stat().st_size == 6000 + 2 * MIB
    assert not runway.short(6000)
    assert runway.short(2 * MIB)
    runway.extend()
    assert wal.stat().st_size < 3 * MIB + 8192
    assert not runway.short(10 * MIB)
    content = wal.read_bytes()
    assert content.startswith(b"frames" * 1000) and not content[6000:].strip(b"\0")


def test_a_disk_that_refuses_ends_the_matter(tmp_path: Path) -> None:
    runway = Runway(tmp_path / "missing", 3 * MIB)
    runway.extend()
    assert not runway.short(MIB)


def test_zeros_alone_are_no_frames(tmp_path: Path) -> None:
    wal = tmp_path / "wal"
    wal.write_bytes(bytes(MIB))
    assert Wal(wal).frames == []
