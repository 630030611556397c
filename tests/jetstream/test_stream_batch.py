"""The batch codec: what goes in comes out, and damaged bytes are refused, never misread beyond the block."""

from __future__ import annotations

import random

import pytest

from nimsnats.jetstream.batch import BadBatch, Batch

CASES = {
    "one": ([b"a"], [b"payload"], None),
    "even": ([b"a.b"] * 5, [b"xxxx"] * 5, None),
    "mixed": ([b"a", b"b", b"a", b"c.d"], [b"", b"1", b"22", b"\x00\n\r"], None),
    "headers": ([b"a"] * 3, [b"1", b"2", b"3"], [b"", b"NATS/1.0\r\nA: b\r\n\r\n", b""]),
}


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name: str) -> None:
    subjects, payloads, headers = CASES[name]
    batch = Batch.decode(Batch(123, subjects, payloads, headers, expire=name == "one").encode())
    assert (batch.time, list(batch.subjects), list(batch.payloads)) == (123, subjects, payloads)
    assert (None if batch.headers is None else list(batch.headers)) == headers
    assert batch.expire == (name == "one")
    assert Batch.decode(batch.encode()).payloads == payloads


def test_a_sparse_block_keeps_offsets_and_times() -> None:
    from array import array

    batch = Batch(5, [b"a", b"b"], [b"1", b"2"])
    batch.offsets, batch.times = array("I", [0, 900]), array("Q", [3, 5])
    again = Batch.decode(batch.encode())
    assert (again.offsets, again.times) == (batch.offsets, batch.times)


def test_damaged_bytes_are_refused() -> None:
    source = random.Random(7)
    for subjects, payloads, headers in CASES.values():
        data = Batch(1, subjects, payloads, headers).encode()
        for end in range(len(data)):
            with pytest.raises(BadBatch):
                Batch.decode(data[:end])
        for _ in range(300):
            broken = bytearray(data)
            broken[source.randrange(len(data))] ^= 1 << source.randrange(8)
            try:
                batch = Batch.decode(bytes(broken))
            except BadBatch:
                continue
            assert len(batch.subjects) == len(batch.payloads)
